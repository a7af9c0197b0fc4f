"""Rules for operators that mix positions in space: pooling, resampling, patches, pixel shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import moved, unite_blocks
from lightning_taylor_prune.labels.rules.context import Results, RuleContext, pointwise
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, on_axis

_POOLS = "max_pool{n}d avg_pool{n}d adaptive_max_pool{n}d adaptive_avg_pool{n}d max_pool{n}d_with_indices"

_RESAMPLERS = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
"""


@register_rule(*(f"aten.{name}" for n in "123" for name in _POOLS.format(n=n).split()))
@register_rule(*(f"aten.{name}" for name in _RESAMPLERS.split()))
def spatial(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Results:
    """Positions in space are mixed within each channel."""
    name = ctx.node.target.__name__  # type: ignore[union-attr]
    rank = next((int(d) for d in reversed(name) if d in "123"), len(x.shape) - 2)
    first = len(x.shape) - rank
    for f in x.fields:
        if max(f.shape[first:]) > 1:
            ctx.lock(f, "lies along an axis that is pooled or resampled")
    fields = [f for f in x.fields if max(f.shape[first:]) == 1]
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(ctx: RuleContext, x: Labels, grid: Labels, *args: Any, **kwargs: Any) -> Results:
    """Values at the positions that a grid gives; its last axis holds coordinates."""
    batch = next((f for f in grid.fields if axes_of(f) == (0,)), None)
    for f in grid.fields:
        if axes_of(f) != (0,):
            ctx.lock(f, "is a coordinate of a sampling grid")
    ctx.tie(
        x.along(0),
        None if batch is None else batch.reshape(-1, *[1] * (len(x.shape) - 1)),
        "is combined with a batch that cannot shrink",
    )
    return spatial(ctx, x)


@register_rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(ctx: RuleContext, x: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Results:
    """Every value is put at the position of its maximum, within the same channel."""
    return spatial(ctx, pointwise(ctx, [x, indices], x.shape))


@register_rule("aten.pixel_shuffle")
def pixel_shuffle(ctx: RuleContext, x: Labels, factor: int) -> Labels:
    """Blocks of ``factor**2`` channels become pixels: only whole blocks are removed."""
    axis, plain = _without_space(ctx, x, "pixel shuffle")
    return moved(x, ctx.shape, [keep_block_heads(ctx, f, axis, factor * factor) for f in plain])


def keep_block_heads(ctx: RuleContext, labels: Field, axis: int, block: int) -> Field:
    """Unite every ``block`` positions in a row, and return the first of each block."""
    if labels.shape[axis] == 1:
        return labels
    unite_blocks(ctx, labels, axis, block)
    return labels[(slice(None),) * axis + (slice(0, None, block),)]


@register_rule("aten.pixel_unshuffle")
def pixel_unshuffle(ctx: RuleContext, x: Labels, factor: int) -> Labels:
    """Pixels become channels: the result has ``factor**2`` adjacent channels for every channel."""
    axis, plain = _without_space(ctx, x, "pixel unshuffle")
    return moved(x, ctx.shape, [np.repeat(f, factor * factor, axis) if f.shape[axis] > 1 else f for f in plain])


def _without_space(ctx: RuleContext, x: Labels, name: str) -> tuple[int, list[Field]]:
    """Return the channel axis of an image and the fields that do not vary in space; the others lock."""
    axis = len(x.shape) - 3
    for f in x.fields:
        if max(f.shape[axis + 1 :]) > 1:
            ctx.lock(f, f"lies along a spatial axis of a {name}")
    return axis, [f for f in x.fields if max(f.shape[axis + 1 :]) == 1]


@register_rule("aten.im2col")
def unfold_patches(ctx: RuleContext, x: Labels, kernel_size: Sequence[int], *args: Any, **kwargs: Any) -> Labels:
    """Patches become channels: every channel stands ``kernel height x width`` times in a row."""
    labels = x.along(1)
    ctx.lock_all([Labels(x.shape, tuple(f for f in x.fields if f is not labels))], "is unfolded into patches")
    if labels is None or len(axes_of(labels)) > 1:
        ctx.lock(labels, "lies along several axes when it is unfolded into patches")
        return Labels(ctx.shape)
    repeated = np.repeat(labels.ravel(), int(np.prod(kernel_size)))
    return moved(x, ctx.shape, [on_axis(repeated, 1, 3)])


@register_rule("aten.col2im")
def fold_patches(ctx: RuleContext, x: Labels, output_size: Any, kernel_size: Sequence[int], *args: Any) -> Labels:
    """Patches become an image: each block of ``kernel height x width`` channels is one channel, removed as a whole."""
    axis = len(x.shape) - 2
    ctx.lock(x.along(axis + 1), "is a position of patches that are folded into an image")
    fields = [f[..., None] for f in x.fields if f.shape[axis + 1] == 1]
    return moved(x, ctx.shape, [keep_block_heads(ctx, f, axis, int(np.prod(kernel_size))) for f in fields]).computed()
