"""Integer labels on tensor axes, and the union-find that ties them together.

Everything here works on whole NumPy arrays of labels; nothing loops over channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a tensor.

    Attributes:
        shape: Shape of the tensor.
        fields: Integer arrays that broadcast over ``shape``: size 1 on every axis where the array tracks
            nothing. No two fields vary along the same axis.
        direct: The tensor is a parameter, perhaps moved (viewed, transposed, cast), not computed from one,
            so that ``(parameter * gradient)`` can be read per label.
        static: The tensor depends on parameters, buffers and constants only, not on the input.
    """

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()
    direct: bool = False
    static: bool = False

    def along(self, axis: int) -> Field | None:
        """Return the field that varies along ``axis``, if any."""
        axis %= max(len(self.shape), 1)
        return next((f for f in self.fields if f.shape[axis] > 1), None)

    def permuted(self, dims: Sequence[int]) -> Labels:
        """Return the labels of a tensor with the axes of this one in another order."""
        shape = tuple(self.shape[d] for d in dims)
        return replace(self, shape=shape, fields=tuple(f.transpose(dims) for f in self.fields))

    def computed(self) -> Labels:
        """Return the same labels for a tensor that was computed from this one."""
        return replace(self, direct=False)


def axes_of(field: Field) -> tuple[int, ...]:
    """Return the axes along which a field is stored in full."""
    return tuple(i for i, size in enumerate(field.shape) if size > 1)


def first_along(field: Field, axis: int) -> Field:
    """Return the field reduced to its first position on ``axis`` (kept as size 1)."""
    return field[(slice(None),) * axis + (slice(0, 1),)]


def on_axis(labels: Field, axis: int, ndim: int) -> Field:
    """Shape a 1-D label array as a field that varies along one axis of an ``ndim``-dimensional tensor."""
    return labels.reshape([-1 if i == axis else 1 for i in range(ndim)])


class LabelSpace:
    """Union-find over labels, with locks and flags; all operations take arrays.

    A *component* is a set of united labels: positions that can only be removed together.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._size = 0
        self._locks: list[tuple[Field, str]] = []
        self._inexact: list[Field] = []

    def __len__(self) -> int:
        return self._size

    def copy(self) -> LabelSpace:
        """Return the same labels, to be united and locked further without a change here."""
        other = LabelSpace()
        other._parent, other._size = self._parent.copy(), self._size
        other._locks, other._inexact = list(self._locks), list(self._inexact)
        return other

    def fresh(self, count: int) -> Field:
        """Make ``count`` new labels, each a component of its own. Returns int64, shape ``[count]``."""
        start, self._size = self._size, self._size + count
        while self._size > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        labels = np.arange(start, self._size)
        self._parent[start : self._size] = labels
        return labels

    def find(self, labels: Field) -> Field:
        """Return the root of each label's component, in the shape of ``labels``."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = self._parent[above]
        self._parent[labels] = roots
        return roots

    def unite(self, a: Field, b: Field) -> None:
        """Unite labels position by position, broadcasting ``a`` against ``b``."""
        a, b = np.broadcast_arrays(a, b)
        a, b = self.find(a.ravel()), self.find(b.ravel())
        while (differ := a != b).any():
            a, b = a[differ], b[differ]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
            a, b = self.find(a), self.find(b)

    def unite_along(self, field: Field, axis: int) -> Field:
        """Unite all positions along ``axis``; returns the field with that axis reduced to size 1."""
        first = first_along(field, axis)
        if field.shape[axis] > 1:
            self.unite(field, first)
        return first

    def lock(self, labels: Field, reason: str) -> None:
        """Forbid the removal of the components of ``labels``, and remember why."""
        self._locks.append((labels.ravel(), reason))

    def is_locked(self, labels: Field) -> bool:
        """Whether all of these labels are locked already, so that the axes they track keep their sizes."""
        locks = [np.unique(found) for found, _ in self._locks]
        return bool(locks) and bool(np.isin(self.find(labels), self.find(np.concatenate(locks))).all())

    def mark_inexact(self, labels: Field) -> None:
        """Record that removing these components is not the same as setting them to zero."""
        self._inexact.append(labels.ravel())

    def varies(self, field: Field) -> tuple[int, ...]:
        """Return the axes along which a field still varies once united labels count as equal."""
        if not (axes := axes_of(field)):
            return ()
        roots = self.find(field)
        return tuple(i for i in axes if (roots != first_along(roots, i)).any())

    def roots(self) -> Field:
        """Return the root of every label, shape ``[len(self)]``."""
        return self.find(np.arange(self._size))

    def locked(self) -> dict[int, str]:
        """Return the first reason for every locked root."""
        if not self._locks:
            return {}
        roots = self.find(np.concatenate([labels for labels, _ in self._locks]))
        lock_of_label = np.repeat(np.arange(len(self._locks)), [len(labels) for labels, _ in self._locks])
        found, first = np.unique(roots, return_index=True)
        locks = lock_of_label[first]
        by_lock = np.argsort(locks, kind="stable")
        return {int(found[i]): self._locks[locks[i]][1] for i in by_lock}

    def inexact(self) -> Field:
        """Return the roots of the components marked inexact, sorted."""
        if not self._inexact:
            return np.empty(0, dtype=np.int64)
        return np.unique(self.find(np.concatenate(self._inexact)))

    def merge(self, fields: Sequence[Field]) -> tuple[Field, ...]:
        """Unite fields of one tensor until no two of them vary along the same axis."""
        merged: list[Field] = []
        for field in fields:
            overlapping = [m for m in merged if set(axes_of(m)) & set(axes_of(field))]
            merged = [m for m in merged if all(m is not o for o in overlapping)]
            for other in overlapping:
                field = self._merge_pair(other, field)
            merged.append(field)
        return tuple(merged)

    def _merge_pair(self, a: Field, b: Field) -> Field:
        """Unite two overlapping fields; the result varies along the axes that both have.

        Its labels are those that were made first: parameters come before buffers, so that a weight under a mask reads
        and writes channels as that weight.
        """
        self.unite(a, b)
        a, b = (a, b) if a.min() <= b.min() else (b, a)
        for axis in set(axes_of(a)) - set(axes_of(b)):
            a = first_along(a, axis)
        return a
