"""Normalisation: the channels of statistics are exact, the axes that are averaged are marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import TOKENS, Labelled, channels_of, check_removal

IMAGES = torch.randn(2, 6, 4, 4)
LINES = torch.randn(2, 6, 4)


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
    "quantized_channels": (
        lambda x, s: torch.fake_quantize_per_channel_affine(
            x.float(), s.detach().float().exp(), torch.zeros_like(s).int(), 1, -8, 7
        ),
        [LINES, VECTORS[0]],
        2 + 6 + 4,
    ),
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


ACROSS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "layer_norm": (lambda x: F.layer_norm(x, (6,)), -1),
    "renorm": (lambda x: torch.renorm(x, 2, 0, 0.1), -1),
    "rms_norm": (lambda x: F.rms_norm(x, (5, 6)), -2),
    "group_norm": (lambda x: F.group_norm(x, 1), 1),
    "batch_norm_rows": (lambda x: F.batch_norm(x, None, None, training=True), 0),
    "batch_norm_positions": (lambda x: F.batch_norm(x, None, None, training=True), 2),
    "instance_norm": (lambda x: F.instance_norm(x), 2),
}


@pytest.mark.parametrize("name", ACROSS)
def test_removal_across_a_reduced_axis_is_marked(name: str) -> None:
    function, axis = ACROSS[name]
    labelled = Labelled(function, [TOKENS])
    assert channels_of(labelled, axis) <= set(labelled.outcome.inexact.tolist()) - set(labelled.outcome.locked)


@pytest.mark.parametrize(("groups", "units"), [(1, 6), (2, 3), (3, 3), (6, 6)])
def test_group_norm_keeps_groups_equal(groups: int, units: int) -> None:
    """The finer of two ways: whole groups are removed, or the same position of every group."""
    labelled = Labelled(lambda x: F.group_norm(x, groups), [IMAGES])
    assert len(channels_of(labelled)) == units
