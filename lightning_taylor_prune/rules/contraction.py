"""Rules for operators that multiply and sum: convolution, linear, matrix products, attention, embedding.

All of them are one thing: axes have letters, letters that the result lacks are summed over. A weight whose axis is
summed over *reads* the channels there; a weight whose axis stays *writes* them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from lightning_taylor_prune.labels import Field, Labels, axes_of, first_along, on_axis
from lightning_taylor_prune.rules.base import (
    RuleContext,
    align,
    combine,
    find_labels,
    operator_name,
    pointwise,
    register_rule,
)


def contract(
    ctx: RuleContext, operands: Sequence[Labels], letters: Sequence[str], result: str, factor: int = 1
) -> Labels:
    """Apply an einsum to labels.

    Args:
        ctx: The operator at hand.
        operands: Labels of its tensors.
        letters: One string per operand, a letter per axis.
        result: Letters of the result; the others are summed over.
        factor: How often the product is taken (positions times kernel size, in a convolution), for the cost.
    """
    order = result + "".join(sorted(set("".join(letters)) - set(result)))
    spread = [_spread(ctx, value, names, order) for value, names in zip(operands, letters, strict=True)]
    sizes = tuple(max(value.shape[i] for value in spread) for i in range(len(order)))
    live = not all(value.static for value in operands)
    for value, names in zip(spread, letters, strict=True):
        if value.static and live:
            _note_roles(ctx, value, [(order.index(n), n in result) for n in names])
    fields = list(combine(ctx, spread, sizes))
    if live:
        along = [next((f for f in fields if f.shape[axis] > 1), None) for axis in range(len(order))]
        ctx.count_macs(factor, [(size, _line(f, i)) for i, (size, f) in enumerate(zip(sizes, along, strict=True))])
    for axis in range(len(result), len(order)):
        has_weight = any(value.static for value, names in zip(spread, letters, strict=True) if order[axis] in names)
        fields = [_sum_over(ctx, f, axis, has_weight) if f.shape[axis] > 1 else f for f in fields]
    kept = [f.reshape(f.shape[: len(result)]) for f in fields]
    return Labels(sizes[: len(result)], tuple(f for f in kept if axes_of(f)), static=not live)


def _line(labels: Field | None, axis: int) -> Field | None:
    """Return the labels along one axis, at the first position of all others."""
    return None if labels is None else np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])[0]


def _spread(ctx: RuleContext, value: Labels, names: str, order: str) -> Labels:
    """Arrange the axes of a value in the common order, absent ones with size 1; a repeated letter is a diagonal."""
    if len(set(names)) < len(names):
        value = _diagonal(ctx, value, names)
        names = "".join(dict.fromkeys(names))
    places = [names.find(n) for n in order]
    shape = tuple(value.shape[p] if p >= 0 else 1 for p in places)
    present = [p for p in places if p >= 0]
    fields = tuple(f.transpose(present).reshape([f.shape[p] if p >= 0 else 1 for p in places]) for f in value.fields)
    return Labels(shape, fields, value.direct, value.static)


def _diagonal(ctx: RuleContext, value: Labels, names: str) -> Labels:
    """Keep one axis per letter; the repeated ones must keep their size."""
    keep = [names.index(n) for n in dict.fromkeys(names)]
    plain = [f for f in value.fields if all(names.count(names[a]) == 1 for a in axes_of(f))]
    ctx.lock_all(
        [Labels(value.shape, tuple(f for f in value.fields if all(f is not p for p in plain)))], "is a diagonal"
    )
    shape = tuple(value.shape[i] for i in keep)
    return Labels(shape, tuple(f.reshape([f.shape[i] for i in keep]) for f in plain), static=value.static)


def _note_roles(ctx: RuleContext, weight: Labels, axes: Sequence[tuple[int, bool]]) -> None:
    for axis, stays in axes:
        (ctx.writer if stays else ctx.reader)(weight.along(axis))


def _sum_over(ctx: RuleContext, labels: Field, axis: int, has_weight: bool) -> Field:
    """Drop a contracted axis. Between two activations it must go on elsewhere (heads), or nothing may leave.

    The width over which two activations are multiplied sets their scale (the temperature of attention), which the
    network's code holds.
    """
    if not has_weight and not set(ctx.space.varies(labels)) - {axis}:
        ctx.lock(labels, "is contracted between two activations, where the width sets the scale")
    return ctx.drop(labels, axis)


# --- linear algebra -----------------------------------------------------------------------------------------------


@register_rule("aten.linear")
def linear(ctx: RuleContext, x: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """``x @ weight.T + bias``."""
    lead = ascii_lowercase[: len(x.shape) - 1]
    product = contract(ctx, [x, weight], [lead + "z", "yz"], lead + "y")
    return _with_bias(ctx, product, bias)


def _with_bias(ctx: RuleContext, product: Labels, bias: Labels | None) -> Labels:
    return product if bias is None else pointwise(ctx, [product, bias], product.shape)


@register_rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.vdot", "aten.linalg_matmul")
def matmul(ctx: RuleContext, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """Matrix products with broadcast batch axes, and vectors, as ``torch.matmul`` reads them."""
    batch_a, batch_b = max(len(a.shape) - 2, 0), max(len(b.shape) - 2, 0)
    lead = ascii_lowercase[: max(batch_a, batch_b)]
    rows = "x" if len(a.shape) > 1 else ""
    columns = "y" if len(b.shape) > 1 else ""
    letters_a = lead[len(lead) - batch_a :] + rows + "z"
    letters_b = lead[len(lead) - batch_b :] + "z" + columns
    return contract(ctx, [a, b], [letters_a, letters_b], lead + rows + columns)


@register_rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def addmm(ctx: RuleContext, bias: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``bias + a @ b``."""
    product = matmul(ctx, a, b)
    if len(product.shape) > len(ctx.shape):  # addbmm sums over the batch
        product = Labels(product.shape[1:], tuple(f[0] for f in product.fields if f.shape[0] == 1))
    return pointwise(ctx, [product, bias], ctx.shape)


@register_rule("aten.outer", "aten.ger")
def outer(ctx: RuleContext, a: Labels, b: Labels) -> Labels:
    """Every position of one vector with every position of another."""
    return contract(ctx, [a, b], ["a", "b"], "ab", factor=0)  # an elementwise product: torch counts no operations


@register_rule("aten.addr")
def addr(ctx: RuleContext, bias: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``bias + outer(a, b)``."""
    return pointwise(ctx, [outer(ctx, a, b), bias], ctx.shape)


@register_rule("aten.inner", "aten.linalg_vecdot")
def inner(ctx: RuleContext, a: Labels, b: Labels, dim: int = -1) -> Labels:
    """Contract the last axis of both; ``linalg_vecdot`` another one, position by position of the others."""
    if operator_name(ctx.node.target) == "aten.linalg_vecdot":
        return _vecdot(ctx, a, b, dim)
    if not a.shape or not b.shape:
        return pointwise(ctx, [a, b], ctx.shape)
    return tensordot(ctx, a, b, [-1], [-1])


def _vecdot(ctx: RuleContext, a: Labels, b: Labels, dim: int) -> Labels:
    rank = max(len(a.shape), len(b.shape))
    letters, axis = ascii_lowercase[:rank], dim % rank
    result = letters[:axis] + letters[axis + 1 :]
    return contract(ctx, [align(a, rank), align(b, rank)], [letters, letters], result, factor=0)  # as for `outer`


@register_rule("aten.tensordot")
def tensordot(ctx: RuleContext, a: Labels, b: Labels, dims_a: Sequence[int], dims_b: Sequence[int]) -> Labels:
    """Contract axes of one tensor with axes of another."""
    first = list(ascii_lowercase[: len(a.shape)])
    second = list(ascii_lowercase[len(a.shape) : len(a.shape) + len(b.shape)])
    for i, j in zip(dims_a, dims_b, strict=True):
        second[j] = first[i]
    result = [n for n in first if n not in second] + [n for n in second if n not in first]
    return contract(ctx, [a, b], ["".join(first), "".join(second)], "".join(result))


@register_rule("aten.linalg_multi_dot", "aten.chain_matmul")
def multi_dot(ctx: RuleContext, tensors: Sequence[Labels]) -> Labels:
    """A chain of matrix products."""
    product = tensors[0]
    for tensor in tensors[1:]:
        product = matmul(ctx, product, tensor)
    return product


@register_rule("aten.bilinear")
def bilinear(ctx: RuleContext, a: Labels, b: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """``weight`` of shape ``[out, in1, in2]`` reads two tensors at once."""
    lead = ascii_lowercase[: len(a.shape) - 1]
    product = contract(ctx, [a, b, weight], [lead + "x", lead + "y", "zxy"], lead + "z")
    return _with_bias(ctx, product, bias)


@register_rule("aten.einsum")
def einsum(ctx: RuleContext, equation: str, operands: Sequence[Labels], **kwargs: Any) -> Labels:
    """Any einsum; an ellipsis is spelled out first."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    spare = [c for c in ascii_lowercase + ascii_lowercase.upper() if c not in equation]
    rank = max((len(v.shape) - len(n) + 3 for n, v in zip(letters, operands, strict=True) if "..." in n), default=0)
    dots = "".join(spare[:rank])
    letters = [
        n.replace("...", dots[rank - (len(v.shape) - len(n) + 3) :]) if "..." in n else n
        for n, v in zip(letters, operands, strict=True)
    ]
    if not arrow:
        joined = "".join(letters)
        result = "..." + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in dots))
    return contract(ctx, operands, letters, result.replace("...", dots))


@register_rule("aten.scaled_dot_product_attention")
def attention(
    ctx: RuleContext,
    q: Labels,
    k: Labels,
    v: Labels,
    attn_mask: Labels | None = None,
    *args: Any,
    **kwargs: Any,
) -> Labels:
    """``softmax(q @ k.T) @ v``: heads (batch axes) go through, query and key widths are contracted."""
    if kwargs.get("enable_gqa"):
        k, v = (_shared_heads(x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    lead = ascii_lowercase[: len(q.shape) - 2]
    scores = contract(ctx, [q, k], [lead + "lx", lead + "sx"], lead + "ls")
    if attn_mask is not None:
        scores = pointwise(ctx, [scores, attn_mask], scores.shape)
    return contract(ctx, [scores, v], [lead + "ls", lead + "sy"], lead + "ly")


def _shared_heads(x: Labels, times: int) -> Labels:
    """Repeat every key-value head for the query heads that share it: they leave with it."""
    axis = len(x.shape) - 3
    shape = (*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])
    return Labels(shape, tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in x.fields))


@register_rule("aten.embedding")
def embedding(ctx: RuleContext, weight: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Rows of a table: the rows stay, the columns are channels."""
    ctx.lock(weight.along(0), "is indexed by data")
    columns = weight.along(1)
    ctx.writer(columns)
    rank = len(ctx.shape)
    return Labels(ctx.shape, () if columns is None else (on_axis(columns.ravel(), rank - 1, rank),))


@register_rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(ctx: RuleContext, weight: Labels, indices: Labels, *args: Any, **kwargs: Any) -> list[Labels]:
    """Rows of a table, summed up in bags."""
    ctx.lock_all(find_labels([indices, *args, kwargs]), "is indexed by data")
    return [embedding(ctx, weight, indices), *(Labels(shape) for shape in ctx.shapes[1:])]


# --- convolution --------------------------------------------------------------------------------------------------


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
    """Drop the spatial axes of input and weight; returns how often a pair of channels is multiplied there, too."""
    kernel = weight.shape[2:]
    factor = math.prod(kernel) * math.prod(slides_over[len(slides_over) - len(kernel) :])
    return _flat(ctx, x, len(x.shape) - len(kernel)), _flat(ctx, weight, 2), factor


def _whole_groups(ctx: RuleContext, x: Labels, weight: Labels, groups: int, factor: int) -> Field | None:
    """Tie what the groups of a convolution read to the first axis of its weight, which is returned."""
    filters = weight.along(0)
    ctx.lock(weight.along(1), "is counted per group")
    _tie_groups(ctx, x.along(-1), filters, groups)
    ctx.writer(filters)
    ctx.count_macs(factor * math.prod(x.shape[:-1]) * weight.shape[1], [(weight.shape[0], _line(filters, 0))])
    return filters


def _flat(ctx: RuleContext, value: Labels, keep: int) -> Labels:
    """Drop spatial (or kernel) axes; a field that varies there cannot be followed."""
    for f in value.fields:
        if max(f.shape[keep:], default=1) > 1:
            ctx.lock(f, "varies over the positions that a convolution slides over")
    fields = tuple(f.reshape(f.shape[:keep]) for f in value.fields if max(f.shape[keep:], default=1) == 1)
    return Labels(value.shape[:keep], fields, value.direct, value.static)


def _beside_channels(x: Labels) -> tuple[Field, ...]:
    """Return what is tracked along the batch only: it passes through."""
    return tuple(f for f in x.fields if f.shape[-1] == 1)


def _tie_groups(ctx: RuleContext, channels: Field | None, filters: Field | None, groups: int) -> None:
    """Whole groups of a grouped convolution leave together: what they read and what they write."""
    if channels is None or filters is None:
        ctx.tie(channels, filters, "meets a tensor whose size there is fixed")
        return
    for lost in axes_of(channels)[:-1]:
        channels = ctx.space.unite_along(channels, lost)
    read, written = channels.reshape(groups, -1), filters.reshape(groups, -1)
    ctx.space.unite(first_along(read, 1), read)
    ctx.space.unite(first_along(written, 1), written)
    ctx.space.unite(read[:, 0], written[:, 0])


def _to_space(ctx: RuleContext, flat: Labels, bias: Labels | None) -> Labels:
    """Give the result its spatial axes back and add the bias, which lies along the channels."""
    flat = _with_bias(ctx, flat, bias)
    shape = ctx.shape
    tail = (1,) * (len(shape) - len(flat.shape))
    return Labels(shape, tuple(f.reshape(f.shape + tail) for f in flat.fields), static=flat.static)
