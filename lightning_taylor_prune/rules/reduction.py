"""Rules for normalisation, reductions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_taylor_prune.labels import Field, Labels, axes_of
from lightning_taylor_prune.modules import whole_groups_first
from lightning_taylor_prune.rules.base import RuleContext, find_labels, operator_name, pointwise, register_rule
from lightning_taylor_prune.rules.movement import moved

# --- normalisation ------------------------------------------------------------------------------------------------


def per_channel(ctx: RuleContext, x: Labels, vectors: Sequence[Labels | None], axis: int = 1) -> Labels:
    """Unite vectors (affine parameters, running statistics) with the channel axis of ``x``."""
    given = [v for v in vectors if v is not None]
    rank = len(x.shape)
    spread = [
        Labels(
            tuple(v.shape[0] if i == axis else 1 for i in range(rank)),
            tuple(f.reshape([-1 if i == axis else 1 for i in range(rank)]) for f in v.fields),
        )
        for v in given
    ]
    return replace(pointwise(ctx, [x, *spread], x.shape), static=all(v.static for v in (x, *given)))


@register_rule("aten.batch_norm", "aten.instance_norm")
def batch_norm(
    ctx: RuleContext,
    x: Labels,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Labels:
    """Statistics per channel: every channel stands for itself; what they are taken over is prunable, but inexactly."""
    averaged = {axis for axis in range(len(x.shape)) if axis != 1} if training else set()
    if ctx.node.target.__name__.startswith("instance_norm"):  # type: ignore[union-attr]
        averaged.discard(0)
    for f in x.fields:
        if averaged & set(axes_of(f)):
            ctx.mark_inexact(f)
    return per_channel(ctx, x, [weight, bias, mean, var])


@register_rule("aten.prelu")
def prelu(ctx: RuleContext, x: Labels, weight: Labels) -> Labels:
    """One slope per channel, or one for all."""
    return per_channel(ctx, x, [weight], axis=min(1, len(x.shape) - 1))


@register_rule("aten.layer_norm", "aten.rms_norm")
def layer_norm(
    ctx: RuleContext,
    x: Labels,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    *args: Any,
) -> Labels:
    """Statistics over the last axes: prunable, but removal changes what the others are divided by."""
    result = pointwise(ctx, find_labels([x, weight, bias]), x.shape)
    for axis in range(len(x.shape) - len(normalized_shape), len(x.shape)):
        if (labels := result.along(axis)) is not None:
            ctx.mark_inexact(labels)
    return result


@register_rule("aten.group_norm", alternatives=1)
def group_norm(ctx: RuleContext, x: Labels, groups: int, weight: Any = None, bias: Any = None, *args: Any) -> Labels:
    """Statistics per group of channels: all groups stay equally large, or whole groups leave.

    Whichever gives the finer units is tried first; removing whole groups is exact.
    """
    result = per_channel(ctx, x, [weight, bias])
    labels = result.along(1)
    if labels is None or len(axes_of(labels)) > 1:
        ctx.lock(labels, "varies along other axes in a group normalisation")
        return result
    table = labels.reshape(groups, -1)
    if whole_groups_first(groups, table.shape[1]) != bool(ctx.attempt):
        ctx.space.unite(table[:, :1], table)
        ctx.expect(lambda x, groups, *a, **k: groups, table[:, 0], "number of groups")
    else:
        ctx.space.unite(table[:1], table)
        ctx.mark_inexact(labels)
        ctx.expect(lambda x, groups, *a, **k: groups, ctx.space.fresh(groups), "number of groups")
    return result


@register_rule("aten._weight_norm")
def weight_norm(ctx: RuleContext, v: Labels, g: Labels, dim: int = 0) -> Labels:
    """``g * v / norm(v)``: a position that is zero in ``v`` adds nothing to the norm."""
    return pointwise(ctx, [v, g], v.shape)


# --- reductions ---------------------------------------------------------------------------------------------------


@register_rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.var", "aten.std", "aten.logsumexp")
@register_rule("aten.norm", "aten.linalg_vector_norm", "aten.max", "aten.min", "aten.prod", "aten.nansum")
@register_rule("aten.var_mean", "aten.std_mean", "aten.aminmax", "aten.all", "aten.any", "aten.count_nonzero")
def reduce(ctx: RuleContext, *args: Any, **kwargs: Any) -> Any:
    """Axes summed up in some way: those that the shapes before and after tell, and ``dim`` where they do not."""
    operands = find_labels(list(args))
    if len(operands) > 1:  # the two-tensor form of max and min
        return pointwise(ctx, operands, ctx.shape)
    x = operands[0]
    axes, keepdim = _reduced_axes(ctx, x, args, kwargs)
    fields = []
    for f in x.fields:
        for axis in axes:
            if f.shape[axis] > 1:
                ctx.mark_inexact(f)
                f = ctx.drop(f, axis)
        fields.append(f if keepdim else f.reshape([n for i, n in enumerate(f.shape) if i not in axes]))
    if operator_name(ctx.node.target) in ("aten.max", "aten.min") and _uses_indices(ctx):
        ctx.lock_all([x], "is compared, and the position of the winner is used")
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


def _reduced_axes(ctx: RuleContext, x: Labels, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[int], bool]:
    """Read the reduced axes and ``keepdim`` by the names that the operator's schema gives its arguments."""
    names = [a.name for a in ctx.node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    dims = given.get("dim")
    rank = len(x.shape)
    if dims is None or dims == []:
        dims = range(rank)
    axes = [d % rank for d in ([dims] if isinstance(dims, int) else dims)]
    return axes, bool(given.get("keepdim", False))


def _uses_indices(ctx: RuleContext) -> bool:
    return any(user.args[1] == 1 and user.users for user in ctx.node.users if len(user.args) > 1)


@register_rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.logcumsumexp")
def softmax(ctx: RuleContext, x: Labels, dim: int, *args: Any, **kwargs: Any) -> Labels:
    """Shares of a sum along an axis: prunable, but removal is not the same as zero."""
    if (labels := x.along(dim)) is not None:
        ctx.mark_inexact(labels)
    return x.computed()


@register_rule("aten.cumsum", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.sort", "aten.topk", "aten.argsort")
@register_rule("aten.argmax", "aten.argmin")
def ordered(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Operators whose result depends on the order or number of positions: they lock what they see."""
    ctx.lock_all([x], "depends on the order or number of positions")
    results = [Labels(shape, static=x.static) for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule("aten.glu")
def glu(ctx: RuleContext, x: Labels, dim: int = -1) -> Labels:
    """One half gates the other: position i of both leaves together."""
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    fields: list[Field] = []
    for f in x.fields:
        if f.shape[dim] > 1:
            first, second = np.split(f, [half], axis=dim)
            ctx.space.unite(first, second)
            f = first
        fields.append(f)
    return moved(x, ctx.shape, fields).computed()


# --- pooling and resampling ---------------------------------------------------------------------------------------

_POOLS = "max_pool{n}d avg_pool{n}d adaptive_max_pool{n}d adaptive_avg_pool{n}d max_pool{n}d_with_indices"
_RESAMPLERS = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa fractional_max_pool2d reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
"""


@register_rule(*(f"aten.{name}" for n in "123" for name in _POOLS.format(n=n).split()))
@register_rule(*(f"aten.{name}" for name in _RESAMPLERS.split()))
@register_rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def spatial(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Positions in space are mixed within each channel."""
    name = ctx.node.target.__name__  # type: ignore[union-attr]
    rank = next((int(d) for d in reversed(name) if d in "123"), len(x.shape) - 2)
    first = len(x.shape) - rank
    for f in x.fields:
        if max(f.shape[first:]) > 1:
            ctx.lock(f, "varies over the positions that are pooled or resampled")
    fields = [f for f in x.fields if max(f.shape[first:]) == 1]
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]
