"""The table of a coverage run, from records."""

from __future__ import annotations

import pytest

from recipes.benchmarks.coverage_table import HEADINGS, as_markdown, cells, is_bad, summary


@pytest.mark.parametrize(
    ("status", "expected_refusal", "bad"),
    [
        ("ok", False, False),
        ("ok", True, True),
        ("refused", True, False),
        ("refused", False, True),
        ("time", False, True),
    ],
)
def test_what_counts_as_bad(status: str, expected_refusal: bool, bad: bool) -> None:
    assert is_bad({"status": status, "expected_refusal": expected_refusal}) == bad


def test_rows_of_interrupted_networks_have_every_column() -> None:
    assert len(cells({"name": "a/b", "status": "time"})) == len(HEADINGS)


def test_table_explains_what_is_locked() -> None:
    record = {
        "name": "a/b",
        "status": "ok",
        "groups": 1,
        "exact_groups": 1,
        "params_before": 1000,
        "shares": {"prunable": 0.7, "locked": 0.3, "ends": 0.0},
        "locked_parameters": {"is rolled": 250, "is indexed by data": 50},
    }
    assert "more than 20 % locked in 1" in summary([record])
    assert "`a/b`: 25.0 % is rolled; 5.0 % is indexed by data" in as_markdown([record])
