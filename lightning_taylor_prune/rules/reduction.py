"""Rules for normalisation, reductions, pooling and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_taylor_prune.labels import Field, Labels, axes_of
from lightning_taylor_prune.modules import whole_groups_first
from lightning_taylor_prune.rules.base import Rule, RuleContext, find_labels, operator_name, pointwise, register_rule
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
@register_rule("aten.nanmean", "aten.special_logsumexp", "aten.linalg_norm", "aten.linalg_matrix_norm")
@register_rule("aten.frobenius_norm", "aten.nuclear_norm", "aten.median", "aten.nanmedian", "aten.mode")
def reduce(ctx: RuleContext, *args: Any, **kwargs: Any) -> Any:
    """Axes summed up in some way: those that the shapes before and after tell, and ``dim`` where they do not."""
    operands = find_labels(list(args))
    if len(operands) > 1:  # the two-tensor form of max and min
        return pointwise(ctx, operands, ctx.shape)
    x = operands[0]
    axes, keepdim = _axes_of_operator(ctx, x, args, kwargs)
    fields = [_reduced(ctx, f, axes, keepdim) for f in x.fields]
    if operator_name(ctx.node.target) in _WITH_INDICES and _uses_indices(ctx):
        ctx.lock_all([x], "is compared, and the position of the winner is used")
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
    """Shares of a sum along an axis: prunable, but removal is not the same as zero."""
    if (labels := x.along(dim)) is not None:
        ctx.mark_inexact(labels)
    return x.computed()


@register_rule("aten.cosine_similarity", "aten.pairwise_distance", "aten.dist")
def distance(ctx: RuleContext, a: Labels, b: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Two tensors compared position by position, and the outcome summed up over an axis (the last) or over all."""
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
    """Position by position; where the shape afterwards tells, summed up over all of them."""
    operands = find_labels([*args, kwargs])
    value = pointwise(ctx, operands, np.broadcast_shapes(*(v.shape for v in operands)))
    if ctx.shape == value.shape:
        return value
    for f in value.fields:
        _reduced(ctx, f, range(len(value.shape)), keepdim=True)
    return Labels(ctx.shape, static=value.static)


@register_rule("aten.cumsum", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.sort", "aten.topk", "aten.argsort")
@register_rule("aten.argmax", "aten.argmin", "aten.kthvalue", "aten.diff")
def ordered(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Operators whose result depends on the order or number of positions along an axis: they lock it."""
    axes, _ = _axes_of_operator(ctx, x, (x, *args), kwargs)
    ctx.lock_all(find_labels([*args, kwargs]), "depends on the order or number of positions")
    return _hold(ctx, x, axes, "depends on the order or number of positions")


_TRANSFORMS = "fft ifft rfft irfft hfft ihfft"
_FOURIER = [f"{name}{n}" for name in _TRANSFORMS.split() for n in ("", "2", "n")] + ["fftshift", "ifftshift"]


@register_rule(*(f"aten.fft_{name}" for name in _FOURIER))
def fourier(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Any:
    """Every position along the transformed axes depends on all of them, and on their number."""
    axes, _ = _axes_of_operator(ctx, x, (x, *args), kwargs)
    return _hold(ctx, x, axes, "is Fourier-transformed along this axis")


def _hold(ctx: RuleContext, x: Labels, axes: Sequence[int], why: str) -> Any:
    """Lock what varies along some axes; the rest passes through."""
    for f in x.fields:
        if set(axes_of(f)) & set(axes):
            ctx.lock(f, why)
    fields = [f for f in x.fields if not set(axes_of(f)) & set(axes)]
    if len(ctx.shape) < len(x.shape):
        fields = [_without_axes(f, axes) for f in fields]
    results = [moved(x, shape, fields).computed() for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


_LOCKING = {
    "depends on the order or number of positions": """
        quantile nanquantile histc bincount multinomial nonzero nonzero_numpy unique_consecutive unique_dim _unique2
        isin searchsorted bucketize one_hot
    """,
    "is compared with targets by a loss": """
        cross_entropy_loss nll_loss nll_loss2d nll_loss_nd multi_margin_loss multilabel_margin_loss ctc_loss
        cosine_embedding_loss triplet_margin_loss
    """,
    "is measured against every other position": "cdist _cdist_forward pdist cov corrcoef",
    "is taken as a matrix": """
        linalg_inv inverse linalg_pinv pinverse linalg_solve linalg_qr linalg_svd svd linalg_eigh linalg_det
        linalg_slogdet linalg_cholesky cholesky linalg_matrix_exp matrix_exp linalg_cross cross kron
    """,
    "is taken apart by its diagonals": "diag diag_embed diagflat diagonal trace",
    "is indexed by data": "index_put _index_put_impl _unsafe_index_put put take masked_scatter",
    "is laid out anew": "as_strided rot90 block_diag cartesian_prod",
    "is a signal that is cut into frames": "stft istft",
    "belongs to a recurrent cell, whose gates and states share one width": """
        lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    """,
    "makes a grid of positions": "affine_grid_generator",
}
"""Operators that cannot be followed, by the reason."""


def _locks(why: str) -> Rule:
    def rule(ctx: RuleContext, *args: Any, **kwargs: Any) -> Any:
        operands = find_labels([*args, kwargs])
        ctx.lock_all(operands, why)
        results = [Labels(shape, static=all(v.static for v in operands)) for shape in ctx.shapes]
        return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]

    return rule


for _why, _names in _LOCKING.items():
    register_rule(*(f"aten.{name}" for name in _names.split()))(_locks(_why))


@register_rule("aten.tril", "aten.triu")
def triangle(ctx: RuleContext, x: Labels, diagonal: int = 0) -> Any:
    """What lies on one side of a diagonal: rows and columns keep their places."""
    return _hold(ctx, x, [len(x.shape) - 2, len(x.shape) - 1], "is cut along a diagonal")


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


@register_rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(ctx: RuleContext, x: Labels, grid: Labels, *args: Any, **kwargs: Any) -> Any:
    """Values at the positions that a grid gives; its last axis holds coordinates."""
    batch = next((f for f in grid.fields if axes_of(f) == (0,)), None)
    for f in grid.fields:
        if axes_of(f) != (0,):
            ctx.lock(f, "is a grid of positions")
    ctx.tie(x.along(0), None if batch is None else batch.reshape(-1, *[1] * (len(x.shape) - 1)), "meets another batch")
    return spatial(ctx, x)


@register_rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(ctx: RuleContext, x: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Any:
    """Every value goes back to where the maximum stood, in its own channel."""
    return spatial(ctx, pointwise(ctx, [x, indices], x.shape))


@register_rule("aten.fake_quantize_per_channel_affine")
def quantize_channels(ctx: RuleContext, x: Labels, scale: Labels, zero_point: Labels, axis: int, *args: Any) -> Labels:
    """One scale and zero point per position of an axis."""
    return per_channel(ctx, x, [scale, zero_point], axis % len(x.shape))
