"""Labels that vary along several axes at once: only whole rows, or whole columns, can be removed."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_taylor_prune.labels.rules.context import Deferred, Rectangle
from lightning_taylor_prune.labels.space import LabelSpace, axes_of


def settle_rectangles(space: LabelSpace, rectangles: Sequence[Rectangle], deferred: Sequence[Deferred]) -> None:
    """Unite until every recorded field varies along one axis that is free to shrink."""
    changed = True
    while changed:
        changed = sum(_settle(space, rectangle) for rectangle in rectangles) > 0
        changed |= sum(_settle_deferred(space, entry) for entry in deferred) > 0


def _settle(space: LabelSpace, rectangle: Rectangle) -> bool:
    """Unite along all axes but one; returns whether anything was united."""
    labels = rectangle.labels
    varying = space.varies(labels)
    free = sorted(set(varying) - set(rectangle.pinned), key=lambda axis: (-labels.shape[axis], axis))
    if not free:
        if varying:
            space.lock(labels, f"is selected by a fixed index ({rectangle.where})")
        return False
    chosen = free[min(rectangle.choice, len(free) - 1)]
    for axis in set(varying) - {chosen}:
        labels = space.unite_along(labels, axis)
    return len(varying) > 1


def _settle_deferred(space: LabelSpace, entry: Deferred) -> bool:
    """Tie a constant to the channels that it is combined with, if these can be removed along its axes."""
    labels, narrow = entry.labels, entry.narrow
    if set(space.varies(labels)) & set(axes_of(narrow)):
        if (space.find(labels) == space.find(narrow)).all():
            return False
        space.unite(labels, narrow)
        return True
    if space.varies(narrow):
        space.lock(
            narrow, f"is combined with channels that can only be removed in whole rows across it ({entry.where})"
        )
    return False
