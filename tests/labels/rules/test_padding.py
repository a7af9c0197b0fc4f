"""Padding: a result has the labels of the elements in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.labels.rules.laws import check_movement
from tests.labels.rules.strategies import Case, Draw, collect, shapes

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def pad(draw: Draw) -> Case:
    shape = draw(shapes())
    count = draw(st.integers(1, len(shape)))
    widths = draw(st.lists(st.integers(0, 2), min_size=2 * count, max_size=2 * count))
    return lambda x: F.pad(x, widths), [shape]


@case
def crop(draw: Draw) -> Case:
    shape = draw(shapes(largest=6))
    widths = (-draw(st.integers(0, shape[-1] // 3)), draw(st.integers(-(shape[-1] // 3), 2)))
    return lambda x: F.pad(x, widths), [shape]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)
