"""Rules for simulated quantisation: training that rounds weights and activations as integers will."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.rules.normalization import per_channel
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Labels


@register_rule("aten.fake_quantize_per_tensor_affine")
def quantize_all(ctx: RuleContext, x: Labels, scale: Labels | float, *args: Any) -> Labels:
    """One scale for all positions; where it is a tensor, it may follow the range of what is there."""
    if isinstance(scale, Labels):
        _range_of_all_but(ctx, x, ())
    return x.computed()


@register_rule(
    "aten.fake_quantize_per_channel_affine",
    "aten.fake_quantize_per_channel_affine_cachemask",
    "aten._fake_quantize_learnable_per_channel_affine",
)
def quantize_channels(
    ctx: RuleContext, x: Labels, scale: Labels, zero_point: Labels, axis: int, *args: Any
) -> Labels | list[Labels]:
    """One scale and zero point per position of an axis."""
    result = per_channel(ctx, x, [scale, zero_point], axis % len(x.shape))
    return [result, result] if len(ctx.shapes) > 1 else result


@register_rule("aten.fused_moving_avg_obs_fake_quant", "aten._fused_moving_avg_obs_fq_helper")
def observe_and_quantize(
    ctx: RuleContext,
    x: Labels,
    observes: Labels,
    quantizes: Labels,
    lowest: Labels,
    highest: Labels,
    scale: Labels,
    zero_point: Labels,
    averaging: float,
    least: int,
    most: int,
    axis: int,
    per_row: bool = False,
    *args: Any,
) -> Labels | list[Labels]:
    """Quantize after a moving average of the range: that of each position of an axis, or one of all positions."""
    axis %= max(len(x.shape), 1)
    if per_row:
        _range_of_all_but(ctx, x, (axis,))
        vectors = [v for v in (lowest, highest, scale, zero_point) if v.shape == (x.shape[axis],)]  # else not yet sized
        result = per_channel(ctx, x, vectors, axis).computed()
    else:
        _range_of_all_but(ctx, x, ())
        result = x.computed()
    return [result, result] if len(ctx.shapes) > 1 else result


def _range_of_all_but(ctx: RuleContext, x: Labels, axes: Sequence[int]) -> None:
    """Removing channels changes a range that they take part in, where they have the largest or smallest value."""
    for f in x.fields:
        if any(size > 1 for axis, size in enumerate(f.shape) if axis not in axes):
            ctx.mark_inexact(f)


@register_rule("aten.resize")
def resize(ctx: RuleContext, x: Labels, size: Sequence[int], **kwargs: Any) -> Labels:
    """Observers give their ranges the size that these have already; other sizes are fixed in the network's code."""
    return x if x.shape == ctx.shape else Labels(ctx.shape, static=x.static)
