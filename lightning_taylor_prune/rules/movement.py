"""Rules for operators that move data: the same operation is run on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels import Field, Labels, axes_of, first_along, on_axis
from lightning_taylor_prune.rules.base import RuleContext, align, pointwise, register_rule


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
    """Where several tracked axes become one, follow the first of them; the others keep their size."""
    kept: list[Field] = []
    for f in fields:
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


@register_rule("aten.index", "aten.index_select", "aten.gather", "aten.take_along_dim", "aten.masked_select")
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
