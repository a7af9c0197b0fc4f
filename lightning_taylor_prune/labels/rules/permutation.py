"""Rules for operators that put axes or positions into another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import moved, unite_pieces
from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Labels, axes_of


@register_rule("aten.permute")
def permute(ctx: RuleContext, x: Labels, dims: Sequence[int]) -> Labels:
    """Axes in another order."""
    return moved(x, ctx.shape, [f.transpose([d % f.ndim for d in dims]) for f in x.fields])


@register_rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(ctx: RuleContext, x: Labels, dim0: int, dim1: int) -> Labels:
    """Two axes swapped."""
    return moved(x, ctx.shape, [f.swapaxes(dim0, dim1) for f in x.fields])


@register_rule("aten.t", "aten.numpy_T", "aten.mT", "aten.mH", "aten.matrix_H", "aten.adjoint")
def matrix_transpose(ctx: RuleContext, x: Labels) -> Labels:
    """The last two axes swapped."""
    return moved(x, ctx.shape, [f.swapaxes(-1, -2) if f.ndim > 1 else f for f in x.fields])


@register_rule("aten.movedim", "aten.moveaxis")
def movedim(ctx: RuleContext, x: Labels, source: Any, destination: Any) -> Labels:
    """Axes moved to new places."""
    return moved(x, ctx.shape, [np.moveaxis(f, source, destination) for f in x.fields])


@register_rule("aten.flip")
def flip(ctx: RuleContext, x: Labels, dims: Sequence[int]) -> Labels:
    """Positions in reverse order."""
    return moved(x, ctx.shape, [np.flip(f, tuple(dims)) for f in x.fields])


@register_rule("aten.fliplr")
def fliplr(ctx: RuleContext, x: Labels) -> Labels:
    """Columns in reverse order."""
    return flip(ctx, x, [1])


@register_rule("aten.flipud")
def flipud(ctx: RuleContext, x: Labels) -> Labels:
    """Rows in reverse order."""
    return flip(ctx, x, [0])


@register_rule("aten.view_as_real")
def view_as_real(ctx: RuleContext, x: Labels) -> Labels:
    """Real and imaginary parts along a new last axis."""
    return moved(x, ctx.shape, [f[..., None] for f in x.fields])


@register_rule("aten.view_as_complex")
def view_as_complex(ctx: RuleContext, x: Labels) -> Labels:
    """The last axis holds real and imaginary parts: the two parts of a number are removed together."""
    last = len(x.shape) - 1
    fields = []
    for f in x.fields:
        if axes_of(f) == (last,):
            ctx.lock(f, "is the real or imaginary part of a complex number")
        fields.append(ctx.drop(f, last)[..., 0])
    return moved(x, ctx.shape, fields)


@register_rule("aten.roll")
def roll(ctx: RuleContext, x: Labels, shifts: Any, dims: Any = ()) -> Labels:
    """Positions shifted by a number in the network's code: none of a tracked axis can be removed."""
    axes = [dims] if isinstance(dims, int) else list(dims) or range(len(x.shape))
    for axis in axes:
        ctx.lock(x.along(axis), "is rolled along this axis by a fixed number of positions")
    return x


@register_rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(ctx: RuleContext, x: Labels, groups: int) -> Labels:
    """Channels interleaved between groups: the same position of every group is removed together."""
    labels = x.along(1)
    if labels is None:
        return x
    if len(axes_of(labels)) > 1:
        ctx.lock(labels, "lies along several axes when it is shuffled")
        return x
    unite_pieces(ctx, labels, 1, groups)
    shuffled = labels.reshape(groups, -1).T.reshape(labels.shape)
    return moved(x, ctx.shape, [shuffled if f is labels else f for f in x.fields])
