"""Rules for operators that regroup axes: the same operation is run on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.labels.rules.axes import moved
from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, first_along


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


def _reshape(ctx: RuleContext, x: Labels, choice: int) -> Labels:
    shape = ctx.shape
    if 0 in shape:
        ctx.lock_all([x], "is part of a tensor without elements")
        return Labels(shape)
    # A weight counts its channels before its kernel positions, and these are never removed.
    fields = sorted(x.fields, key=lambda f: f.min()) if x.static else x.fields
    fields = _one_per_axis(ctx, [_compact(ctx, reshape_field(f, x.shape, shape)) for f in fields])
    for f in fields:
        if len(axes_of(f)) > 1:
            ctx.rectangle(f, choice=choice)
    return moved(x, shape, fields)


def reshape_to_second_axis(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Regroup axes; if channels then stand in rows and columns, the second longest axis shrinks."""
    return _reshape(ctx, x, choice=1)


_REGROUPING = """
    view reshape _unsafe_view _reshape_alias flatten unflatten squeeze unsqueeze reshape_as view_as ravel
    atleast_1d atleast_2d atleast_3d
"""


# If code uses the size of one axis for another one, it is often in a reshape: so a tie is tried first.
@register_rule(*(f"aten.{name}" for name in _REGROUPING.split()), after_ties=[reshape_to_second_axis])
def reshape(ctx: RuleContext, x: Labels, *args: Any, **kwargs: Any) -> Labels:
    """Regroup axes, as the shapes of operand and result say."""
    return _reshape(ctx, x, choice=0)


def _one_per_axis(ctx: RuleContext, fields: Sequence[Field]) -> list[Field]:
    """Where several tracked axes become one, track the first that can shrink; the others keep their size."""
    clashing = [f for f in fields if any(g is not f and set(axes_of(f)) & set(axes_of(g)) for g in fields)]
    fixed = {id(f) for f in clashing if ctx.space.is_locked(f)}
    kept: list[Field] = []
    for f in (f for f in fields if id(f) not in fixed):
        if any(set(axes_of(f)) & set(axes_of(other)) for other in kept):
            ctx.lock(f, "is flattened into one axis with other channels")
        else:
            kept.append(f)
    return kept


def _compact(ctx: RuleContext, labels: Field) -> Field:
    """Stop tracking axes along which all labels are equal, unless no axis would be tracked any more."""
    varying = ctx.space.varies(labels)
    for axis in axes_of(labels) if varying else ():
        if axis not in varying:
            labels = first_along(labels, axis)
    return labels
