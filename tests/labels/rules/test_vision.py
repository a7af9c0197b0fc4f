"""torchvision's operators: deformable convolutions and regions of images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import deform_conv2d

from tests.labels.rules.laws import Labelled, check_removal, randn

BOXES = torch.tensor([[0, 0, 0, 4, 4], [1, 1, 1, 5, 5]], dtype=torch.double)


@pytest.mark.parametrize(
    ("width", "per_filter", "offset_groups", "units"),
    [(4, 4, 1, 4 + 3), (4, 4, 2, 2 + 3), (3, 1, 1, 3)],
    ids=["plain", "offset_groups", "depthwise"],
)
def test_deformable_convolution(width: int, per_filter: int, offset_groups: int, units: int) -> None:
    offsets = randn(2, 18 * offset_groups, 4, 4)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return deform_conv2d(x, offsets, weight, bias)

    assert check_removal(function, [randn(2, width, 6, 6), randn(3, per_filter, 3, 3), randn(3)]) == units


def test_offsets_and_masks_are_locked() -> None:
    operands = [randn(2, 4, 6, 6), randn(2, 18, 4, 4), randn(3, 4, 3, 3), randn(3), randn(2, 9, 4, 4)]
    labelled = Labelled(lambda x, o, w, b, m: deform_conv2d(x, o, w, b, mask=m), operands)
    for operand in (1, 4):
        channels = labelled.roots_of(operand)[1]
        assert channels is not None
        assert set(channels.tolist()) <= set(labelled.outcome.locked)


@pytest.mark.parametrize(
    ("name", "channels"), [("roi_align", 8), ("roi_pool", 8), ("ps_roi_align", 2), ("ps_roi_pool", 2)]
)
def test_channels_of_regions(name: str, channels: int) -> None:
    def function(x: Tensor) -> Any:
        return getattr(torchvision.ops, name)(x, BOXES, (2, 2))

    assert check_removal(function, [randn(2, 8, 6, 6)], live=True) == channels
