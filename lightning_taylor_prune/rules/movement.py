"""Rules for operators that move data: the same operation is run on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels import Field, Labels, axes_of, first_along, on_axis
from lightning_taylor_prune.rules.base import RuleContext, align, find_labels, operator_name, pointwise, register_rule


def moved(x: Labels, shape: tuple[int, ...], fields: Sequence[Field]) -> Labels:
    """Wrap moved fields; what is no longer stored along any axis is dropped."""
    return Labels(shape, tuple(f for f in fields if axes_of(f)), x.direct, x.static)


# --- changing the shape -------------------------------------------------------------------------------------------


def segments(old: Sequence[int], new: Sequence[int]) -> list[tuple[slice, slice]]:
    """Pair the shortest runs of axes of two shapes that hold the same number of elements.

    >>> segments((2, 12, 5), (2, 3, 4, 5))
    [(slice(0, 1, None), slice(0, 1, None)), (slice(1, 2, None), slice(1, 3, None)), \
(slice(2, 3, None), slice(3, 4, None))]
    """
    pairs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        count_i, i = (old[i] if i < len(old) else 1), i + 1
        count_j, j = (new[j] if j < len(new) else 1), j + 1
        while count_i != count_j:
            if count_i < count_j:
                count_i, i = count_i * old[i], i + 1
            else:
                count_j, j = count_j * new[j], j + 1
        pairs.append((slice(start_i, min(i, len(old))), slice(start_j, min(j, len(new)))))
    return pairs


def reshape_field(labels: Field, old: tuple[int, ...], new: tuple[int, ...]) -> Field:
    """Reshape a field as the tensor is reshaped, storing in full only the runs of axes where it varies."""
    full: list[int] = []
    target: list[int] = []
    for before, after in segments(old, new):
        varies = any(size > 1 for size in labels.shape[before])
        full += old[before] if varies else [1] * len(old[before])
        target += new[after] if varies else [1] * len(new[after])
    return np.broadcast_to(labels, full).reshape(target)


@register_rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias", alternatives=1)
@register_rule("aten.flatten", "aten.unflatten", "aten.squeeze", "aten.unsqueeze", alternatives=1)
@register_rule("aten.reshape_as", "aten.view_as", "aten.ravel", alternatives=1)
@register_rule("aten.atleast_1d", "aten.atleast_2d", "aten.atleast_3d", alternatives=1)
def reshape(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Everything that only regroups axes; the shapes before and after say all."""
    shape = ctx.shape
    if 0 in shape:
        ctx.lock_all([x], "has no elements")
        return Labels(shape)
    # a weight counts its channels before its kernel positions, and these never leave
    fields = sorted(x.fields, key=lambda f: f.min()) if x.static else x.fields
    fields = _one_per_axis(ctx, [_compact(ctx, reshape_field(f, x.shape, shape)) for f in fields])
    for f in fields:
        if len(axes_of(f)) > 1:
            ctx.notes.rectangles.append((ctx.index, f, ()))
    return moved(x, shape, fields)


def _one_per_axis(ctx: RuleContext, fields: Sequence[Field]) -> list[Field]:
    """Where several tracked axes become one, follow the first that can shrink; the others keep their size."""
    clashing = [f for f in fields if any(g is not f and set(axes_of(f)) & set(axes_of(g)) for g in fields)]
    fixed = {id(f) for f in clashing if ctx.space.is_locked(f)}
    kept: list[Field] = []
    for f in (f for f in fields if id(f) not in fixed):
        if any(set(axes_of(f)) & set(axes_of(other)) for other in kept):
            ctx.lock(f, "becomes one axis with other channels")
        else:
            kept.append(f)
    return kept


def _compact(ctx: RuleContext, labels: Field) -> Field:
    """Stop tracking axes along which all labels are the same, unless nothing would be left."""
    varying = ctx.space.varies(labels)
    for axis in axes_of(labels) if varying else ():
        if axis not in varying:
            labels = first_along(labels, axis)
    return labels


# --- permuting axes and positions ---------------------------------------------------------------------------------


@register_rule("aten.permute")
def permute(ctx: RuleContext, x: Labels, dims: Sequence[int]) -> Labels:
    """Axes in another order."""
    return moved(x, ctx.shape, [f.transpose([d % f.ndim for d in dims]) for f in x.fields])


@register_rule("aten.transpose", "aten.swapaxes", "aten.swapdims")
def transpose(ctx: RuleContext, x: Labels, dim0: int, dim1: int) -> Labels:
    """Two axes swapped."""
    return moved(x, ctx.shape, [f.swapaxes(dim0, dim1) for f in x.fields])


@register_rule("aten.t", "aten.numpy_T", "aten.mT", "aten.mH", "aten.matrix_H", "aten.adjoint")
def matrix_transpose(ctx: RuleContext, x: Labels) -> Labels:
    """The last two axes swapped."""
    return moved(x, ctx.shape, [f.swapaxes(-1, -2) if f.ndim > 1 else f for f in x.fields])


@register_rule("aten.movedim", "aten.moveaxis")
def movedim(ctx: RuleContext, x: Labels, source: Any, destination: Any) -> Labels:
    """Axes moved to new places."""
    return moved(x, ctx.shape, [np.moveaxis(f, source, destination) for f in x.fields])


@register_rule("aten.flip")
def flip(ctx: RuleContext, x: Labels, dims: Sequence[int]) -> Labels:
    """Positions in reverse order."""
    return moved(x, ctx.shape, [np.flip(f, tuple(dims)) for f in x.fields])


@register_rule("aten.fliplr")
def fliplr(ctx: RuleContext, x: Labels) -> Labels:
    """Columns in reverse order."""
    return flip(ctx, x, [1])


@register_rule("aten.flipud")
def flipud(ctx: RuleContext, x: Labels) -> Labels:
    """Rows in reverse order."""
    return flip(ctx, x, [0])


@register_rule("aten.view_as_real")
def view_as_real(ctx: RuleContext, x: Labels) -> Labels:
    """Real and imaginary parts along a new last axis."""
    return moved(x, ctx.shape, [f[..., None] for f in x.fields])


@register_rule("aten.view_as_complex")
def view_as_complex(ctx: RuleContext, x: Labels) -> Labels:
    """The last axis holds real and imaginary parts: both leave together, with whatever else they vary along."""
    last = len(x.shape) - 1
    fields = []
    for f in x.fields:
        if axes_of(f) == (last,):
            ctx.lock(f, "is a real and an imaginary part")
        fields.append(ctx.drop(f, last)[..., 0])
    return moved(x, ctx.shape, fields)


@register_rule("aten.roll")
def roll(ctx: RuleContext, x: Labels, shifts: Any, dims: Any = ()) -> Labels:
    """Positions moved round by a number that user code holds: along a tracked axis none may leave."""
    axes = [dims] if isinstance(dims, int) else list(dims) or range(len(x.shape))
    for axis in axes:
        ctx.lock(x.along(axis), "is rolled along this axis by a fixed number")
    return x


# --- joining ------------------------------------------------------------------------------------------------------


@register_rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(ctx: RuleContext, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Pieces one after another along ``dim``; along the other axes they must agree."""
    shape = ctx.shape
    dim %= len(shape)
    pieces = [t for t in tensors if len(t.shape) == len(shape)]  # torch lets empty 1-D tensors join anything
    others = pointwise(ctx, [_without(t, dim) for t in pieces], _resized(shape, dim, 1))
    parts = [piece.along(dim) for piece in pieces]
    if all(p is None for p in parts):
        return Labels(shape, others.fields, static=others.static)
    filled = [
        p if p is not None else on_axis(_fixed(ctx, t.shape[dim]), dim, len(shape))
        for p, t in zip(parts, pieces, strict=True)
    ]
    common = np.broadcast_shapes(*(_resized(f.shape, dim, 1) for f in filled))
    joined = np.concatenate([np.broadcast_to(f, _resized(common, dim, f.shape[dim])) for f in filled], axis=dim)
    return Labels(shape, ctx.space.merge([joined, *others.fields]), static=others.static)


def _fixed(ctx: RuleContext, count: int) -> Field:
    labels = ctx.space.fresh(count)
    ctx.lock(labels, "is concatenated with a tensor whose size is fixed")
    return labels


def _without(x: Labels, axis: int) -> Labels:
    """Return the labels of one position along ``axis``, leaving out the field that varies there."""
    return Labels(_resized(x.shape, axis, 1), tuple(f for f in x.fields if f.shape[axis] == 1), x.direct, x.static)


def _resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


@register_rule("aten.stack")
def stack(ctx: RuleContext, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Tensors side by side along a new axis."""
    shape = ctx.shape
    dim %= len(shape)
    joined = pointwise(ctx, tensors, (*shape[:dim], *shape[dim + 1 :]))
    return moved(joined, shape, [np.expand_dims(f, dim) for f in joined.fields])


@register_rule("aten.hstack", "aten.vstack", "aten.row_stack", "aten.dstack", "aten.column_stack")
def stack_along(ctx: RuleContext, tensors: Sequence[Labels]) -> Labels:
    """Joined along the axis that the name stands for; vectors, which gain axes by it, may be put side by side."""
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
    ctx.lock_all(tensors, "is put side by side with vectors")
    return Labels(ctx.shape, static=all(t.static for t in tensors))


# --- repeating ----------------------------------------------------------------------------------------------------


@register_rule("aten.expand", "aten.expand_as", "aten.broadcast_to", alternatives=1)
def expand(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Copies along axes of size 1: as many as user code asks for, any of which may leave."""
    shape = ctx.shape
    x = align(x, len(shape))
    fields = [
        on_axis(ctx.free(size), axis, len(shape))
        for axis, size in enumerate(shape)
        if x.shape[axis] == 1 and size > 1 and not ctx.attempt
    ]
    return moved(x, shape, [*x.fields, *fields])


@register_rule("aten.repeat", "aten.tile", alternatives=1)
def repeat(ctx: RuleContext, x: Labels, repeats: Sequence[int]) -> Labels:
    """Copies one after another along each axis."""
    shape = ctx.shape
    x = align(x, len(shape))
    counts = [1] * (len(shape) - len(repeats)) + list(repeats)
    fields = [np.tile(f, [r if f.shape[i] > 1 else 1 for i, r in enumerate(counts)]) for f in x.fields]
    fields += [
        on_axis(ctx.free(size), axis, len(shape))
        for axis, size in enumerate(shape)
        if x.shape[axis] == 1 and size > 1 and not ctx.attempt
    ]
    return moved(x, shape, fields)


@register_rule("aten.repeat_interleave")
def repeat_interleave(ctx: RuleContext, x: Labels, repeats: Any, dim: int | None = None, **kwargs: Any) -> Labels:
    """Every position several times in a row."""
    if not isinstance(repeats, int) or dim is None:
        ctx.lock_all([x], "is repeated by a number per position, or flattened")
        return Labels(ctx.shape)
    return moved(x, ctx.shape, [np.repeat(f, repeats, dim) if f.shape[dim] > 1 else f for f in x.fields])


# --- taking parts -------------------------------------------------------------------------------------------------


@register_rule("aten.slice", "aten.narrow", alternatives=1)
def slice_(ctx: RuleContext, x: Labels, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Labels:
    """A range of positions, whose bounds user code holds; every cut is verified against them.

    If they do not follow any cut, the two halves of an axis cut in the middle may still lose the same positions.
    """
    shape = ctx.shape
    dim %= len(shape)
    labels, size = x.along(dim), x.shape[dim]
    if labels is None or shape[dim] == size:
        return moved(x, shape, x.fields)
    start = 0 if start is None else min(start + size if start < 0 else start, size)
    if step > 1:
        _leave_in_blocks(ctx, labels, dim, step)
    elif ctx.attempt == 1 and 2 * shape[dim] == size and start in (0, shape[dim]):
        _unite_pieces(ctx, labels, dim, 2)
    stop = start + shape[dim] * step
    if start:
        before = labels[(slice(None),) * dim + (slice(0, start - start % step),)]
        ctx.expect(_slice_start, before, "start of the slice", dim, start % step)
    _hold_single(ctx, labels, dim, start, shape[dim])
    fields = [f[(slice(None),) * dim + (slice(start, stop, step),)] if f is labels else f for f in x.fields]
    return moved(x, shape, fields)


def _slice_start(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> int:
    size = x.shape[dim]
    return 0 if start is None else min(start + size if start < 0 else start, size)


def _hold_single(ctx: RuleContext, labels: Field, dim: int, start: int, length: int) -> None:
    """A piece of one position is picked out by number: no other may take its place."""
    if length == 1 < labels.shape[dim]:
        ctx.lock(_range(labels, dim, start, start + 1), "is picked out by number")


def _leave_in_blocks(ctx: RuleContext, labels: Field, dim: int, step: int) -> None:
    """Unite every ``step`` positions in a row, so that a strided slice keeps its phase."""
    size = labels.shape[dim]
    if size % step:
        ctx.lock(labels, f"is sliced with a step that does not divide its {size} positions")
        return
    blocks = np.moveaxis(labels, dim, -1).reshape(-1, size // step, step)
    ctx.space.unite(blocks, blocks[..., :1])


def _unite_pieces(ctx: RuleContext, labels: Field, dim: int, count: int) -> None:
    """Unite position i of every piece of an axis that is cut into ``count`` equal ones."""
    pieces = np.moveaxis(labels, dim, -1).reshape(-1, count, labels.shape[dim] // count)
    ctx.space.unite(pieces, pieces[:, :1])


@register_rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unsafe_chunk", "aten.unsafe_split")
@register_rule("aten.tensor_split")
def split(ctx: RuleContext, x: Labels, sizes: Any, dim: int = 0) -> list[Labels]:
    """Pieces along one axis. Equal ones lose the same positions, so that the code's arithmetic still holds."""
    shapes = ctx.shapes
    dim %= len(x.shape)
    labels = x.along(dim)
    lengths = [s[dim] for s in shapes]
    if labels is not None and len(lengths) > 1 and len(set(lengths)) == 1:
        _unite_pieces(ctx, labels, dim, len(lengths))
    stops = np.cumsum(lengths)
    if labels is not None:
        for length, stop in zip(lengths, stops.tolist(), strict=True):
            _hold_single(ctx, labels, dim, stop - length, length)
    return [
        moved(x, shape, [_range(f, dim, stop - length, stop) for f in x.fields])
        for shape, length, stop in zip(shapes, lengths, stops, strict=True)
    ]


@register_rule("aten.hsplit", "aten.vsplit", "aten.dsplit")
def split_along(ctx: RuleContext, x: Labels, sizes: Any) -> list[Labels]:
    """Pieces along the axis that the name stands for."""
    name = operator_name(ctx.node.target).removeprefix("aten.")
    return split(ctx, x, sizes, min({"hsplit": 1, "vsplit": 0, "dsplit": 2}[name], len(x.shape) - 1))


def _range(labels: Field, dim: int, start: int, stop: int) -> Field:
    return labels if labels.shape[dim] == 1 else labels[(slice(None),) * dim + (slice(start, stop),)]


@register_rule("aten.select")
def select(ctx: RuleContext, x: Labels, dim: int, index: int) -> Labels:
    """One position, by a number that user code holds: the others must not move."""
    dim %= len(x.shape)
    if (labels := x.along(dim)) is not None:
        ctx.pin(labels, dim)
    return moved(x, ctx.shape, [np.take(f, [index if f.shape[dim] > 1 else 0], dim).squeeze(dim) for f in x.fields])


@register_rule("aten.unbind")
def unbind(ctx: RuleContext, x: Labels, dim: int = 0) -> list[Labels]:
    """All positions of an axis, one by one; user code counts on their number."""
    return [select(ctx, x, dim, i) for i in range(x.shape[dim])]


@register_rule("aten.gather", "aten.take_along_dim", "aten.scatter", "aten.scatter_add", "aten.scatter_reduce")
def gather(ctx: RuleContext, x: Labels, dim: int | None, *args: Any, **kwargs: Any) -> Labels:
    """Positions along one axis chosen by data, for each position of the others: there, all operands match."""
    if isinstance(dim, Labels):  # take_along_dim has its indices first
        args, dim = (dim,), (args[0] if args else kwargs.get("dim"))
    return _picked(ctx, [x, *find_labels([*args, kwargs])], dim)


@register_rule("aten.index_add", "aten.index_copy", "aten.index_fill", "aten.index_reduce")
def index_add(ctx: RuleContext, x: Labels, dim: int, index: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Rows chosen by data: they lock, the other axes match."""
    ctx.lock_all([index], "picks out positions")
    return _picked(ctx, [x, *(v for v in find_labels([*args, kwargs]) if v.shape)], dim)


def _picked(ctx: RuleContext, operands: Sequence[Labels], dim: int | None) -> Labels:
    """Lock what varies along the axis on which data choose; along the others operands match, position by position."""
    shape, rank = ctx.shape, len(ctx.shape)
    static = all(v.static for v in operands)
    broadcast = operator_name(ctx.node.target) == "aten.take_along_dim"
    sizes = {len(v.shape) if broadcast or dim is None else _resized(v.shape, dim % rank, 1) for v in operands}
    if dim is None or len(sizes) > 1 or any(len(v.shape) != rank for v in operands):
        ctx.lock_all(operands, "is indexed by data")
        return Labels(shape, static=static)
    dim %= rank
    for v in operands:
        ctx.lock(v.along(dim), "is indexed by data")
    rest = pointwise(ctx, [_without(v, dim) for v in operands], _resized(shape, dim, 1))
    return Labels(shape, rest.fields, static=static)


@register_rule("aten.unfold")
def windows(ctx: RuleContext, x: Labels, dim: int, size: int, step: int) -> Labels:
    """Windows along one axis, whose positions stand along a new last axis."""
    ctx.lock(x.along(dim), "is cut into windows")
    return moved(x, ctx.shape, [f[..., None] for f in x.fields if f.shape[dim] == 1]).computed()


@register_rule("aten.index", "aten.index_select", "aten.masked_select")
def index(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Positions chosen by data: what is indexed locks, the axes before and after pass through."""
    dims, consumed = _indexed_axes(x, args)
    for dim in dims:
        ctx.lock(x.along(dim), "is indexed by data")
    shape = ctx.shape
    if not consumed:
        ctx.lock_all([x], "is indexed by data")
        return Labels(shape, static=x.static)
    first, last = min(dims), max(dims)
    inserted = len(shape) - (len(x.shape) - (last - first + 1))
    fields = [
        f.reshape(f.shape[:first] + (1,) * inserted + f.shape[last + 1 :])
        for f in x.fields
        if all(f.shape[d] == 1 for d in range(first, last + 1))
    ]
    return moved(x, shape, fields).computed()


def _indexed_axes(x: Labels, args: tuple[Any, ...]) -> tuple[list[int], bool]:
    """Return the axes that data index, and whether they stand together and none between is passed through."""
    if isinstance(args[0], (list, tuple)):
        dims = [i for i, item in enumerate(args[0]) if item is not None]
        return dims, bool(dims) and dims == list(range(dims[0], dims[-1] + 1)) and _no_masks(args[0])
    if isinstance(args[0], int) and len(args) > 1:
        return [args[0] % len(x.shape)], True
    return list(range(len(x.shape))), False


def _no_masks(indices: Sequence[Any]) -> bool:
    return all(item is None or isinstance(item, Labels) for item in indices)


# --- padding and rearranging channels -----------------------------------------------------------------------------


@register_rule("aten.constant_pad_nd", alternatives=1)
def constant_pad(ctx: RuleContext, x: Labels, pad_: Sequence[int], value: Any = 0) -> Labels:
    """Constants around a tensor; along a tracked axis they are positions of their own, that code counts."""
    fields = list(x.fields)
    for i in range(len(pad_) // 2):
        axis, left, right = len(x.shape) - 1 - i, pad_[2 * i], pad_[2 * i + 1]
        labels = next((f for f in fields if f.shape[axis] > 1), None)
        if labels is None or (left == 0 and right == 0):
            continue
        if left < 0 or right < 0:
            ctx.lock(labels, "is padded or cropped by a fixed number")
        padded = _pad_axis(ctx, labels, axis, max(left, 0), max(right, 0))
        stop = padded.shape[axis] + min(right, 0)
        fields = [_range(padded, axis, max(-left, 0), stop) if f is labels else f for f in fields]
    return Labels(ctx.shape, tuple(fields), static=x.static)


def _pad_axis(ctx: RuleContext, labels: Field, axis: int, left: int, right: int) -> Field:
    first = 2 * (labels.ndim - 1 - axis)  # where the widths of this axis stand in the argument
    sides = []
    for place, count, side in ((first, left, "left"), (first + 1, right, "right")):
        new = ctx.free(count)
        if ctx.attempt and count:
            ctx.lock(new, "meets padding whose width is fixed")
        wide = np.broadcast_to(on_axis(new, axis, labels.ndim), _resized(labels.shape, axis, count))
        if count:
            ctx.expect(lambda x, pad_, *a, place=place, **k: pad_[place], wide, f"padding on the {side}", axis)
        sides.append(wide)
    return np.concatenate([sides[0], labels, sides[1]], axis=axis)


@register_rule("aten.pad", alternatives=1)
def pad(ctx: RuleContext, x: Labels, pad_: Sequence[int], mode: str = "constant", value: Any = None) -> Labels:
    """Padding of any mode; modes that copy positions lock a tracked axis."""
    if mode == "constant":
        return constant_pad(ctx, x, pad_)
    for i in range(len(pad_) // 2):
        if pad_[2 * i] or pad_[2 * i + 1]:
            ctx.lock(x.along(len(x.shape) - 1 - i), f"is padded with mode {mode!r}")
    return moved(x, ctx.shape, [f for f in x.fields if all(a < len(x.shape) - len(pad_) // 2 for a in axes_of(f))])


@register_rule("aten.pixel_shuffle")
def pixel_shuffle(ctx: RuleContext, x: Labels, factor: int) -> Labels:
    """Blocks of ``factor**2`` channels become space: each block leaves whole."""
    axis, plain = _without_space(ctx, x, "pixel shuffle")
    return moved(x, ctx.shape, [_keep_block_heads(ctx, f, axis, factor * factor) for f in plain])


def _keep_block_heads(ctx: RuleContext, labels: Field, axis: int, block: int) -> Field:
    if labels.shape[axis] == 1:
        return labels
    _leave_in_blocks(ctx, labels, axis, block)
    return labels[(slice(None),) * axis + (slice(0, None, block),)]


@register_rule("aten.pixel_unshuffle")
def pixel_unshuffle(ctx: RuleContext, x: Labels, factor: int) -> Labels:
    """Space becomes channels: every channel stands ``factor**2`` times in a row."""
    axis, plain = _without_space(ctx, x, "pixel unshuffle")
    return moved(x, ctx.shape, [np.repeat(f, factor * factor, axis) if f.shape[axis] > 1 else f for f in plain])


def _without_space(ctx: RuleContext, x: Labels, name: str) -> tuple[int, list[Field]]:
    """Return the channel axis of an image and the fields that do not vary in space; the others lock."""
    axis = len(x.shape) - 3
    for f in x.fields:
        if max(f.shape[axis + 1 :]) > 1:
            ctx.lock(f, f"has tracked spatial axes in a {name}")
    return axis, [f for f in x.fields if max(f.shape[axis + 1 :]) == 1]


@register_rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(ctx: RuleContext, x: Labels, groups: int) -> Labels:
    """Channels dealt out over groups: the same position of every group leaves together."""
    labels = x.along(1)
    if labels is None:
        return x
    if len(axes_of(labels)) > 1:
        ctx.lock(labels, "is shuffled while it varies along other axes")
        return x
    _unite_pieces(ctx, labels, 1, groups)
    shuffled = labels.reshape(groups, -1).T.reshape(labels.shape)
    return moved(x, ctx.shape, [shuffled if f is labels else f for f in x.fields])


@register_rule("aten.im2col")
def unfold_patches(ctx: RuleContext, x: Labels, kernel_size: Sequence[int], *args: Any, **kwargs: Any) -> Labels:
    """Patches become channels: every channel stands ``kernel height x width`` times in a row."""
    labels = x.along(1)
    ctx.lock_all([Labels(x.shape, tuple(f for f in x.fields if f is not labels))], "is unfolded into patches")
    if labels is None or len(axes_of(labels)) > 1:
        ctx.lock(labels, "is unfolded into patches while it varies along other axes")
        return Labels(ctx.shape)
    repeated = np.repeat(labels.ravel(), int(np.prod(kernel_size)))
    return moved(x, ctx.shape, [on_axis(repeated, 1, 3)])


@register_rule("aten.col2im")
def fold_patches(ctx: RuleContext, x: Labels, output_size: Any, kernel_size: Sequence[int], *args: Any) -> Labels:
    """Patches become an image: each block of ``kernel height x width`` channels is one channel, and leaves whole."""
    axis = len(x.shape) - 2
    ctx.lock(x.along(axis + 1), "is folded from patches")
    fields = [f[..., None] for f in x.fields if f.shape[axis + 1] == 1]
    return moved(x, ctx.shape, [_keep_block_heads(ctx, f, axis, int(np.prod(kernel_size))) for f in fields]).computed()
