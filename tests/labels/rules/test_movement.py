"""Operators that move data: labels go where the elements go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_taylor_prune.labels.rules.reshape import segments
from tests.labels.rules.laws import Labelled, check_movement, check_removal

Draw = Callable[[st.SearchStrategy[Any]], Any]
Case = tuple[Callable[..., Any], list[tuple[int, ...]]]

CASES: dict[str, Callable[[Draw], Case]] = {}


def case(function: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    CASES[function.__name__] = function
    return function


def shapes(least: int = 1, most: int = 4, largest: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, largest), min_size=least, max_size=most).map(tuple)


def axis_of(draw: Draw, shape: tuple[int, ...]) -> int:
    return draw(st.integers(-len(shape), len(shape) - 1))


def factors(draw: Draw, number: int) -> list[int]:
    """Write a number as a product in some way."""
    found = []
    while number > 1:
        found.append(draw(st.sampled_from([d for d in range(1, number + 1) if number % d == 0])))
        number //= found[-1]
    return found or [1]


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
def split_by_name(draw: Draw) -> Case:
    name = draw(st.sampled_from(["hsplit", "vsplit", "dsplit"]))
    n, shape = draw(st.integers(1, 3)), draw(shapes(3, 4))
    axis = "vhd".index(name[0])
    shape = (*shape[:axis], n * shape[axis], *shape[axis + 1 :])
    return lambda x: getattr(torch, name)(x, n), [shape]


@case
def flip_by_name(draw: Draw) -> Case:
    name = draw(st.sampled_from(["fliplr", "flipud"]))
    return lambda x: getattr(torch, name)(x), [draw(shapes(2))]


@case
def at_least(draw: Draw) -> Case:
    name = draw(st.sampled_from(["atleast_1d", "atleast_2d", "atleast_3d"]))
    return lambda x: getattr(torch, name)(x), [draw(shapes())]


@case
def windows(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    size, step = draw(st.integers(1, shape[axis])), draw(st.integers(1, 2))
    return lambda x: x.unfold(axis, size, step), [shape]


@case
def fold_patches(draw: Draw) -> Case:
    kernel, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (channels * kernel**2, 6)
    size = (2 * kernel, 3 * kernel)
    return lambda x: F.fold(x, size, kernel, stride=kernel), [(2, *shape) if draw(st.booleans()) else shape]


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


@case
def slices(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    taken = tuple(slice(draw(st.integers(-n, n - 1)), None, draw(st.integers(1, 3))) for n in shape)
    return lambda x: x[taken], [shape]


@case
def bounded_slice(draw: Draw) -> Case:
    size = draw(st.integers(2, 9))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    return lambda x: x[:, start:stop], [(draw(st.integers(1, 3)), size)]


@case
def narrow(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    axis = axis_of(draw, shape)
    start = draw(st.integers(0, shape[axis] - 1))
    length = draw(st.integers(1, shape[axis] - start))
    return lambda x: x.narrow(axis, start, length), [shape]


@case
def select(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    index = draw(st.integers(-shape[axis], shape[axis] - 1))
    return lambda x: x.select(axis, index), [shape]


@case
def unbind(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    return lambda x: x.unbind(axis), [shape]


@case
def split(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    axis, size = axis_of(draw, shape), draw(st.integers(1, 8))
    return lambda x: x.split(size, axis), [shape]


@case
def split_with_sizes(draw: Draw) -> Case:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return lambda x: x.split(sizes, 1), [(draw(st.integers(1, 3)), sum(sizes), 2)]


@case
def tensor_split(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    return lambda x: x.tensor_split(draw(st.just(2)), 0), [(shape[0] + 1, *shape[1:])]


@case
def chunk(draw: Draw) -> Case:
    shape = draw(shapes(largest=8))
    axis, count = axis_of(draw, shape), draw(st.integers(1, 4))
    return lambda x: x.chunk(count, axis), [shape]


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


@case
def pixel_shuffle(draw: Draw) -> Case:
    factor, channels, size = (draw(st.integers(1, 3)) for _ in range(3))
    return lambda x: F.pixel_shuffle(x, factor), [(2, channels * factor**2, size, size)]


@case
def pixel_unshuffle(draw: Draw) -> Case:
    factor, channels, size = (draw(st.integers(1, 3)) for _ in range(3))
    return lambda x: F.pixel_unshuffle(x, factor), [(2, channels, size * factor, size * factor)]


@case
def channel_shuffle(draw: Draw) -> Case:
    groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return lambda x: F.channel_shuffle(x, groups), [(2, groups * width, 2, 1)]


@case
def shuffle_by_hand(draw: Draw) -> Case:
    groups, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return lambda x: x.view(2, groups, width, 3).transpose(1, 2).reshape(2, -1, 3), [(2, groups * width, 3)]


@case
def unfold_patches(draw: Draw) -> Case:
    kernel = draw(st.integers(1, 3))
    return lambda x: F.unfold(x, kernel, stride=draw(st.just(2))), [(2, draw(st.integers(1, 4)), 5, 4)]


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


def test_real_and_imaginary_part_are_removed_together() -> None:
    """Pairs of channels become complex, are turned, and become pairs again."""
    turn = torch.polar(torch.ones(1, dtype=torch.double), torch.ones(1, dtype=torch.double))

    def rotate(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(-2)

    assert check_removal(rotate, [torch.randn(3, 8)]) == 3 + 4
    labelled = Labelled(lambda x: torch.view_as_complex(x), [torch.randn(3, 2)])
    assert set(labelled.roots_of(0)[1].tolist()) <= set(labelled.outcome.locked)  # type: ignore[union-attr]


INDEX = torch.tensor([[1], [0], [2]])
ROWS = torch.tensor([1, 0, 1])

# name -> (function, operands, components that can be removed)
PICKED: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "gather": (lambda x: x.gather(0, INDEX.expand(-1, x.shape[1])), [torch.randn(4, 5)], 5),
    "take_along_dim": (lambda x: x.take_along_dim(INDEX, 0), [torch.randn(4, 5)], 5),
    "scatter": (
        lambda x, y: x.scatter(0, INDEX.expand(-1, x.shape[1]), y),
        [torch.randn(3, 5), torch.randn(3, 5)],
        5,
    ),
    "scatter_add_in_place": (
        lambda x, y: x.clone().scatter_add_(0, INDEX.expand(-1, x.shape[1]), y),
        [torch.randn(3, 5), torch.randn(3, 5)],
        5,
    ),
    "scatter_reduce": (
        lambda x, y: x.scatter_reduce(0, INDEX.expand(-1, x.shape[1]), y, "amax"),
        [torch.randn(3, 5), torch.randn(3, 5)],
        5,
    ),
    "index_add": (lambda x, y: x.index_add(0, ROWS, y), [torch.randn(4, 5), torch.randn(3, 5)], 5),
    "index_copy": (lambda x, y: x.index_copy(0, ROWS[:2], y), [torch.randn(4, 5), torch.randn(2, 5)], 5),
    "index_fill": (lambda x: x.index_fill(0, ROWS, 0.0), [torch.randn(4, 5)], 5),
    "index_reduce": (lambda x, y: x.index_reduce(0, ROWS, y, "amax"), [torch.randn(4, 5), torch.randn(3, 5)], 5),
}


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("name", PICKED)
def test_data_choose_along_one_axis_and_the_others_match(name: str) -> None:
    function, operands, count = PICKED[name]
    assert check_removal(function, operands) == count
    labelled = Labelled(function, operands)
    for number in range(len(operands)):
        assert set(labelled.roots_of(number)[0].tolist()) <= set(labelled.outcome.locked)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.gather(0, INDEX),
        lambda x: x.gather(0, INDEX.repeat(1, 5) + 0 * torch.arange(5)),
        lambda x: x.take_along_dim(torch.tensor([3])),
        lambda x: x.clone().index_put_((INDEX[:, 0],), torch.zeros((), dtype=x.dtype)),
    ],
    ids=["one_column", "fixed_columns", "flattened", "index_put"],
)
def test_what_data_choose_over_several_axes_locks(function: Callable[[Tensor], Tensor]) -> None:
    labelled = Labelled(function, [torch.randn(4, 5)])
    assert labelled.removable() == []


@given(shapes(most=5, largest=6), st.data())
def test_segments_pair_the_shortest_runs_of_equal_size(old: tuple[int, ...], data: st.DataObject) -> None:
    new = factors(data.draw, int(np.prod(old)))
    pairs = segments(old, new)
    assert [int(np.prod(old[a])) for a, _ in pairs] == [int(np.prod(new[b])) for _, b in pairs]
    assert [i for a, _ in pairs for i in range(len(old))[a]] == list(range(len(old)))
    assert [j for _, b in pairs for j in range(len(new))[b]] == list(range(len(new)))


@pytest.mark.parametrize("size", [2, 5])
def test_what_is_taken_by_number_is_held_in_place(size: int) -> None:
    labelled = Labelled(lambda x: x[:, :1], [torch.zeros(3, size)])
    channels = labelled.roots_of(0)[1]
    assert [int(root) in labelled.outcome.locked for root in channels] == [True, *[False] * (size - 1)]


def test_axes_that_become_one_follow_the_first_and_hold_the_others() -> None:
    labelled = Labelled(lambda x: x.flatten(1), [torch.zeros(2, 4, 3)])
    assert [bool(set(roots.tolist()) <= set(labelled.outcome.locked)) for roots in labelled.roots_of(0)] == [
        False,
        False,
        True,
    ]
