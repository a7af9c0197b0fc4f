"""Rules for operators that take parts of a tensor: slices, pieces, positions chosen by index or by a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from lightning_taylor_prune.labels.rules.axes import (
    lock_single_position,
    moved,
    range_of,
    resized,
    unite_blocks,
    unite_pieces,
    without_axis,
)
from lightning_taylor_prune.labels.rules.context import RuleContext, find_labels, pointwise
from lightning_taylor_prune.labels.rules.registry import operator_name, register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of


def slice_a_half(
    ctx: RuleContext, x: Labels, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Labels:
    """One half of an axis: the same positions are removed from both halves."""
    size, length = x.shape[dim], ctx.shape[dim]
    labels = x.along(dim)
    if labels is not None and step == 1 and 2 * length == size and _slice_start(x, dim, start) in (0, length):
        unite_pieces(ctx, labels, dim % len(x.shape), 2)
    return slice_(ctx, x, dim, start, end, step)


@register_rule("aten.slice", "aten.narrow", fallbacks=[slice_a_half])
def slice_(ctx: RuleContext, x: Labels, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Labels:
    """A range of positions, whose bounds are in the network's code; every cut is verified against them."""
    shape = ctx.shape
    dim %= len(shape)
    labels, size = x.along(dim), x.shape[dim]
    if labels is None or shape[dim] == size:
        return moved(x, shape, x.fields)
    start = _slice_start(x, dim, start)
    if step > 1:
        unite_blocks(ctx, labels, dim, step)
    stop = start + shape[dim] * step
    if start:
        before = labels[(slice(None),) * dim + (slice(0, start - start % step),)]
        ctx.expect(_slice_start, before, "start of the slice", dim, start % step)
    lock_single_position(ctx, labels, dim, start, shape[dim])
    fields = [f[(slice(None),) * dim + (slice(start, stop, step),)] if f is labels else f for f in x.fields]
    return moved(x, shape, fields)


def _slice_start(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> int:
    size = x.shape[dim]
    return 0 if start is None else min(start + size if start < 0 else start, size)


@register_rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_chunk", "aten.unsafe_split")
@register_rule("aten.tensor_split")
def split(ctx: RuleContext, x: Labels, sizes: Any, dim: int = 0) -> list[Labels]:
    """Pieces along one axis. The same positions are removed from pieces of equal size, so that they remain equal."""
    shapes = ctx.shapes
    dim %= len(x.shape)
    labels = x.along(dim)
    lengths = [s[dim] for s in shapes]
    if labels is not None and len(lengths) > 1 and len(set(lengths)) == 1:
        unite_pieces(ctx, labels, dim, len(lengths))
    stops = np.cumsum(lengths)
    if labels is not None:
        for length, stop in zip(lengths, stops.tolist(), strict=True):
            lock_single_position(ctx, labels, dim, stop - length, length)
    return [
        moved(x, shape, [range_of(f, dim, stop - length, stop) for f in x.fields])
        for shape, length, stop in zip(shapes, lengths, stops, strict=True)
    ]


@register_rule("aten.hsplit", "aten.vsplit", "aten.dsplit")
def split_along(ctx: RuleContext, x: Labels, sizes: Any) -> list[Labels]:
    """Pieces along the axis that the name stands for."""
    name = operator_name(ctx.node.target).removeprefix("aten.")
    return split(ctx, x, sizes, min({"hsplit": 1, "vsplit": 0, "dsplit": 2}[name], len(x.shape) - 1))


@register_rule("aten.select")
def select(ctx: RuleContext, x: Labels, dim: int, index: int) -> Labels:
    """One position, by an index in the network's code: the others must not move."""
    dim %= len(x.shape)
    if (labels := x.along(dim)) is not None:
        ctx.pin(labels, dim)
    return moved(x, ctx.shape, [np.take(f, [index if f.shape[dim] > 1 else 0], dim).squeeze(dim) for f in x.fields])


@register_rule("aten.unbind")
def unbind(ctx: RuleContext, x: Labels, dim: int = 0) -> list[Labels]:
    """All positions of an axis, one by one; the network's code relies on their number."""
    return [select(ctx, x, dim, i) for i in range(x.shape[dim])]


@register_rule("aten.gather", "aten.take_along_dim", "aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def gather(ctx: RuleContext, x: Labels, dim: int | None, *args: Any, **kwargs: Any) -> Labels:
    """Positions along one axis chosen by a tensor of indices; on the other axes all operands are tied."""
    if isinstance(dim, Labels):  # take_along_dim has its indices first
        args, dim = (dim,), (args[0] if args else kwargs.get("dim"))
    return _picked(ctx, [x, *find_labels([*args, kwargs])], dim)


@register_rule("aten.index_add", "aten.index_copy", "aten.index_fill", "aten.index_reduce")
def index_add(ctx: RuleContext, x: Labels, dim: int, index: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Rows chosen by a tensor of indices: they are locked, and the other axes are tied."""
    ctx.lock_all([index], "is used as an index")
    return _picked(ctx, [x, *(v for v in find_labels([*args, kwargs]) if v.shape)], dim)


def _picked(ctx: RuleContext, operands: Sequence[Labels], dim: int | None) -> Labels:
    """Lock the labels along the indexed axis; on the other axes tie all operands, position by position."""
    shape, rank = ctx.shape, len(ctx.shape)
    static = all(v.static for v in operands)
    broadcast = operator_name(ctx.node.target) == "aten.take_along_dim"
    sizes = {len(v.shape) if broadcast or dim is None else resized(v.shape, dim % rank, 1) for v in operands}
    if dim is None or len(sizes) > 1 or any(len(v.shape) != rank for v in operands):
        ctx.lock_all(operands, "is indexed by a tensor")
        return Labels(shape, static=static)
    dim %= rank
    for v in operands:
        ctx.lock(v.along(dim), "is indexed by a tensor")
    rest = pointwise(ctx, [without_axis(v, dim) for v in operands], resized(shape, dim, 1))
    return Labels(shape, rest.fields, static=static)


@register_rule("aten.unfold")
def windows(ctx: RuleContext, x: Labels, dim: int, size: int, step: int) -> Labels:
    """Windows along one axis, whose positions stand along a new last axis."""
    ctx.lock(x.along(dim), "is cut into windows")
    return moved(x, ctx.shape, [f[..., None] for f in x.fields if f.shape[dim] == 1]).computed()


@register_rule("aten.index", "aten.index_select", "aten.masked_select")
def index(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Positions chosen by tensors: the indexed axes are locked, the result has the axes before and after them."""
    dims, consumed = _indexed_axes(ctx, x, args)
    for dim in dims:
        ctx.lock(x.along(dim), "is indexed by a tensor")
    shape = ctx.shape
    if not consumed:
        ctx.lock_all([x], "is indexed by a tensor")
        return Labels(shape, static=x.static)
    first, last = min(dims), max(dims)
    inserted = len(shape) - (len(x.shape) - (last - first + 1))
    fields = [
        f.reshape(f.shape[:first] + (1,) * inserted + f.shape[last + 1 :])
        for f in x.fields
        if all(f.shape[d] == 1 for d in range(first, last + 1))
    ]
    return moved(x, shape, fields).computed()


@register_rule("aten.index_put", "aten._index_put_impl", "aten._unsafe_index_put")
def index_put(ctx: RuleContext, x: Labels, indices: Sequence[Labels | None], values: Labels, *args: Any) -> Labels:
    """Values written to positions that tensors choose: these axes are locked, those after them tied to the values'."""
    dims, consumed = _indexed_axes(ctx, x, (indices,))
    ctx.lock_all(find_labels(indices), "is used as an index")
    if not consumed:
        ctx.lock_all([x, values], "is indexed by a tensor")
        return Labels(ctx.shape, static=x.static and values.static)
    after = max(dims) + 1
    before, tail = _apart(ctx, x, min(dims), after)
    written, others = _apart(ctx, values, 0, max(len(values.shape) - (len(x.shape) - after), 0))[::-1]
    ctx.lock_all([others], "is indexed by a tensor")
    if len(values.shape) > len(x.shape) - after:  # rows of their own for the axes before, or for the chosen positions
        for f in before.fields:
            if max(values.shape[: len(values.shape) - len(tail.shape)]) > 1:
                ctx.lock(f, "is indexed by a tensor")
    rest = pointwise(ctx, [tail, written], tail.shape)
    fields = (*before.fields, *(f.reshape((1,) * after + f.shape) for f in rest.fields))
    return Labels(ctx.shape, fields, static=x.static and values.static)


def _apart(ctx: RuleContext, x: Labels, stop: int, start: int) -> tuple[Labels, Labels]:
    """Return the labels that vary before an axis only, and those from another axis on, cut off; others are locked."""
    before = tuple(f for f in x.fields if all(axis < stop for axis in axes_of(f)))
    after = tuple(f.reshape(f.shape[start:]) for f in x.fields if all(axis >= start for axis in axes_of(f)))
    for f in x.fields:
        if not (all(axis < stop for axis in axes_of(f)) or all(axis >= start for axis in axes_of(f))):
            ctx.lock(f, "is indexed by a tensor")
    return Labels(x.shape, before), Labels(x.shape[start:], after, static=x.static)


def _indexed_axes(ctx: RuleContext, x: Labels, args: tuple[Any, ...]) -> tuple[list[int], bool]:
    """Return the indexed axes, and whether they are adjacent and indexed by integers or tensors only."""
    if isinstance(args[0], (list, tuple)):
        nodes: Any = ctx.node.args[1]  # what has been traced, where `args` has labels
        lengths = [0 if item is None else _axes_taken(node) for item, node in zip(args[0], nodes, strict=True)]
        dims: list[int] = []
        axis = 0
        for length in lengths:
            dims += range(axis, axis + length)
            axis += max(length, 1)
        return dims, bool(dims) and dims == list(range(dims[0], dims[-1] + 1)) and _only_tensors(args[0])
    if isinstance(args[0], int) and len(args) > 1:
        return [args[0] % len(x.shape)], True
    return list(range(len(x.shape))), False


def _axes_taken(index: Any) -> int:
    """Return how many axes an index stands for: a mask for as many as it has, any other one for one."""
    value = index.meta["val"] if isinstance(index, Node) else index
    is_mask = isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)
    return value.dim() if is_mask else 1


def _only_tensors(indices: Sequence[Any]) -> bool:
    return all(item is None or isinstance(item, Labels) for item in indices)


@register_rule("tensor.numpy")
def read_as_array(ctx: RuleContext, x: Labels, **kwargs: Any) -> Labels:
    """What code outside of torch computes with, which nobody can follow: its channels keep their number."""
    ctx.lock_all([x], "is read as a NumPy array, which cannot be followed; compute with torch, or read it in a hook")
    return Labels((), static=x.static)


@register_rule("aten.glu")
def glu(ctx: RuleContext, x: Labels, dim: int = -1) -> Labels:
    """One half gates the other: position i of both halves is removed together."""
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
