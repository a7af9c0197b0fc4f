"""Helpers that several label rules share: for moved fields, and for axes that are cut into pieces or blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_taylor_prune.labels.rules.context import RuleContext
from lightning_taylor_prune.labels.space import Field, Labels, axes_of


def moved(x: Labels, shape: tuple[int, ...], fields: Sequence[Field]) -> Labels:
    """Return labels with moved fields, without the fields that now have size 1 on every axis."""
    return Labels(shape, tuple(f for f in fields if axes_of(f)), x.direct, x.static)


def locked_positions(ctx: RuleContext, count: int) -> Field:
    """Make locked labels for the positions of a tensor whose axis is not tracked, and so keeps its size."""
    labels = ctx.space.fresh(count)
    ctx.lock(labels, "is concatenated with a tensor that cannot shrink along this axis")
    return labels


def without_axis(x: Labels, axis: int) -> Labels:
    """Return the labels of one position along ``axis``, without the field that varies there."""
    return Labels(resized(x.shape, axis, 1), tuple(f for f in x.fields if f.shape[axis] == 1), x.direct, x.static)


def resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def range_of(labels: Field, dim: int, start: int, stop: int) -> Field:
    """Return the positions from ``start`` to ``stop`` on an axis, if it is tracked."""
    return labels if labels.shape[dim] == 1 else labels[(slice(None),) * dim + (slice(start, stop),)]


def lock_single_position(ctx: RuleContext, labels: Field, dim: int, start: int, length: int) -> None:
    """Lock a piece that is a single position: the code selects it by index, and no other may take its place."""
    if length == 1 < labels.shape[dim]:
        ctx.lock(range_of(labels, dim, start, start + 1), "is selected by a fixed index")


def unite_blocks(ctx: RuleContext, labels: Field, dim: int, step: int) -> None:
    """Unite every block of ``step`` positions, so that a strided slice still takes the same position of each block."""
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
