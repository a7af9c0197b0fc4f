"""Rules for padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import moved, range_of, resized
from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, on_axis


def _constant_pad(ctx: RuleContext, x: Labels, pad_: Sequence[int], fixed: bool) -> Labels:
    fields = list(x.fields)
    for i in range(len(pad_) // 2):
        axis, left, right = len(x.shape) - 1 - i, pad_[2 * i], pad_[2 * i + 1]
        labels = next((f for f in fields if f.shape[axis] > 1), None)
        if labels is None or (left == 0 and right == 0):
            continue
        if left < 0 or right < 0:
            ctx.lock(labels, "is padded or cropped by a fixed number of positions")
        padded = _pad_axis(ctx, labels, axis, max(left, 0), max(right, 0), fixed)
        stop = padded.shape[axis] + min(right, 0)
        fields = [range_of(padded, axis, max(-left, 0), stop) if f is labels else f for f in fields]
    return Labels(ctx.shape, tuple(fields), static=x.static)


def _pad_axis(ctx: RuleContext, labels: Field, axis: int, left: int, right: int, fixed: bool) -> Field:
    first = 2 * (labels.ndim - 1 - axis)  # where the widths of this axis stand in the argument
    sides = []
    for place, count, side in ((first, left, "left"), (first + 1, right, "right")):
        new = ctx.free(count)
        if fixed and count:
            ctx.lock(new, "is combined with padding of a fixed width")
        wide = np.broadcast_to(on_axis(new, axis, labels.ndim), resized(labels.shape, axis, count))
        if count:
            ctx.expect(lambda x, pad_, *a, place=place, **k: pad_[place], wide, f"padding on the {side}", axis)
        sides.append(wide)
    return np.concatenate([sides[0], labels, sides[1]], axis=axis)


def constant_pad_of_fixed_width(ctx: RuleContext, x: Labels, pad_: Sequence[int], value: Any = 0) -> Labels:
    """Constant padding whose width is fixed in the network's code."""
    return _constant_pad(ctx, x, pad_, fixed=True)


@register_rule("aten.constant_pad_nd", fallbacks=[constant_pad_of_fixed_width])
def constant_pad(ctx: RuleContext, x: Labels, pad_: Sequence[int], value: Any = 0) -> Labels:
    """Constants around a tensor; on a tracked axis they get labels of their own, which the code counts."""
    return _constant_pad(ctx, x, pad_, fixed=False)


def pad_of_fixed_width(
    ctx: RuleContext, x: Labels, pad_: Sequence[int], mode: str = "constant", value: Any = None
) -> Labels:
    """Padding of any mode; constant padding has a width that is fixed in the network's code."""
    return constant_pad_of_fixed_width(ctx, x, pad_) if mode == "constant" else pad(ctx, x, pad_, mode)


@register_rule("aten.pad", fallbacks=[pad_of_fixed_width])
def pad(ctx: RuleContext, x: Labels, pad_: Sequence[int], mode: str = "constant", value: Any = None) -> Labels:
    """Padding of any mode; modes that copy positions lock the labels of the padded axis."""
    if mode == "constant":
        return constant_pad(ctx, x, pad_)
    for i in range(len(pad_) // 2):
        if pad_[2 * i] or pad_[2 * i + 1]:
            ctx.lock(x.along(len(x.shape) - 1 - i), f"is padded with mode {mode!r}")
    return moved(x, ctx.shape, [f for f in x.fields if all(a < len(x.shape) - len(pad_) // 2 for a in axes_of(f))])
