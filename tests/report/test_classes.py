"""What happened to single classes, from counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_taylor_prune.report.classes import (
    chance_points,
    class_changes,
    grown_mistakes,
    matrices,
    row_normalized,
)

NAMES = ("cat", "dog", "eel", "emu")
BEFORE = [[8, 2, 0, 0], [1, 9, 0, 0], [0, 0, 0, 0], [0, 0, 5, 5]]
AFTER = [[7, 3, 0, 0], [5, 4, 1, 0], [0, 0, 0, 0], [0, 0, 2, 8]]

counts = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 50), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(counts)
def test_rows_sum_to_one_or_are_unknown(matrix: list[list[int]]) -> None:
    normalized = row_normalized(matrix)
    full = np.sum(matrix, axis=1) > 0
    assert np.allclose(normalized[full].sum(axis=1), 1) and np.isnan(normalized[~full]).all()


def test_worst_drop_comes_first_and_empty_classes_not_at_all() -> None:
    changes = [(change.name, round(change.points), change.count) for change in class_changes(NAMES, BEFORE, AFTER)]
    assert changes == [("dog", -50, 10), ("cat", -10, 10), ("emu", 30, 10)]


def test_equal_drops_keep_the_order_of_the_classes() -> None:
    same = class_changes(NAMES, np.eye(4, dtype=int), np.eye(4, dtype=int))
    assert [change.name for change in same] == list(NAMES)


def test_few_classes_are_all_shown() -> None:
    both = matrices(NAMES, BEFORE, AFTER, limit=4)
    assert both.rows == both.columns == NAMES


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    both = matrices(NAMES, BEFORE, AFTER, limit=2)
    assert both.rows == ("dog", "emu") and both.columns == ("dog", "emu", "all others")


def test_column_of_others_completes_the_rows() -> None:
    both = matrices(NAMES, BEFORE, AFTER, limit=2)
    assert both.after.tolist() == [[0.4, 0, 0.6], [0, 0.8, pytest.approx(0.2)]]


def test_mistakes_that_grew() -> None:
    grown = [(m.true, m.predicted, m.before, m.after) for m in grown_mistakes(NAMES, BEFORE, AFTER, 2)]
    assert grown == [("dog", "cat", 0.1, 0.5), ("cat", "dog", 0.2, 0.3)]


def test_mistakes_that_did_not_grow_are_not_told() -> None:
    assert len(grown_mistakes(NAMES, BEFORE, AFTER, 10)) == 3


def test_chance_is_two_standard_errors() -> None:
    change = class_changes(("a", "b"), [[50, 50], [0, 100]], [[50, 50], [0, 100]])[0]
    assert chance_points([change]) == pytest.approx(200 * np.sqrt(2 * 0.25 / 100))
