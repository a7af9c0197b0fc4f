"""Convolutions: labels of a summed axis are tied, all others are those of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import check_dependence, check_removal, randn


def grouped(rank: int, transposed: bool = False) -> Callable[..., Tensor]:
    """Return a convolution whose number of groups follows its operands."""
    name = f"conv{'_transpose' if transposed else ''}{rank}d"

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        batched = x.dim() == rank + 2
        channels = x.shape[1 if batched else 0]
        groups = GROUPS_BEFORE * channels // CHANNELS_BEFORE if transposed else channels // weight.shape[1]
        return getattr(F, name)(x, weight, bias, groups=groups)

    return function


CHANNELS_BEFORE, GROUPS_BEFORE = 6, 3


# name -> (function, operands, components that can be removed, live)
CASES: dict[str, tuple[Callable[..., Any], list[Tensor], int, bool]] = {
    "conv1d": (F.conv1d, [randn(2, 4, 5), randn(3, 4, 3), randn(3)], 2 + 4 + 3, False),
    "conv2d": (F.conv2d, [randn(2, 4, 5, 5), randn(3, 4, 3, 3), randn(3)], 2 + 4 + 3, False),
    "conv2d_unbatched": (F.conv2d, [randn(4, 5, 5), randn(3, 4, 3, 3), randn(3)], 4 + 3, False),
    "conv3d": (F.conv3d, [randn(2, 4, 3, 3, 3), randn(3, 4, 2, 2, 2)], 2 + 4 + 3, False),
    "conv2d_grouped": (grouped(2), [randn(2, 6, 5, 5), randn(6, 2, 3, 3), randn(6)], 2 + 3, False),
    "conv1d_depthwise": (grouped(1), [randn(2, 6, 5), randn(6, 1, 3), randn(6)], 2 + 6, False),
    "conv2d_depthwise_doubling": (grouped(2), [randn(2, 6, 5, 5), randn(12, 1, 3, 3)], 2 + 6, False),
    "conv_transpose1d": (F.conv_transpose1d, [randn(2, 4, 5), randn(4, 3, 3), randn(3)], 2 + 4 + 3, False),
    "conv_transpose2d": (F.conv_transpose2d, [randn(2, 4, 5, 5), randn(4, 3, 2, 2)], 2 + 4 + 3, False),
    "conv_transpose3d": (F.conv_transpose3d, [randn(2, 4, 2, 2, 2), randn(4, 3, 2, 2, 2)], 2 + 4 + 3, False),
    "conv_transpose2d_grouped": (
        grouped(2, transposed=True),
        [randn(2, 6, 4, 4), randn(6, 2, 2, 2), randn(6)],
        2 + 3,
        False,
    ),
    "convolution": (
        lambda x, w, b: torch.convolution(x, w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        [randn(2, 4, 5, 5), randn(3, 4, 3, 3), randn(3)],
        2 + 4 + 3,
        False,
    ),
    "convolution_transposed": (
        lambda x, w, b: torch.convolution(x, w, b, [1, 1], [0, 0], [1, 1], True, [0, 0], 1),
        [randn(2, 4, 5, 5), randn(4, 3, 3, 3), randn(3)],
        2 + 4 + 3,
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_removal_is_zeroing(name: str) -> None:
    function, operands, count, live = CASES[name]
    assert check_removal(function, operands, live) == count


@pytest.mark.parametrize("name", CASES)
def test_a_result_depends_on_a_component_only_where_it_carries_it(name: str) -> None:
    function, operands, _, live = CASES[name]
    check_dependence(function, operands, live)
