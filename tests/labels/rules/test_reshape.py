"""Operators that regroup axes: a result has the labels of the elements in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_taylor_prune.labels.rules.reshape import segments
from tests.labels.rules.laws import Labelled, check_movement
from tests.labels.rules.strategies import Case, Draw, axis_of, collect, factors, shapes

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def view(draw: Draw) -> Case:
    shape = draw(shapes())
    new = factors(draw, int(np.prod(shape)))
    return lambda x: x.view(new), [shape]


@case
def reshape_of_permuted(draw: Draw) -> Case:
    shape = draw(shapes(2))
    order = draw(st.permutations(range(len(shape))))
    new = factors(draw, int(np.prod(shape)))
    return lambda x: x.permute(order).reshape(new), [shape]


@case
def flatten(draw: Draw) -> Case:
    shape = draw(shapes())
    first = draw(st.integers(0, len(shape) - 1))
    last = draw(st.integers(first, len(shape) - 1))
    return lambda x: x.flatten(first, last), [shape]


@case
def unflatten(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    axis = axis_of(draw, shape)
    sizes = factors(draw, shape[axis])
    return lambda x: x.unflatten(axis, sizes), [shape]


@case
def squeeze_and_unsqueeze(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    return lambda x: x.squeeze(axis).unsqueeze(-1).unsqueeze(0), [shape]


@case
def at_least(draw: Draw) -> Case:
    name = draw(st.sampled_from(["atleast_1d", "atleast_2d", "atleast_3d"]))
    return lambda x: getattr(torch, name)(x), [draw(shapes())]


@case
def window_partition(draw: Draw) -> Case:
    window, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n = 2 * window
    return (
        lambda x: x.view(2, 2, window, 2, window, channels).permute(0, 1, 3, 2, 4, 5).reshape(8, window**2, channels),
        [(2, n, n, channels)],
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)


@given(shapes(most=5, largest=6), st.data())
def test_segments_pair_the_shortest_runs_of_equal_size(old: tuple[int, ...], data: st.DataObject) -> None:
    new = factors(data.draw, int(np.prod(old)))
    pairs = segments(old, new)
    assert [int(np.prod(old[a])) for a, _ in pairs] == [int(np.prod(new[b])) for _, b in pairs]
    assert [i for a, _ in pairs for i in range(len(old))[a]] == list(range(len(old)))
    assert [j for _, b in pairs for j in range(len(new))[b]] == list(range(len(new)))


def test_axes_that_become_one_follow_the_first_and_hold_the_others() -> None:
    labelled = Labelled(lambda x: x.flatten(1), [torch.zeros(2, 4, 3)])
    assert [bool(set(roots.tolist()) <= set(labelled.outcome.locked)) for roots in labelled.roots_of(0)] == [
        False,
        False,
        True,
    ]
