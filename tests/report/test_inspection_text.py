"""An inspection as text and as tables of rich."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lightning_taylor_prune import Inspection, inspect
from lightning_taylor_prune.report.inspection_text import cost_text
from tests.networks import NETWORKS


@pytest.fixture(scope="module")
def found() -> Inspection:
    network = NETWORKS["option_a_constant"]
    return inspect(network.build(), network.example())


def rich_text(found: Inspection) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("render", [str, rich_text], ids=["plain", "rich"])
def test_all_groups_and_locks_are_shown(render: type[str], found: Inspection) -> None:
    text = render(found)
    assert all(group.name in text for group in found.groups) and all(lock.code in text for lock in found.locked)


def test_plain_text_has_no_control_characters(found: Inspection) -> None:
    assert all(letter == "\n" or letter.isprintable() for letter in str(found))


def test_nearly_all_is_not_all(found: Inspection) -> None:
    assert "100.0 %" not in str(found)


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("memory", 46_758_048, "44.59 MB"),
        ("latency", 1.234, "1.23 ms"),
        ("macs", 1_814_073_344, "1.81 G"),
        ("a new one", 1234, "1,234"),
    ],
)
def test_costs_have_units(cost: str, value: float, text: str) -> None:
    assert cost_text(cost, value).replace("\N{NO-BREAK SPACE}", " ") == text
