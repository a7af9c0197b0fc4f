"""Normalisation, reductions, pooling: what is exact obeys the removal law, the rest is marked or locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.rules.laws import Labelled, check_removal

IMAGES, VOLUMES = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4, 4)
LINES, TOKENS = torch.randn(2, 6, 4), torch.randn(2, 5, 6)


def channels_of(labelled: Labelled, axis: int = 1) -> set[int]:
    return set(labelled.roots_of(0)[axis].tolist())  # type: ignore[union-attr]


def batch_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, mean.detach(), var.detach().abs() + 0.5, weight, bias)


VECTORS = [torch.randn(6) for _ in range(4)]


def standardised(weight: Tensor, scale: Tensor) -> Tensor:
    """Meet a vector along the input channels first: they are then the last field, behind the kernel positions."""
    weight = weight * scale[:, None, None]
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, training=True).reshape_as(weight)


# name -> (function, operands, components that can leave)
EXACT: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "batch_norm": (batch_norm, [LINES.mean(2), *VECTORS], 6),
    "batch_norm_in_evaluation": (lambda x, m: F.batch_norm(x, m.detach(), m.detach().exp()), [LINES, VECTORS[0]], 12),
    "instance_norm": (lambda x: F.instance_norm(x), [LINES], 8),
    "filters_standardised": (standardised, [torch.randn(6, 4, 3, 3), torch.randn(4)], 6),
    "mean_over_space": (lambda x: x.mean((2, 3)), [IMAGES], 2 + 6),
    "global_pool": (lambda x: F.adaptive_avg_pool2d(x[:, :, None, None], 1), [LINES[..., 0]], 2 + 6),
    "softmax_over_tokens": (lambda x: x.softmax(1), [TOKENS], 2 + 6),
    "norm_over_tokens": (lambda x: F.normalize(x, dim=1), [TOKENS], 2 + 6),
}


@pytest.mark.parametrize("name", EXACT)
def test_removal_is_zeroing_beside_the_reduced_axis(name: str) -> None:
    function, operands, count = EXACT[name]
    assert check_removal(function, operands) >= count


def test_a_standardised_weight_keeps_its_input_channels_but_not_its_kernel() -> None:
    """Each channel is a block of positions in the flattened weight, and stands on its own axis again afterwards."""
    labelled = Labelled(standardised, [torch.randn(6, 4, 3, 3), torch.randn(4)])
    filters, channels, *kernel = labelled.roots_of(0)
    carried = {f.shape: labelled.outcome.roots[f].ravel().tolist() for f in labelled.results[0].fields}
    assert carried == {(6, 1, 1, 1): filters.tolist(), (1, 4, 1, 1): channels.tolist()}  # type: ignore[union-attr]
    assert set(labelled.outcome.locked) == {root for line in kernel for root in line.tolist()}  # type: ignore[union-attr]
    assert set(channels.tolist()) <= set(labelled.outcome.inexact.tolist())  # type: ignore[union-attr]


SPATIAL: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), LINES),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), IMAGES),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), VOLUMES),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2), LINES),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), IMAGES),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), VOLUMES),
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 2), LINES),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), IMAGES),
    "max_pool2d_indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], IMAGES),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), IMAGES),
    "bilinear": (lambda x: F.interpolate(x, size=(7, 5), mode="bilinear"), IMAGES),
    "trilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), VOLUMES),
    "linear": (lambda x: F.interpolate(x, scale_factor=2, mode="linear"), LINES),
    "reflection_pad": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), IMAGES),
    "lp_pool": (lambda x: F.lp_pool2d(x.abs() + 0.1, 2, 2), IMAGES),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_channels_pass_through_space(name: str) -> None:
    function, x = SPATIAL[name]
    labelled = Labelled(function, [x])
    assert channels_of(labelled) <= set(labelled.removable())
    check_removal(function, [x])


ACROSS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "mean": (lambda x: x.mean(1), 1),
    "sum": (lambda x: x.sum(-1, keepdim=True), -1),
    "amax": (lambda x: x.amax((1, 2)), 1),
    "max": (lambda x: x.max(1)[0], 1),
    "var_mean": (lambda x: torch.var_mean(x, 1), 1),
    "std": (lambda x: x.std(), 1),
    "softmax": (lambda x: x.softmax(1), 1),
    "log_softmax": (lambda x: F.log_softmax(x, -1), -1),
    "layer_norm": (lambda x: F.layer_norm(x, (6,)), -1),
    "rms_norm": (lambda x: F.rms_norm(x, (5, 6)), -2),
    "group_norm": (lambda x: F.group_norm(x, 1), 1),
    "normalize": (lambda x: F.normalize(x, dim=1), 1),
    "batch_norm_rows": (lambda x: F.batch_norm(x, None, None, training=True), 0),
    "batch_norm_positions": (lambda x: F.batch_norm(x, None, None, training=True), 2),
    "instance_norm": (lambda x: F.instance_norm(x), 2),
}


@pytest.mark.parametrize("name", ACROSS)
def test_removal_across_a_reduced_axis_is_marked(name: str) -> None:
    function, axis = ACROSS[name]
    labelled = Labelled(function, [TOKENS])
    assert channels_of(labelled, axis) <= set(labelled.outcome.inexact.tolist()) - set(labelled.outcome.locked)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumsum(1),
        lambda x: x.cumprod(1),
        lambda x: x.sort(1)[0],
        lambda x: x.topk(2, 1)[0],
        lambda x: x.argmax(1),
        lambda x: x.max(1)[1] + 1,
        lambda x: x.gather(1, torch.zeros(2, 1, 6, dtype=torch.long)),
        lambda x: x.index_select(1, torch.tensor([1, 0])),
        lambda x: x[:, torch.tensor([1, 0])],
        lambda x: x.take(torch.tensor([3])),
        lambda x: F.max_pool1d(x.transpose(1, 2), 5),
    ],
    ids="cumsum cumprod sort topk argmax max_index gather index_select index take pool_over_it".split(),  # noqa: SIM905
)
def test_what_depends_on_order_or_number_locks(function: Callable[[Tensor], Any]) -> None:
    labelled = Labelled(function, [TOKENS])
    assert channels_of(labelled) <= set(labelled.outcome.locked)


@pytest.mark.parametrize(("groups", "units"), [(1, 6), (2, 3), (3, 3), (6, 6)])
def test_group_norm_keeps_groups_equal(groups: int, units: int) -> None:
    """The finer of two ways: whole groups leave, or the same position of every group does."""
    labelled = Labelled(lambda x: F.group_norm(x, groups), [IMAGES])
    assert len(channels_of(labelled)) == units
