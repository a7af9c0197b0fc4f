"""Pooling, resampling, patches: channels are not changed, spatial axes are locked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import TOKENS, Labelled, channels_of, check_movement, check_removal
from tests.labels.rules.strategies import Case, Draw, collect

CASES: dict[str, Callable[[Draw], Case]] = {}
case = collect(CASES)


@case
def fold_patches(draw: Draw) -> Case:
    kernel, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = (channels * kernel**2, 6)
    size = (2 * kernel, 3 * kernel)
    return lambda x: F.fold(x, size, kernel, stride=kernel), [(2, *shape) if draw(st.booleans()) else shape]


@case
def pixel_shuffle(draw: Draw) -> Case:
    factor, channels, size = (draw(st.integers(1, 3)) for _ in range(3))
    return lambda x: F.pixel_shuffle(x, factor), [(2, channels * factor**2, size, size)]


@case
def pixel_unshuffle(draw: Draw) -> Case:
    factor, channels, size = (draw(st.integers(1, 3)) for _ in range(3))
    return lambda x: F.pixel_unshuffle(x, factor), [(2, channels, size * factor, size * factor)]


@case
def unfold_patches(draw: Draw) -> Case:
    kernel = draw(st.integers(1, 3))
    return lambda x: F.unfold(x, kernel, stride=draw(st.just(2))), [(2, draw(st.integers(1, 4)), 5, 4)]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15)
@given(data=st.data())
def test_labels_go_where_the_elements_go(name: str, data: st.DataObject) -> None:
    function, operands = CASES[name](data.draw)
    check_movement(function, operands)


IMAGES, VOLUMES = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4, 4)


LINES = torch.randn(2, 6, 4)
GRID = torch.rand(1, 3, 3, 2) - 0.5


# name -> (function, operands, components that can be removed)
EXACT: dict[str, tuple[Callable[..., Any], list[Tensor], int]] = {
    "global_pool": (lambda x: F.adaptive_avg_pool2d(x[:, :, None, None], 1), [LINES[..., 0]], 2 + 6),
    "unpool": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), [IMAGES], 2 + 6),
    "grid_sample": (lambda x: F.grid_sample(x, GRID.to(x).expand(len(x), -1, -1, -1)), [IMAGES], 2 + 6),
}


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
@pytest.mark.parametrize("name", EXACT)
def test_removal_is_zeroing_beside_the_reduced_axis(name: str) -> None:
    function, operands, count = EXACT[name]
    assert check_removal(function, operands) >= count


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


LOCKED: dict[str, Callable[[Tensor], Any]] = {
    "pool_over_it": lambda x: F.max_pool1d(x.transpose(1, 2), 5),
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
