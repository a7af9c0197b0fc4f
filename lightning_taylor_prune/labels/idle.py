"""Layers that no traced call runs: what they may read one day must still fit them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from lightning_taylor_prune.labels.space import Field, Labels, LabelSpace, axes_of
from lightning_taylor_prune.modules.idle import IdleAxis

COULD_BE_USED = "could be read or written by"
"""Begins the reason of a lock for the sake of a layer that does not run."""


def lock_unused(
    space: LabelSpace, used: Collection[str], parameters: Mapping[str, Labels], idle: Collection[tuple[str, int | None]]
) -> None:
    """Lock parameters and buffers that no trace uses, but for the axes of layers that do not run.

    Args:
        space: The labels.
        used: Names of those that are used.
        parameters: Labels of all of them by name.
        idle: Tensors and axes that :func:`settle_idle` sees to.
    """
    for name, value in parameters.items():
        if name not in used:
            for f in value.fields:
                if (name, axes_of(f)[0]) not in idle:
                    space.lock(f, "is not used in the forward pass")


def settle_idle(
    space: LabelSpace, axes: Sequence[IdleAxis], parameters: Mapping[str, Labels], values: Iterable[Labels]
) -> None:
    """Let the axes of layers that do not run follow the only channels that they can read or write, or lock these.

    Args:
        space: The labels; all operators must have tied theirs.
        axes: The axes of these layers.
        parameters: Labels of parameters and buffers by name.
        values: Labels of all inputs and results of the traced calls.
    """
    sizes = {axis.size for axis in axes if axis.size > 1}
    several = list(values)
    lines = _lines(sizes, several)
    unexplained = {axis.size for axis in axes if axis.size > 1 and axis.dim == 1} - set(lines)  # what a weight reads
    within = _lines_within(unexplained, several) if unexplained else {}
    for axis in axes:
        candidates = _distinct(space, lines.get(axis.size, within.get(axis.size, ()) if axis.dim == 1 else ()))
        free = [line for line in candidates if line is not None and not space.is_locked(line)]
        own = parameters[axis.tensor].along(axis.dim) if axis.dim is not None else None
        if axis.like and axis.dim is not None and own is not None:
            _follow_what_runs(space, axis, own.ravel(), parameters)
            continue
        if len(candidates) == len(free) == 1 and own is not None and len(free[0]) == axis.size:
            space.unite(own.ravel(), free[0])
            continue
        for line in free:
            space.lock(line, f"{COULD_BE_USED} `{axis.layer}`, which does not run in the calls that were analysed")
        if own is not None:
            space.lock(own, "is not used in the forward pass")


def _follow_what_runs(space: LabelSpace, axis: IdleAxis, own: Field, parameters: Mapping[str, Labels]) -> None:
    """Tie what a layer shares with the rest of the network to what the same layer of a part beside it shares."""
    inside = f"{axis.part_that_runs}."
    line = parameters[axis.like].along(axis.dim or 0)
    others = [f.ravel() for name, value in parameters.items() if not name.startswith(inside) for f in value.fields]
    if line is not None and others and np.isin(space.find(line.ravel()), space.find(np.concatenate(others))).any():
        space.unite(own, line.ravel())
    else:
        space.lock(own, "is not used in the forward pass")


def _lines(sizes: Collection[int], values: Iterable[Labels]) -> dict[int, list[Field | None]]:
    """Return the labels along every axis of the sizes asked for; ``None`` for one without, if it can be of channels."""
    found: dict[int, list[Field | None]] = {}
    for value in values:
        for axis, size in enumerate(value.shape):
            if size in sizes:
                labels = value.along(axis)
                line = None if labels is None or len(axes_of(labels)) > 1 else labels.ravel()
                if line is not None or axis < 2 or len(value.shape) < 4:  # an image has its channels before its places
                    found.setdefault(size, []).append(line)
    return found


def _lines_within(sizes: Collection[int], values: Sequence[Labels]) -> dict[int, list[Field | None]]:
    """Return the labels of channels of which a layer of some size could read several axes in one.

    These are the channels of an image and its places in one axis, or two results' channels in one.
    """
    found: dict[int, list[Field | None]] = {}
    channels: dict[tuple[int, ...], list[Field]] = {}
    for value in values:
        labels = value.along(1) if len(value.shape) > 1 else None
        if labels is None or len(axes_of(labels)) > 1 or not value.shape[1] > 1:
            continue
        line, count = labels.ravel(), math.prod(value.shape[1:])
        channels.setdefault(value.shape[:1] + value.shape[2:], []).append(line)
        if len(value.shape) > 2 and count in sizes:
            found.setdefault(count, []).append(line)
    for several in channels.values():
        by_size = {len(line): [other for other in several if len(other) == len(line)] for line in several}
        for size in sizes:
            for first, second in ((n, size - n) for n in by_size if size - n in by_size):
                found.setdefault(size, []).extend([*by_size[first], *by_size[second]])
    return found


def _distinct(space: LabelSpace, lines: Sequence[Field | None]) -> list[Field | None]:
    """Return the lines that differ in what they are tied to."""
    distinct: dict[bytes | None, Field | None] = {}
    for line in lines:
        roots = None if line is None else space.find(np.array(line))
        distinct.setdefault(None if roots is None else roots.tobytes(), line)
    return list(distinct.values())
