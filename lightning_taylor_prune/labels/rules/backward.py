"""Rules for operators of backward passes: a network may compute gradients in its own `forward`.

A backward pass sums over what a weight writes: there the weight is a reader, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_taylor_prune.labels.rules.context import RuleContext, pointwise
from lightning_taylor_prune.labels.rules.convolution import tie_groups
from lightning_taylor_prune.labels.rules.normalization import per_channel
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, on_axis


@register_rule("aten.convolution_backward")
def convolution_backward(
    ctx: RuleContext, grad: Labels, x: Labels, weight: Labels, bias: Any, *args: Any, **kwargs: Any
) -> list[Labels]:
    """Gradients of a convolution's input, weight and bias: each has the channels of what it is the gradient of."""
    _, _, _, transposed, _, groups, _ = args
    rank = len(weight.shape) - 2
    x_axis = len(x.shape) - rank - 1
    read, written = _channels(ctx, x, x_axis), _channels(ctx, grad, x_axis)
    first, second = (None if f is None else f.ravel() for f in (weight.along(0), weight.along(1)))
    if groups == 1:
        rows, columns = (read, written) if transposed else (written, read)
        ctx.tie(rows, first, _CANNOT_SHRINK)
        ctx.tie(columns, second, _CANNOT_SHRINK)
    else:
        ctx.lock(second, "is an input channel within the groups of a grouped convolution")
        tie_groups(ctx, read, first, groups)
        tie_groups(ctx, written, first, groups)
    if weight.static:
        ctx.reader(second if transposed and groups == 1 else first)
    of_weight = [(0, first), *([(1, second)] if groups == 1 else [])]
    static = grad.static and x.static and weight.static
    fields = [[(x_axis, read)], of_weight, [(0, written)]]
    return [_with(shape, found, static) for shape, found in zip(ctx.shapes, fields, strict=True)]


def _channels(ctx: RuleContext, value: Labels, axis: int) -> Field | None:
    """Return the labels of the channels, which a batch and places in space do not have."""
    for f in value.fields:
        if axes_of(f) != (axis,):
            ctx.lock(f, "lies along the batch or a spatial axis in the backward pass of a convolution")
    return next((f.ravel() for f in value.fields if axes_of(f) == (axis,)), None)


def _with(shape: tuple[int, ...], fields: Sequence[tuple[int, Field | None]], static: bool) -> Labels:
    """Return labels with fields along axes; none where there is no such gradient."""
    found = tuple(on_axis(f, axis, len(shape)) for axis, f in fields if f is not None and shape)
    return Labels(shape, found, static=static)


@register_rule("aten._softmax_backward_data", "aten._log_softmax_backward_data")
def softmax_backward(ctx: RuleContext, grad: Labels, output: Labels, dim: int, *args: Any) -> Labels:
    """As softmax: positions along an axis share a sum."""
    result = pointwise(ctx, [grad, output], ctx.shape)
    if (labels := result.along(dim)) is not None:
        ctx.mark_inexact(labels)
    return result


@register_rule("aten.native_layer_norm_backward")
def layer_norm_backward(
    ctx: RuleContext,
    grad: Labels,
    x: Labels,
    normalized_shape: Sequence[int],
    mean: Labels,
    rstd: Labels,
    weight: Labels | None = None,
    bias: Labels | None = None,
    *args: Any,
) -> list[Labels]:
    """Gradients of input, weight and bias, over the last axes."""
    given = [v for v in (grad, x, weight, bias) if v is not None]
    result = pointwise(ctx, given, x.shape)
    last = len(x.shape) - len(normalized_shape)
    for axis in range(last, len(x.shape)):
        if (labels := result.along(axis)) is not None:
            ctx.mark_inexact(labels)
    vectors = [f.reshape(f.shape[last:]) for f in result.fields if max(f.shape[:last], default=1) == 1]
    return [result, *(Labels(shape, tuple(vectors) if shape else (), static=result.static) for shape in ctx.shapes[1:])]


@register_rule("aten.native_batch_norm_backward")
def batch_norm_backward(
    ctx: RuleContext, grad: Labels, x: Labels, weight: Labels | None, *statistics_and_options: Any
) -> list[Labels]:
    """Gradients of input, weight and bias, one number per channel."""
    result = per_channel(ctx, Labels(x.shape, pointwise(ctx, [grad, x], x.shape).fields), [weight])
    channels = result.along(1)
    vectors = () if channels is None or axes_of(channels) != (1,) else (channels.ravel(),)
    return [result, *(Labels(shape, vectors if shape else (), static=result.static) for shape in ctx.shapes[1:])]


_POOLS = (
    "max_pool{n}d_with_indices_backward avg_pool{n}d_backward "
    "_adaptive_avg_pool{n}d_backward adaptive_max_pool{n}d_backward"
)


@register_rule(*(f"aten.{name}" for n in "23" for name in _POOLS.format(n=n).split()))
def pool_backward(ctx: RuleContext, grad: Labels, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Positions in space are mixed within each channel."""
    rank = int(ctx.node.target.__name__.split("pool")[1][0])  # type: ignore[union-attr]
    first = len(x.shape) - rank
    wide = [f for v in (grad, x) for f in v.fields if max(f.shape[first:]) > 1]
    for f in wide:
        ctx.lock(f, "lies along an axis that is pooled or resampled")
    flat = [
        Labels((*v.shape[:first], *[1] * rank), tuple(f for f in v.fields if max(f.shape[first:]) == 1))
        for v in (grad, x)
    ]
    together = pointwise(ctx, flat, flat[0].shape)
    return Labels(ctx.shape, together.fields, static=grad.static and x.static)


@register_rule("aten.mse_loss_backward")
def loss_backward(ctx: RuleContext, grad: Labels, x: Labels, target: Labels, *args: Any) -> Labels:
    """The gradient of a loss per position."""
    return pointwise(ctx, [grad, x, target], ctx.shape)


_CANNOT_SHRINK = "is combined with a tensor that cannot shrink along this axis"
