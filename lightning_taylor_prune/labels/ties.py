"""Axes that are tied because the network's code uses the size of one for the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_taylor_prune.labels.places import Tie
from lightning_taylor_prune.labels.space import Labels, LabelSpace


def apply_tie(space: LabelSpace, results: Sequence[Sequence[Sequence[Labels]]], tie: Tie) -> None:
    """Unite two axes position by position. If only one is tracked, lock it: the other one cannot shrink.

    Args:
        space: The labels.
        results: Per trace and operator, the labels of its results.
        tie: The axes.
    """
    first, second = (results[ref.trace][ref.op][ref.number].along(ref.axis) for ref in tie)
    if first is None or second is None:
        for labels in (first, second):
            if labels is not None:
                space.lock(labels, "takes its size from an axis that cannot shrink")
        return
    longer, line = np.moveaxis(first, tie.axis.axis, -1), np.moveaxis(second, tie.follows.axis, -1)
    for axis in range(line.ndim - 1):
        line = space.unite_along(line, axis)
    line = line.ravel()
    space.unite(longer.reshape(*longer.shape[:-1], -1, len(line)), line)
