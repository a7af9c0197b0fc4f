"""Numbers and sentences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_taylor_prune.report import NetworkResult, Results
from lightning_taylor_prune.report.words import comparison_lines, milliseconds, number, outcome, percent, short, signed
from tests.report.examples import example

ORIGINAL = NetworkResult(params=271_690, macs=41_000_000, filters=784, accuracy=0.9024)
PRUNED = NetworkResult(params=121_282, macs=20_500_000, filters=544, accuracy=0.8736)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(-1234.5, 1), "-1,234.5"),
        (number(math.nan), "\N{EN DASH}"),
        (number(None), "\N{EN DASH}"),
        (signed(-2.04), "-2.0"),
        (signed(-0.01), "0.0"),
        (signed(3), "+3.0"),
        (signed(math.inf), "\N{EN DASH}"),
        (percent(0.8736), "87.4 %"),
        (percent(math.nan), "\N{EN DASH}"),
        (short(4_111_514_624), "4.11 G"),
        (short(41_000_000), "41.0 M"),
        (short(271_690), "271,690"),
        (milliseconds(5.774), "5.77 ms"),
        (milliseconds(123.4), "123 ms"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_lines_hold_the_figures_of_the_worked_example() -> None:
    changes = [plain(line.change) for line in comparison_lines(ORIGINAL, PRUNED)]
    assert changes == ["-2.88 points", "-55.4 %", "-55.4 %", "-50.0 %", "-30.6 %"]


@pytest.mark.parametrize(
    ("pruned", "sentence"),
    [
        (
            PRUNED,
            "Pruning removed 55.4 % of the learnable parameters and 50.0 % of the multiply-accumulates; test "
            "accuracy fell from 90.2 % to 87.4 % (-2.9 points).",
        ),
        (ORIGINAL, "Pruning removed no parameters; test accuracy stayed at 90.2 %."),
        (
            replace(PRUNED, accuracy=0.95),
            "Pruning removed 55.4 % of the learnable parameters and 50.0 % of the "
            "multiply-accumulates; test accuracy rose from 90.2 % to 95.0 % (+4.8 points).",
        ),
        (
            replace(PRUNED, accuracy=math.nan),
            "Pruning removed 55.4 % of the learnable parameters and 50.0 % of the multiply-accumulates.",
        ),
    ],
    ids=["fell", "nothing", "rose", "unknown"],
)
def test_outcome_in_a_sentence(pruned: NetworkResult, sentence: str) -> None:
    assert plain(outcome(Results("", "", (), ORIGINAL, pruned))) == sentence


def test_outcome_tells_measured_speed() -> None:
    assert plain(outcome(example(("a", "b"), {"l": 4}, 2))).endswith("; a forward pass is 1.46 times as fast.")
