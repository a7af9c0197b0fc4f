"""Rules for linear layers, matrix products, attention and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
from torch import Tensor

from lightning_taylor_prune.labels.rules.axes import unite_blocks
from lightning_taylor_prune.labels.rules.context import RuleContext, align, find_labels, pointwise
from lightning_taylor_prune.labels.rules.contraction import add_bias, contract
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Labels, on_axis


@register_rule("aten.linear")
def linear(ctx: RuleContext, x: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    """``x @ weight.T + bias``."""
    lead = ascii_lowercase[: len(x.shape) - 1]
    product = contract(ctx, [x, weight], [lead + "z", "yz"], lead + "y")
    return add_bias(ctx, product, bias)


@register_rule("aten._grouped_mm", "aten._scaled_grouped_mm")
def grouped_matmul(ctx: RuleContext, a: Labels, b: Labels, *args: Any, **kwargs: Any) -> Labels:
    """A matrix product for each expert, over the rows that it is given: ``a`` may hold the rows of all, one by one.

    The operator only takes matrices whose rows (or columns, if these lie in one piece) begin every 16 bytes: channels
    are removed in blocks that are as long.
    """
    offsets = find_labels([*args, kwargs])
    if len(b.shape) == 2 or offsets[1:]:  # sums over rows, as in a backward pass; a bias or a scale
        ctx.lock_all([a, b, *offsets], "is multiplied expert by expert in a way that is not followed")
        return Labels(ctx.shape)
    for experts in (v.along(0) for v in (a, b) if len(v.shape) == 3):
        ctx.lock(experts, "is one of the experts that rows are sent to")
    for value, node in zip((a, b), ctx.node.args, strict=False):
        _unite_aligned(ctx, value, node.meta["val"])  # type: ignore[union-attr]
    product = contract(
        ctx, [_of_one_expert(a), _of_one_expert(b)], ["yz", "zx"], "yx", ctx.shape[0] if len(ctx.shape) == 3 else 1
    )
    lead = len(ctx.shape) - 2
    return Labels(ctx.shape, tuple(f.reshape((1,) * lead + f.shape) for f in product.fields), static=product.static)


def _unite_aligned(ctx: RuleContext, value: Labels, matrix: Tensor) -> None:
    """Unite blocks of 16 bytes along the axis of a matrix whose positions lie side by side in memory."""
    axis = (-1 if matrix.stride(-1) == 1 else -2) % matrix.dim()
    if (labels := value.along(axis)) is not None:
        unite_blocks(ctx, labels, axis, max(16 // matrix.element_size(), 1))


def _of_one_expert(value: Labels) -> Labels:
    if len(value.shape) == 2:
        return value
    fields = tuple(f[0] for f in value.fields if f.shape[0] == 1)
    return Labels(value.shape[1:], fields, value.direct, value.static)


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


@register_rule("aten._sparse_mm", "aten.hspmm", "aten.smm")
def sparse_mm(ctx: RuleContext, a: Labels, b: Labels, reduce: str = "sum") -> Labels:
    """A product with a sparse matrix, such as the edges of a graph: its own axes are not tracked."""
    return contract(ctx, [a, b], ["xz", "zy"], "xy", factor=0)  # torch counts no operations


@register_rule("aten._sparse_addmm", "aten.sspaddmm")
def sparse_addmm(ctx: RuleContext, bias: Labels, a: Labels, b: Labels, **kwargs: Any) -> Labels:
    """``bias + a @ b`` of a sparse ``a``."""
    return pointwise(ctx, [sparse_mm(ctx, a, b), bias], ctx.shape)


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
    return add_bias(ctx, product, bias)


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
    """``softmax(q @ k.T) @ v``: heads (batch axes) are kept, query and key widths are summed over."""
    if kwargs.get("enable_gqa"):
        k, v = (_shared_heads(x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    lead = ascii_lowercase[: len(q.shape) - 2]
    scores = contract(ctx, [q, k], [lead + "lx", lead + "sx"], lead + "ls")
    if attn_mask is not None:
        scores = pointwise(ctx, [scores, attn_mask], scores.shape)
    return contract(ctx, [scores, v], [lead + "ls", lead + "sy"], lead + "ly")


def _shared_heads(x: Labels, times: int) -> Labels:
    """Repeat every key-value head for the query heads that share it: all of these are removed together."""
    axis = len(x.shape) - 3
    shape = (*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])
    return Labels(shape, tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in x.fields))


@register_rule("aten.embedding")
def embedding(ctx: RuleContext, weight: Labels, indices: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Rows of a table: all rows are kept, the columns are channels."""
    ctx.lock(weight.along(0), "is indexed by a tensor")
    columns = weight.along(1)
    ctx.writer(columns)
    rank = len(ctx.shape)
    return Labels(ctx.shape, () if columns is None else (on_axis(columns.ravel(), rank - 1, rank),))


@register_rule("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(ctx: RuleContext, weight: Labels, indices: Labels, *args: Any, **kwargs: Any) -> list[Labels]:
    """Rows of a table, summed up in bags."""
    ctx.lock_all(find_labels([indices, *args, kwargs]), "is indexed by a tensor")
    return [embedding(ctx, weight, indices), *(Labels(shape) for shape in ctx.shapes[1:])]
