"""Rules for convolutions, plain, grouped and transposed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.rules.contraction import add_bias, contract, labels_along
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, first_along, on_axis


@register_rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def conv(
    ctx: RuleContext,
    x: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Labels:
    """Convolution, ``weight`` of shape ``[out, in / groups, *kernel]``."""
    return convolve(ctx, x, weight, bias, groups)


def convolve(ctx: RuleContext, x: Labels, weight: Labels, bias: Labels | None, groups: int) -> Labels:
    """Tie what a convolution reads and writes, wherever in space it reads."""
    x, weight, factor = _off_space(ctx, x, weight, slides_over=ctx.shape)
    lead = "n" if len(x.shape) > 1 else ""
    if groups == 1:
        return _to_space(ctx, contract(ctx, [x, weight], [lead + "i", "oi"], lead + "o", factor), bias)
    out = _whole_groups(ctx, x, weight, groups, factor)
    fields = [] if out is None else [on_axis(out.ravel(), len(x.shape) - 1, len(x.shape))]
    return _to_space(ctx, Labels((*x.shape[:-1], weight.shape[0]), (*_beside_channels(x), *fields)), bias)


@register_rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def conv_transpose(
    ctx: RuleContext,
    x: Labels,
    weight: Labels,
    bias: Labels | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Labels:
    """Transposed convolution, ``weight`` of shape ``[in, out / groups, *kernel]``."""
    x, weight, factor = _off_space(ctx, x, weight, slides_over=x.shape)
    lead = "n" if len(x.shape) > 1 else ""
    if groups == 1:
        return _to_space(ctx, contract(ctx, [x, weight], [lead + "i", "io"], lead + "o", factor), bias)
    rows = _whole_groups(ctx, x, weight, groups, factor)
    if rows is None:
        return _to_space(ctx, Labels(ctx.shape[: len(x.shape)], _beside_channels(x)), bias)
    heads = rows.reshape(groups, -1)[:, :1]
    out = np.broadcast_to(heads, (groups, weight.shape[1])).ravel()
    rank = len(x.shape)
    fields = (*_beside_channels(x), on_axis(out, rank - 1, rank))
    return _to_space(ctx, Labels((*x.shape[:-1], len(out)), fields), bias)


@register_rule("aten.convolution", "aten._convolution")
def convolution(
    ctx: RuleContext,
    x: Labels,
    weight: Labels,
    bias: Labels | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *args: Any,
) -> Labels:
    """Either kind of convolution."""
    rule = conv_transpose if transposed else conv
    return rule(ctx, x, weight, bias, groups=groups)


def _off_space(ctx: RuleContext, x: Labels, weight: Labels, slides_over: tuple[int, ...]) -> tuple[Labels, Labels, int]:
    """Drop the spatial axes of input and weight; also return how often each pair of channels is multiplied there."""
    kernel = weight.shape[2:]
    factor = math.prod(kernel) * math.prod(slides_over[len(slides_over) - len(kernel) :])
    return _flat(ctx, x, len(x.shape) - len(kernel)), _flat(ctx, weight, 2), factor


def _whole_groups(ctx: RuleContext, x: Labels, weight: Labels, groups: int, factor: int) -> Field | None:
    """Tie the channels that a grouped convolution reads to the first axis of its weight, which is returned."""
    filters = weight.along(0)
    ctx.lock(weight.along(1), "is an input channel within the groups of a grouped convolution")
    if not weight.static and weight.shape[1] > 1:  # a group for each example: its channels are those of all others
        for labels in (x.along(-1), filters):
            ctx.lock(labels, "is convolved with weights that are computed for every example")
    tie_groups(ctx, x.along(-1), filters, groups)
    ctx.writer(filters)
    ctx.count_macs(factor * math.prod(x.shape[:-1]) * weight.shape[1], [(weight.shape[0], labels_along(filters, 0))])
    return filters


def _flat(ctx: RuleContext, value: Labels, keep: int) -> Labels:
    """Drop spatial (or kernel) axes, and lock the fields that vary along them."""
    for f in value.fields:
        if max(f.shape[keep:], default=1) > 1:
            ctx.lock(f, "lies along a spatial axis of a convolution")
    fields = tuple(f.reshape(f.shape[:keep]) for f in value.fields if max(f.shape[keep:], default=1) == 1)
    return Labels(value.shape[:keep], fields, value.direct, value.static)


def _beside_channels(x: Labels) -> tuple[Field, ...]:
    """Return the fields that vary along the batch only, which the result has too."""
    return tuple(f for f in x.fields if f.shape[-1] == 1)


def tie_groups(ctx: RuleContext, channels: Field | None, filters: Field | None, groups: int) -> None:
    """Unite all channels that one group of a grouped convolution reads or writes: only whole groups are removed."""
    if channels is None or filters is None:
        ctx.tie(channels, filters, "is combined with a tensor that cannot shrink along this axis")
        return
    for lost in axes_of(channels)[:-1]:
        channels = ctx.space.unite_along(channels, lost)
    read, written = channels.reshape(groups, -1), filters.reshape(groups, -1)
    ctx.space.unite(first_along(read, 1), read)
    ctx.space.unite(first_along(written, 1), written)
    ctx.space.unite(read[:, 0], written[:, 0])


def _to_space(ctx: RuleContext, flat: Labels, bias: Labels | None) -> Labels:
    """Give the result its spatial axes back and add the bias, which lies along the channels."""
    flat = add_bias(ctx, flat, bias)
    shape = ctx.shape
    tail = (1,) * (len(shape) - len(flat.shape))
    return Labels(shape, tuple(f.reshape(f.shape + tail) for f in flat.fields), static=flat.static)
