"""Rules for operators that join tensors or repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import locked_positions, moved, resized, without_axis
from lightning_taylor_prune.labels.rules.context import RuleContext, align, pointwise
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Field, Labels, on_axis


@register_rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(ctx: RuleContext, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Pieces one after another along ``dim``; on the other axes their positions are tied."""
    shape = ctx.shape
    dim %= len(shape)
    pieces = [t for t in tensors if len(t.shape) == len(shape)]  # torch lets empty 1-D tensors join anything
    others = pointwise(ctx, [without_axis(t, dim) for t in pieces], resized(shape, dim, 1))
    parts = [piece.along(dim) for piece in pieces]
    if all(p is None for p in parts):
        return Labels(shape, others.fields, static=others.static)
    filled = [
        p if p is not None else on_axis(locked_positions(ctx, t.shape[dim]), dim, len(shape))
        for p, t in zip(parts, pieces, strict=True)
    ]
    common = np.broadcast_shapes(*(resized(f.shape, dim, 1) for f in filled))
    joined = np.concatenate([np.broadcast_to(f, resized(common, dim, f.shape[dim])) for f in filled], axis=dim)
    return Labels(shape, ctx.space.merge([joined, *others.fields]), static=others.static)


@register_rule("aten.stack")
def stack(ctx: RuleContext, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Tensors side by side along a new axis."""
    shape = ctx.shape
    dim %= len(shape)
    joined = pointwise(ctx, tensors, (*shape[:dim], *shape[dim + 1 :]))
    return moved(joined, shape, [np.expand_dims(f, dim) for f in joined.fields])


@register_rule("aten.hstack", "aten.vstack", "aten.row_stack", "aten.dstack", "aten.column_stack")
def stack_along(ctx: RuleContext, tensors: Sequence[Labels]) -> Labels:
    """Tensors joined along the axis that the name stands for; vectors may be stacked along a new axis."""
    name = operator_name(ctx.node.target).removeprefix("aten.")
    rank = len(tensors[0].shape)
    dim = {"hstack": 1, "column_stack": 1, "dstack": 2}.get(name, 0)
    if name == "hstack" and rank == 1:
        return cat(ctx, tensors, 0)
    if rank > dim and len(ctx.shape) == rank:
        return cat(ctx, tensors, dim)
    if rank == dim:
        return stack(ctx, tensors, dim)
    if rank == 1 and name in ("vstack", "row_stack"):
        return stack(ctx, tensors, 0)
    ctx.lock_all(tensors, "is stacked with vectors")
    return Labels(ctx.shape, static=all(t.static for t in tensors))


def _copies(ctx: RuleContext, x: Labels) -> list[Field]:
    """Return labels for the copies of axes of size 1: any copy may be removed, if the code then makes fewer."""
    shape = ctx.shape
    return [
        on_axis(ctx.free(size), axis, len(shape)) for axis, size in enumerate(shape) if x.shape[axis] == 1 and size > 1
    ]


def expand_to_fixed_size(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Copies along axes of size 1, where the code makes a fixed number of them."""
    return moved(x, ctx.shape, align(x, len(ctx.shape)).fields)


@register_rule("aten.expand", "aten.expand_as", "aten.broadcast_to", fallbacks=[expand_to_fixed_size])
def expand(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Copies along axes of size 1."""
    x = align(x, len(ctx.shape))
    return moved(x, ctx.shape, [*x.fields, *_copies(ctx, x)])


def _tiled(ctx: RuleContext, x: Labels, repeats: Sequence[int]) -> list[Field]:
    counts = [1] * (len(ctx.shape) - len(repeats)) + list(repeats)
    return [np.tile(f, [r if f.shape[i] > 1 else 1 for i, r in enumerate(counts)]) for f in x.fields]


def repeat_a_fixed_number(ctx: RuleContext, x: Labels, repeats: Sequence[int]) -> Labels:
    """Copies one after another along each axis; on axes of size 1 the code makes a fixed number of them."""
    return moved(x, ctx.shape, _tiled(ctx, align(x, len(ctx.shape)), repeats))


@register_rule("aten.repeat", "aten.tile", fallbacks=[repeat_a_fixed_number])
def repeat(ctx: RuleContext, x: Labels, repeats: Sequence[int]) -> Labels:
    """Copies one after another along each axis."""
    x = align(x, len(ctx.shape))
    return moved(x, ctx.shape, [*_tiled(ctx, x, repeats), *_copies(ctx, x)])


@register_rule("aten.repeat_interleave")
def repeat_interleave(ctx: RuleContext, x: Labels, repeats: Any, dim: int | None = None, **kwargs: Any) -> Labels:
    """Every position several times in a row."""
    if not isinstance(repeats, int) or dim is None:
        ctx.lock_all([x], "is repeated a different number of times at each position, or flattened")
        return Labels(ctx.shape)
    return moved(x, ctx.shape, [np.repeat(f, repeats, dim) if f.shape[dim] > 1 else f for f in x.fields])
