from __future__ import annotations

import builtins

import pytest
from rich.progress import Progress

from lightning_taylor_prune.latency.progress import progress_bar


def test_nothing_is_shown_unless_asked_for(capsys):
    with progress_bar(2, show=False) as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_bar_tells_what_is_done(capsys):
    with progress_bar(2, show=True) as advance:
        advance()
    assert "Measuring operators" in capsys.readouterr().out


def test_tqdm_stands_in_for_rich(monkeypatch, capsys):
    load = builtins.__import__

    def without_rich(name, *args):
        if name.startswith("rich"):
            raise ImportError(name)
        return load(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    with progress_bar(2, show=True) as advance:
        advance()
    assert "Measuring operators" in capsys.readouterr().err


@pytest.mark.parametrize("show", [True, False])
def test_bar_of_a_trainer_may_be_shown_meanwhile(show):
    with Progress(), progress_bar(2, show) as advance:
        advance()
