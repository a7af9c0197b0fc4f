"""Operators that work position by position: positions that they combine are removed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_taylor_prune.labels.rules import find_rules
from tests.labels.rules.laws import Labelled, check_removal

X, ROW, COLUMN = torch.randn(3, 4, 5), torch.randn(5), torch.randn(4, 1)


def _foreach_in_place(averages: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    torch._foreach_mul_(averages, 0.9)
    torch._foreach_addcmul_(averages, values, values, 0.1)
    return [average * 2 for average in averages]


def _with_data(average: Tensor, values: Tensor) -> Tensor:
    average.data = average.data * 0.9 + values.data * 0.1
    return average * 2


# name -> (function, operands, components that can be removed: an axis that two operands share counts once)
CASES: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "add": (torch.add, [X, X], 12),
    "add_row": (lambda x, y: x + y, [X, ROW], 12),
    "add_column": (lambda x, y: x + y, [X, COLUMN], 12),
    "outer_sum": (lambda x, y: x + y, [ROW, COLUMN], 9),
    "multiply_in_place": (lambda x, y: x.clone().mul_(y), [X, ROW], 12),
    "relu_in_place": (lambda x: x.clone().relu_(), [X], 12),
    "where": (lambda x, y: torch.where(x > 0, x, y), [X, COLUMN], 12),
    "masked_fill": (lambda x, y: x.masked_fill(y > 0, 2.0), [X, ROW], 12),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), [X, ROW], 12),
    "addcmul": (torch.addcmul, [X, ROW, COLUMN], 12),
    "maximum_of_two": (torch.maximum, [X, COLUMN], 12),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), [X], 12),
    "both_in_place": (lambda x, y: (x > 0).__iand__(y > 0), [X, X], 12),
    "and_or_xor": (lambda x, y: ((x > 0) & (y > 0)) | ((x > 1) ^ (y > 1)), [X, ROW], 12),
    "complex": (lambda x, y: torch.complex(x, y).conj().imag, [X, X], 12),
    "broadcast_tensors": (lambda x, y: torch.broadcast_tensors(x, y), [ROW, COLUMN], 9),
    "squared_error": (lambda x, y: F.mse_loss(x, y, reduction="none"), [X, X], 12),
    "weighted_error": (
        lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, pos_weight=w.detach(), reduction="none"),
        [X, X, ROW],
        12,
    ),
    "foreach_add": (lambda x, y: torch._foreach_add([x, y], [y, y], alpha=0.5)[0], [X, X], 12),
    "foreach_multiply": (lambda x, y: torch._foreach_mul([x, y], 0.5), [X, X], 24),
    "foreach_lerp": (lambda x, y: torch._foreach_lerp([x], [y], 0.5), [X, X], 12),
    "foreach_in_place": (lambda x, y: _foreach_in_place([x.clone()], [y]), [X, X], 12),
    "new_data": (lambda x, y: _with_data(x.clone(), y), [X, X], 12),
    "meshgrid": (lambda x, y: torch.meshgrid(x, y, indexing="ij"), [ROW, COLUMN[:, 0]], 9),
    "meshgrid_xy": (lambda x, y: torch.meshgrid(x, y, indexing="xy"), [ROW, COLUMN[:, 0]], 9),
    "gelu": (F.gelu, [X], 12),
    "hardswish": (F.hardswish, [X], 12),
    "softplus": (F.softplus, [X], 12),
    "pow": (lambda x: x**3, [X], 12),
    "dropout_in_evaluation": (lambda x: F.dropout(x, 0.5, training=False), [X], 12),
    "cast": (lambda x: x.to(torch.float32), [X], 12),
    "clone_detach_contiguous": (lambda x: x.clone().detach().contiguous(), [X], 12),
    "zeros_like": (lambda x: x + torch.zeros_like(x), [X], 12),
    "full_like": (lambda x: x * torch.full_like(x, 3.0), [X], 12),
    "data": (lambda x: x + x.data, [X], 12),
    "prelu": (F.prelu, [X, torch.rand(4)], 12),
    "prelu_shared": (F.prelu, [X, torch.rand(1)], 12),
    "glu": (lambda x: F.glu(torch.cat([x, 2 * x], 1), 1), [X], 12),
}


@pytest.mark.parametrize("name", CASES)
def test_removal_is_zeroing(name: str) -> None:
    function, operands, count = CASES[name]
    assert check_removal(function, operands) == count


@settings(max_examples=60)
@given(st.data())
def test_broadcasting_unites_what_falls_on_one_position(data: st.DataObject) -> None:
    full = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shapes = []
    for _ in range(data.draw(st.integers(1, 3))):
        shape = [n if data.draw(st.booleans()) else 1 for n in full]
        shapes.append(shape[data.draw(st.integers(0, len(full))) :])
    labelled = Labelled(lambda *xs: sum(xs[1:], xs[0]) * 1, [torch.zeros(s) for s in shapes])
    for axis in range(len(full)):
        along = [
            roots[axis - len(full) + len(shape)]
            for i, shape in enumerate(shapes)
            if axis - len(full) + len(shape) >= 0 and (roots := labelled.roots_of(i)) is not None
        ]
        tracked = [r.tolist() for r in along if r is not None]
        assert all(r == tracked[0] for r in tracked)
        assert not tracked or len(set(tracked[0])) == len(tracked[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.arange(4.0),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda x: x @ torch.eye(4, dtype=x.dtype),
        lambda x: x + torch.linspace(0, 1, 4),
        lambda x: x + torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")[1],
        lambda x: x * torch.hann_window(4),
    ],
    ids=["arange", "tensor", "eye", "linspace", "meshgrid", "window"],
)
def test_a_constant_of_fixed_size_locks(function: Callable[[Tensor], Tensor]) -> None:
    labelled = Labelled(function, [torch.randn(3, 4)])
    assert set(labelled.roots_of(0)[1].tolist()) <= set(labelled.outcome.locked)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fill",
    [
        lambda x: torch.zeros(3, 4),
        lambda x: x.new_ones(3, 4),
        lambda x: torch.full((3, 4), 2.0),
        lambda x: torch.randn(3, 4),
        lambda x: torch.randint(2, (3, 4)),
    ],
    ids=["zeros", "new_ones", "full", "randn", "randint"],
)
def test_any_position_of_a_fill_can_be_removed(fill: Callable[[Tensor], Tensor]) -> None:
    """Whether the size that stands in the code follows is for verification to find out."""
    labelled = Labelled(lambda x: x + fill(x), [torch.randn(3, 4)])
    assert len(labelled.removable()) == 7


WITH_RULE = """
    arange linspace meshgrid __and__ __or__ __xor__ __iand__ __ior__ __ixor__ cross_entropy_loss nll_loss_nd eye randint
    randperm index_put_ lstm fft_rfft2 max_unpool2d stft
"""


@pytest.mark.parametrize("name", WITH_RULE.split())
def test_what_networks_use_has_a_rule(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    assert all(find_rules(getattr(packet, overload)) is not None for overload in packet.overloads())
