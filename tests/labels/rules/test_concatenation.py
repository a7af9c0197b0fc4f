"""Operators that join or repeat tensors: a result has the labels of the elements in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labels.rules.laws import check_movement
from tests.labels.rules.strategies import Case, Draw, axis_of, collect, shapes

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def cat(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    position = axis % len(shape)
    return lambda *xs: torch.cat(xs, axis), [(*shape[:position], n, *shape[position + 1 :]) for n in sizes]


@case
def stack(draw: Draw) -> Case:
    shape = draw(shapes(most=3))
    axis = draw(st.integers(-len(shape) - 1, len(shape)))
    return lambda *xs: torch.stack(xs, axis), [shape] * draw(st.integers(1, 3))


@case
def stack_by_name(draw: Draw) -> Case:
    name = draw(st.sampled_from(["hstack", "vstack", "dstack", "column_stack"]))
    shape = draw(shapes())
    return lambda *xs: getattr(torch, name)(xs), [shape] * draw(st.integers(1, 3))


@case
def expand(draw: Draw) -> Case:
    shape = draw(shapes())
    sizes = [draw(st.integers(1, 3)), *(-1 if n > 1 else draw(st.integers(1, 3)) for n in shape)]
    return lambda x: x.expand(sizes), [shape]


@case
def repeat(draw: Draw) -> Case:
    shape = draw(shapes(most=3))
    counts = draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape) + 1))
    return lambda x: x.repeat(counts), [shape]


@case
def repeat_interleave(draw: Draw) -> Case:
    shape = draw(shapes())
    axis, count = axis_of(draw, shape), draw(st.integers(1, 3))
    return lambda x: x.repeat_interleave(count, axis), [shape]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)
