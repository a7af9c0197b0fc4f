"""Steps that several label rules share: moving fields, cutting axes into pieces and blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.space import Field, Labels, axes_of


def moved(x: Labels, shape: tuple[int, ...], fields: Sequence[Field]) -> Labels:
    """Wrap moved fields; what is no longer stored along any axis is dropped."""
    return Labels(shape, tuple(f for f in fields if axes_of(f)), x.direct, x.static)


def locked_positions(ctx: RuleContext, count: int) -> Field:
    """Make labels for positions of a tensor that is not tracked: its size is fixed."""
    labels = ctx.space.fresh(count)
    ctx.lock(labels, "is concatenated with a tensor whose size is fixed")
    return labels


def without_axis(x: Labels, axis: int) -> Labels:
    """Return the labels of one position along ``axis``, leaving out the field that varies there."""
    return Labels(resized(x.shape, axis, 1), tuple(f for f in x.fields if f.shape[axis] == 1), x.direct, x.static)


def resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def range_of(labels: Field, dim: int, start: int, stop: int) -> Field:
    """Return the positions from ``start`` to ``stop`` on an axis, if it is tracked."""
    return labels if labels.shape[dim] == 1 else labels[(slice(None),) * dim + (slice(start, stop),)]


def lock_single_position(ctx: RuleContext, labels: Field, dim: int, start: int, length: int) -> None:
    """A piece of one position is picked out by number: no other may take its place."""
    if length == 1 < labels.shape[dim]:
        ctx.lock(range_of(labels, dim, start, start + 1), "is picked out by number")


def unite_blocks(ctx: RuleContext, labels: Field, dim: int, step: int) -> None:
    """Unite every ``step`` positions in a row, so that a strided slice keeps its phase."""
    size = labels.shape[dim]
    if size % step:
        ctx.lock(labels, f"is sliced with a step that does not divide its {size} positions")
        return
    blocks = np.moveaxis(labels, dim, -1).reshape(-1, size // step, step)
    ctx.space.unite(blocks, blocks[..., :1])


def unite_pieces(ctx: RuleContext, labels: Field, dim: int, count: int) -> None:
    """Unite position i of every piece of an axis that is cut into ``count`` equal ones."""
    pieces = np.moveaxis(labels, dim, -1).reshape(-1, count, labels.shape[dim] // count)
    ctx.space.unite(pieces, pieces[:, :1])
