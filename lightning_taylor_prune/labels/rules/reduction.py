"""Rules for operators that sum up, compare or transform along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import moved
from lightning_taylor_prune.labels.rules.context import Results, RuleContext, find_labels, pointwise
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of


@register_rule("aten.mean", "aten.sum", "aten.amax", "aten.amin", "aten.var", "aten.std", "aten.logsumexp")
@register_rule("aten.norm", "aten.linalg_vector_norm", "aten.max", "aten.min", "aten.prod", "aten.nansum")
@register_rule("aten.var_mean", "aten.std_mean", "aten.aminmax", "aten.all", "aten.any", "aten.count_nonzero")
@register_rule("aten.nanmean", "aten.special_logsumexp", "aten.linalg_norm", "aten.linalg_matrix_norm")
@register_rule("aten.frobenius_norm", "aten.nuclear_norm", "aten.median", "aten.nanmedian", "aten.mode")
def reduce(ctx: RuleContext, *args: Any, **kwargs: Any) -> Results:
    """Axes reduced in some way: those of ``dim``, or all."""
    operands = find_labels(list(args))
    if len(operands) > 1:  # the two-tensor form of max and min
        return pointwise(ctx, operands, ctx.shape)
    x = operands[0]
    axes, keepdim = _axes_of_operator(ctx, x, args, kwargs)
    fields = [_reduced(ctx, f, axes, keepdim) for f in x.fields]
    if operator_name(ctx.node.target) in _WITH_INDICES and _uses_indices(ctx):
        ctx.lock_all([x], "is reduced to a maximum, minimum or median whose index is used")
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


_WITH_INDICES = ("aten.max", "aten.min", "aten.median", "aten.nanmedian", "aten.mode")


def _reduced(ctx: RuleContext, labels: Field, axes: Sequence[int], keepdim: bool) -> Field:
    for axis in axes:
        if labels.shape[axis] > 1:
            ctx.mark_inexact(labels)
            labels = ctx.drop(labels, axis)
    return labels if keepdim else _without_axes(labels, axes)


def _without_axes(labels: Field, axes: Sequence[int]) -> Field:
    return labels.reshape([n for i, n in enumerate(labels.shape) if i not in axes])


def _axes_of_operator(
    ctx: RuleContext, x: Labels, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[int], bool]:
    """Read the axes and ``keepdim`` by the names that the operator's schema gives its arguments."""
    arguments = ctx.node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given = {**defaults, **dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}
    dims = given.get("dim")
    rank = len(x.shape)
    if dims is None or dims == []:
        dims = range(rank)
    axes = [d % max(rank, 1) for d in ([dims] if isinstance(dims, int) else dims)]
    return axes, bool(given.get("keepdim", False))


def _uses_indices(ctx: RuleContext) -> bool:
    return any(user.args[1] == 1 and user.users for user in ctx.node.users if len(user.args) > 1)


@register_rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten.logcumsumexp")
def softmax(ctx: RuleContext, x: Labels, dim: int, *args: Any, **kwargs: Any) -> Labels:
    """Shares of a sum along an axis: it can be pruned, but removing a position is not the same as zeroing it."""
    if (labels := x.along(dim)) is not None:
        ctx.mark_inexact(labels)
    return x.computed()


@register_rule("aten.cosine_similarity", "aten.pairwise_distance", "aten.dist")
def distance(ctx: RuleContext, a: Labels, b: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Two tensors compared position by position, and the results summed over one axis or over all."""
    both = pointwise(ctx, [a, b], np.broadcast_shapes(a.shape, b.shape))
    axes, keepdim = _axes_of_operator(ctx, both, (a, b, *args), kwargs)
    if operator_name(ctx.node.target) == "aten.pairwise_distance":
        axes = [len(both.shape) - 1]
    return moved(both, ctx.shape, [_reduced(ctx, f, axes, keepdim) for f in both.fields])


_LOSSES = """
    mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits
    soft_margin_loss poisson_nll_loss hinge_embedding_loss margin_ranking_loss
"""


@register_rule(*(f"aten.{name}" for name in _LOSSES.split()))
def loss(ctx: RuleContext, *args: Any, **kwargs: Any) -> Labels:
    """A loss per position, summed over all positions unless the result has the shape of the operands."""
    operands = find_labels([*args, kwargs])
    value = pointwise(ctx, operands, np.broadcast_shapes(*(v.shape for v in operands)))
    if ctx.shape == value.shape:
        return value
    for f in value.fields:
        _reduced(ctx, f, range(len(value.shape)), keepdim=True)
    return Labels(ctx.shape, static=value.static)


@register_rule("aten.equal", "aten.allclose")
def compared_as_a_whole(ctx: RuleContext, a: Labels, b: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Whether two tensors are equal at all positions."""
    pointwise(ctx, [a, b], np.broadcast_shapes(a.shape, b.shape))
    return Labels(ctx.shape)


@register_rule("aten.cumsum", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.sort", "aten.topk", "aten.argsort")
@register_rule("aten.argmax", "aten.argmin", "aten.kthvalue", "aten.diff")
def ordered(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Results:
    """Operators whose result depends on the order or number of positions along an axis: they lock it."""
    axes, _ = _axes_of_operator(ctx, x, (x, *args), kwargs)
    ctx.lock_all(
        find_labels([*args, kwargs]), "is used by an operator that depends on the order or number of positions"
    )
    return _hold(ctx, x, axes, "is used by an operator that depends on the order or number of positions")


_TRANSFORMS = "fft ifft rfft irfft hfft ihfft"

_FOURIER = [f"{name}{n}" for name in _TRANSFORMS.split() for n in ("", "2", "n")] + ["fftshift", "ifftshift"]


@register_rule(*(f"aten.fft_{name}" for name in _FOURIER))
def fourier(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Results:
    """Every position along the transformed axes depends on all of them, and on their number."""
    axes, _ = _axes_of_operator(ctx, x, (x, *args), kwargs)
    return _hold(ctx, x, axes, "is Fourier-transformed along this axis")


def _hold(ctx: RuleContext, x: Labels, axes: Sequence[int], why: str) -> Results:
    """Lock the labels that vary along some axes; the result has all others."""
    for f in x.fields:
        if set(axes_of(f)) & set(axes):
            ctx.lock(f, why)
    fields = [f for f in x.fields if not set(axes_of(f)) & set(axes)]
    if len(ctx.shape) < len(x.shape):
        fields = [_without_axes(f, axes) for f in fields]
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule("aten.tril", "aten.triu")
def triangle(ctx: RuleContext, x: Labels, diagonal: int = 0) -> Results:
    """One side of a diagonal: rows and columns must keep their positions."""
    return _hold(ctx, x, [len(x.shape) - 2, len(x.shape) - 1], "is masked along a diagonal")
