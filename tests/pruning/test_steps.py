"""How far long work is: a bar on a terminal, lines elsewhere, nothing where nothing is asked for."""

from __future__ import annotations

import io
import logging

import pytest

from lightning_taylor_prune.pruning import steps as module
from lightning_taylor_prune.pruning.steps import steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_all_items_come_in_order(progress: bool) -> None:
    assert list(steps([3, 1, 2], "Work", progress)) == [3, 1, 2]


def test_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(steps([1, 2], "Work")) == [1, 2] and "Work" in terminal.getvalue() and "100%" in terminal.getvalue()


def test_logger_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "lightning_taylor_prune"):
        list(steps([1, 2, 3], "Work"))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("Work: 1 of 3 done") and said[-1].startswith("Work: all 3 done") and len(said) == 3


def test_nothing_is_said_if_not_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning_taylor_prune"):
        list(steps([1, 2, 3], "Work", progress=False))
    assert not caplog.records
