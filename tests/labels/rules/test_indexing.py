"""Operators that take parts of a tensor: a result has the labels of the elements in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from tests.labels.rules.laws import TOKENS, Labelled, channels_of, check_movement, check_removal
from tests.labels.rules.strategies import Case, Draw, axis_of, collect, shapes
from tests.oracles import masked_error, prepared, random_units

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def split_by_name(draw: Draw) -> Case:
    name = draw(st.sampled_from(["hsplit", "vsplit", "dsplit"]))
    n, shape = draw(st.integers(1, 3)), draw(shapes(3, 4))
    axis = "vhd".index(name[0])
    shape = (*shape[:axis], n * shape[axis], *shape[axis + 1 :])
    return lambda x: getattr(torch, name)(x, n), [shape]


@case
def windows(draw: Draw) -> Case:
    shape = draw(shapes())
    axis = axis_of(draw, shape)
    size, step = draw(st.integers(1, shape[axis])), draw(st.integers(1, 2))
    return lambda x: x.unfold(axis, size, step), [shape]


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


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)


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
    "index_put": (
        lambda x: x.clone().index_put_((INDEX[:, 0],), torch.zeros((), dtype=x.dtype)),
        [torch.randn(4, 5)],
        5,
    ),
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
    ],
    ids=["one_column", "fixed_columns", "flattened"],
)
def test_what_data_choose_over_several_axes_locks(function: Callable[[Tensor], Tensor]) -> None:
    labelled = Labelled(function, [torch.randn(4, 5)])
    assert labelled.removable() == []


@pytest.mark.parametrize("size", [2, 5])
def test_what_is_taken_by_number_is_held_in_place(size: int) -> None:
    labelled = Labelled(lambda x: x[:, :1], [torch.zeros(3, size)])
    channels = labelled.roots_of(0)[1]
    assert [int(root) in labelled.outcome.locked for root in channels] == [True, *[False] * (size - 1)]


LOCKED: dict[str, Callable[[Tensor], Any]] = {
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, dtype=torch.long)),
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 0])),
    "index": lambda x: x[:, torch.tensor([1, 0])],
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_depends_on_order_or_number_locks(name: str) -> None:
    labelled = Labelled(LOCKED[name], [TOKENS])
    reasons = [labelled.outcome.locked.get(root, "free") for root in channels_of(labelled)]
    assert not any(reason == "free" or "label rule" in reason for reason in reasons)


Write = Callable[[Tensor, Tensor, Tensor], None]


class Overwriting(nn.Module):
    """Writes to some rows of its features."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.write = nn.Linear(4, 8), nn.Linear(8, 3), write
        self.rows = nn.Parameter(torch.randn(3, 8))
        self.register_buffer("mask", torch.tensor([True, False, True, False, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).clone()
        self.write(h, self.mask, self.rows)
        return self.last(h.relu())  # type: ignore[no-any-return]


def row(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[:, mask] = rows[0]


def every_row(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[:, mask] = rows


def nothing(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[mask.expand(2, -1)] = 0


def added(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[:, torch.tensor([0, 2])] += rows[1]


def moved_rows(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[:, torch.tensor([0, 2])] = h[:, torch.tensor([1, 3])]


def pairs(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h[torch.arange(2), torch.tensor([0, 2])] = rows[:2]


def along_channels_first(h: Tensor, mask: Tensor, rows: Tensor) -> None:
    h.transpose(1, 2)[:, :, mask] = 1


writes = [row, every_row, nothing, added, moved_rows, pairs, along_channels_first]


@pytest.mark.parametrize("write", writes, ids=[write.__name__ for write in writes])
def test_channels_of_rows_that_are_written_are_pruned(write: Write) -> None:
    model, example, groups = prepared(Overwriting(write), (torch.randn(2, 6, 4),), torch.double)
    plan = groups.plan(random_units(groups))
    assert list(plan.removed) == ["first"] and masked_error(model, copy.deepcopy(model), plan, example) < 1e-10


def test_channels_that_are_written_by_index_are_locked() -> None:
    def write(h: Tensor, mask: Tensor, rows: Tensor) -> None:
        h[..., torch.tensor([0, 2])] = 0

    assert not find_groups(Overwriting(write), torch.randn(2, 6, 4)).num_units
