"""Rules for normalisation and for other operators with one number per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_taylor_prune.labels.rules.context import RuleContext, find_labels, pointwise
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Labels, axes_of
from lightning_taylor_prune.modules.updates import whole_groups_first


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
    weight: Labels | None,
    bias: Labels | None,
    mean: Labels | None,
    var: Labels | None,
    training: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Labels:
    """Statistics per channel: channels are exact. The axes that are averaged can be pruned too, but not exactly."""
    averaged = {axis for axis in range(len(x.shape)) if axis != 1} if training else set()
    if operator_name(ctx.node.target) == "aten.instance_norm":
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
    weight: Labels | None = None,
    bias: Labels | None = None,
    *args: Any,
) -> Labels:
    """Statistics over the last axes: these can be pruned, but then the kept positions are scaled differently."""
    result = pointwise(ctx, find_labels([x, weight, bias]), x.shape)
    for axis in range(len(x.shape) - len(normalized_shape), len(x.shape)):
        if (labels := result.along(axis)) is not None:
            ctx.mark_inexact(labels)
    return result


def group_norm_otherwise(
    ctx: RuleContext, x: Labels, groups: int, weight: Labels | None = None, bias: Labels | None = None, *args: Any
) -> Labels:
    """The choice that :func:`group_norm` does not try first."""
    return _group_norm(ctx, x, groups, [weight, bias], preferred=False)


@register_rule("aten.group_norm", fallbacks=[group_norm_otherwise])
def group_norm(
    ctx: RuleContext, x: Labels, groups: int, weight: Labels | None = None, bias: Labels | None = None, *args: Any
) -> Labels:
    """Statistics per group of channels: either all groups remain equally large, or whole groups are removed.

    The choice with the smaller units is tried first; removing whole groups is exact.
    """
    return _group_norm(ctx, x, groups, [weight, bias], preferred=True)


def _group_norm(ctx: RuleContext, x: Labels, groups: int, vectors: Sequence[Labels | None], preferred: bool) -> Labels:
    result = per_channel(ctx, x, vectors)
    labels = result.along(1)
    if labels is None or len(axes_of(labels)) > 1:
        ctx.lock(labels, "lies along several axes in a group normalisation")
        return result
    table = labels.reshape(groups, -1)
    if whole_groups_first(groups, table.shape[1]) == preferred:
        ctx.space.unite(table[:, :1], table)
        ctx.expect(lambda x, groups, *a, **k: groups, table[:, 0], "number of groups")
    else:
        ctx.space.unite(table[:1], table)
        ctx.mark_inexact(labels)
        ctx.expect(lambda x, groups, *a, **k: groups, ctx.space.fresh(groups), "number of groups")
    return result


@register_rule("aten._weight_norm")
def weight_norm(ctx: RuleContext, v: Labels, g: Labels, dim: int = 0) -> Labels:
    """``g * v / norm(v)``: along ``dim`` there is a norm for every position; cutting other axes changes the norms."""
    result = pointwise(ctx, [g, v], v.shape)
    for axis in range(len(v.shape)):
        if (dim == -1 or axis != dim) and (labels := result.along(axis)) is not None:
            ctx.mark_inexact(labels)
    return result


@register_rule("aten.renorm")
def renorm(ctx: RuleContext, x: Labels, p: float, dim: int, limit: float) -> Labels:
    """Every position along ``dim`` is scaled to a largest norm, which is taken over all other axes."""
    for f in x.fields:
        if set(axes_of(f)) - {dim % len(x.shape)}:
            ctx.mark_inexact(f)
    return x.computed()


@register_rule("aten.embedding_renorm")
def embedding_renorm(ctx: RuleContext, weight: Labels, indices: Labels, limit: float, p: float) -> Labels:
    """The same for the rows of a table that are looked up."""
    ctx.lock(weight.along(0), "is indexed by data")
    return renorm(ctx, weight, p, 0, limit)
