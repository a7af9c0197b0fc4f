"""Normalisation, reductions, pooling: what is exact obeys the removal law, the rest is marked or locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import Labelled, check_removal

IMAGES, VOLUMES = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4, 4)
GRID = torch.rand(1, 3, 3, 2) - 0.5
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


# name -> (function, operands, components that can be removed)
EXACT: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "batch_norm": (batch_norm, [LINES.mean(2), *VECTORS], 6),
    "batch_norm_in_evaluation": (lambda x, m: F.batch_norm(x, m.detach(), m.detach().exp()), [LINES, VECTORS[0]], 12),
    "instance_norm": (lambda x: F.instance_norm(x), [LINES], 8),
    "filters_standardised": (standardised, [torch.randn(6, 4, 3, 3), torch.randn(4)], 6),
    "mean_over_space": (lambda x: x.mean((2, 3)), [IMAGES], 2 + 6),
    "global_pool": (lambda x: F.adaptive_avg_pool2d(x[:, :, None, None], 1), [LINES[..., 0]], 2 + 6),
    "cumsum_over_tokens": (lambda x: x.cumsum(1), [TOKENS], 2 + 6),
    "sort_over_tokens": (lambda x: x.sort(1)[0], [TOKENS], 2 + 6),
    "topk_over_tokens": (lambda x: x.topk(2, 1)[0], [TOKENS], 2 + 6),
    "argmax_over_tokens": (lambda x: x.argmax(1), [TOKENS], 2 + 6),
    "median_over_tokens": (lambda x: x.median(1)[0], [TOKENS], 2 + 6),
    "differences_of_tokens": (lambda x: x.diff(dim=1), [TOKENS], 2 + 6),
    "fourier_over_tokens": (lambda x: torch.fft.rfft(x, dim=1).abs(), [TOKENS], 2 + 6),
    "fourier_in_space": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x)), [IMAGES], 2 + 6),
    "cosine_over_tokens": (lambda x, y: F.cosine_similarity(x, y, dim=1), [TOKENS, TOKENS + 1], 2 + 6),
    "matrix_norm_in_space": (lambda x: torch.linalg.matrix_norm(x), [IMAGES], 2 + 6),
    "nuclear_norm": (lambda x: torch.linalg.matrix_norm(x, "nuc", (1, 2)), [TOKENS], 2),
    "unpool": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), [IMAGES], 2 + 6),
    "grid_sample": (lambda x: F.grid_sample(x, GRID.to(x).expand(len(x), -1, -1, -1)), [IMAGES], 2 + 6),
    "triangle": (lambda x: x.tril(), [IMAGES], 2 + 6),
    "quantized_channels": (
        lambda x, s: torch.fake_quantize_per_channel_affine(
            x.float(), s.detach().float().exp(), torch.zeros_like(s).int(), 1, -8, 7
        ),
        [LINES, VECTORS[0]],
        2 + 6 + 4,
    ),
    "softmax_over_tokens": (lambda x: x.softmax(1), [TOKENS], 2 + 6),
    "norm_over_tokens": (lambda x: F.normalize(x, dim=1), [TOKENS], 2 + 6),
}


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
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
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x.flip(0), dim=1), 1),
    "pairwise_distance": (lambda x: F.pairwise_distance(x, x.flip(0)), -1),
    "dist": (lambda x: torch.dist(x, x.flip(0)), 1),
    "mse_loss": (lambda x: F.mse_loss(x, x.flip(0)), 1),
    "l1_loss_summed": (lambda x: F.l1_loss(x, x.flip(0), reduction="sum"), 1),
    "kl_div": (lambda x: F.kl_div(x, x.flip(0), reduction="sum"), 1),
    "frobenius": (lambda x: torch.linalg.norm(x, dim=(1, 2)), 1),
    "nanmean": (lambda x: x.nanmean(1), 1),
    "median": (lambda x: x.median(1)[0], 1),
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


LOCKED: dict[str, Callable[[Tensor], Any]] = {
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(1),
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "argmax": lambda x: x.argmax(1),
    "max_index": lambda x: x.max(1)[1] + 1,
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, dtype=torch.long)),
    "index_select": lambda x: x.index_select(1, torch.tensor([1, 0])),
    "index": lambda x: x[:, torch.tensor([1, 0])],
    "take": lambda x: x.take(torch.tensor([3])),
    "pool_over_it": lambda x: F.max_pool1d(x.transpose(1, 2), 5),
    "median_index": lambda x: x.median(1)[1] + 1,
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "diff": lambda x: x.diff(dim=1),
    "fourier": lambda x: torch.fft.fft(x, dim=1).abs(),
    "fourier_of_all": lambda x: torch.fft.fftn(x).abs(),
    "one_hot": lambda x: F.one_hot(x.detach().clamp(0, 1).long(), 3),
    "bucketize": lambda x: torch.bucketize(torch.rand(3), x.flatten().detach()),
    "tril": lambda x: x.tril(),
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "inverse": lambda x: torch.linalg.inv(x @ x.mT + torch.eye(5).to(x)),
    "as_strided": lambda x: x.as_strided((2, 5), (30, 6)),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.tensor([[1] * 6, [2] * 6])),
    "cross_entropy_of_shares": lambda x: F.cross_entropy(x, torch.full((2, 5, 6), 0.2, dtype=x.dtype)),
    "nll": lambda x: F.nll_loss(x, torch.tensor([[1] * 6, [2] * 6])),
    "targets": lambda x: F.mse_loss(x, torch.arange(60.0).view(2, 5, 6).to(x)),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_depends_on_order_or_number_locks(name: str) -> None:
    labelled = Labelled(LOCKED[name], [TOKENS])
    reasons = [labelled.outcome.locked.get(root, "free") for root in channels_of(labelled)]
    assert not any(reason == "free" or "label rule" in reason for reason in reasons)


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda theta: F.affine_grid(theta, [2, 3, 4, 4], align_corners=False), (2, 2, 3)),
        (lambda grid: F.grid_sample(IMAGES.to(grid), grid), (2, 3, 3, 2)),
    ],
    ids=["affine_grid", "grid_sample"],
)
def test_coordinates_are_locked(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    labelled = Labelled(function, [torch.rand(shape)])
    assert {root for roots in labelled.all_roots() for root in roots.tolist()} == set(labelled.outcome.locked)
    assert not any("label rule" in reason for reason in labelled.outcome.locked.values())


@pytest.mark.parametrize(("groups", "units"), [(1, 6), (2, 3), (3, 3), (6, 6)])
def test_group_norm_keeps_groups_equal(groups: int, units: int) -> None:
    """The finer of two ways: whole groups are removed, or the same position of every group."""
    labelled = Labelled(lambda x: F.group_norm(x, groups), [IMAGES])
    assert len(channels_of(labelled)) == units
