"""Operators that reorder axes or positions: a result has the labels of the elements in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import Labelled, check_movement, check_removal
from tests.labels.rules.strategies import Case, Draw, axis_of, collect, shapes

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def permute(draw: Draw) -> Case:
    shape = draw(shapes())
    order = [a - len(shape) * draw(st.booleans()) for a in draw(st.permutations(range(len(shape))))]
    return lambda x: x.permute(order), [shape]


@case
def transpose(draw: Draw) -> Case:
    shape = draw(shapes())
    a, b = axis_of(draw, shape), axis_of(draw, shape)
    return lambda x: x.transpose(a, b), [shape]


@case
def matrix_transpose(draw: Draw) -> Case:
    name = draw(st.sampled_from(["t", "mT", "mH", "H", "T"]))
    shape = draw(shapes(2, 2 if name in ("t", "H", "T") else 4))
    return lambda x: x.t() if name == "t" else getattr(x, name), [shape]


@case
def movedim(draw: Draw) -> Case:
    shape = draw(shapes(2))
    a, b = draw(st.permutations(range(len(shape))))[:2]
    return lambda x: x.movedim((a, b), (b, a)), [shape]


@case
def flip(draw: Draw) -> Case:
    shape = draw(shapes())
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    return lambda x: x.flip(axes), [shape]


@case
def roll(draw: Draw) -> Case:
    shape = draw(shapes())
    axis, shift = axis_of(draw, shape), draw(st.integers(-5, 5))
    return lambda x: x.roll(shift, axis), [shape]


@case
def flip_by_name(draw: Draw) -> Case:
    name = draw(st.sampled_from(["fliplr", "flipud"]))
    return lambda x: getattr(torch, name)(x), [draw(shapes(2))]


@case
def channel_shuffle(draw: Draw) -> Case:
    groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return lambda x: F.channel_shuffle(x, groups), [(2, groups * width, 2, 1)]


@case
def shuffle_by_hand(draw: Draw) -> Case:
    groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return lambda x: x.view(2, groups, width, 3).transpose(1, 2).reshape(2, -1, 3), [(2, groups * width, 3)]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)


def test_real_and_imaginary_part_are_removed_together() -> None:
    """Pairs of channels become complex, are turned, and become pairs again."""
    turn = torch.polar(torch.ones(1, dtype=torch.double), torch.ones(1, dtype=torch.double))

    def rotate(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    assert check_removal(rotate, [torch.randn(3, 8)]) == 3 + 4
    labelled = Labelled(lambda x: torch.view_as_complex(x), [torch.randn(3, 2)])
    assert set(labelled.roots_of(0)[1].tolist()) <= set(labelled.outcome.locked)  # type: ignore[union-attr]
