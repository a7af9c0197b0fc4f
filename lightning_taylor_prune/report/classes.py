"""Accuracy and confusion of single classes. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class ClassChange:
    """How well one class is recognised before and after.

    Attributes:
        name: Name of the class.
        count: Test examples of it.
        before: Share recognised by the original network, 0 to 1.
        after: Share recognised by the pruned network, 0 to 1.
    """

    name: str
    count: int
    before: float
    after: float

    @property
    def points(self) -> float:
        """Change in percentage points."""
        return 100 * (self.after - self.before)


@dataclass(frozen=True)
class Mistake:
    """A confusion of two classes: shares of the true class's examples, 0 to 1."""

    true: str
    predicted: str
    before: float
    after: float


@dataclass(frozen=True)
class Matrices:
    """Row-normalised confusion matrices of both networks, over all classes or some of them.

    Attributes:
        rows: Names of the true classes.
        columns: Names of the predicted classes; the last may stand for all others.
        before: The original network, 0 to 1, shape ``[rows, columns]``; NaN where a class has no examples.
        after: The same of the pruned network.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    before: Floats
    after: Floats


def row_normalized(counts: Counts) -> Floats:
    """Divide each row by its sum; a row of zeros becomes NaN.

    Example:
        >>> row_normalized([[3, 1], [0, 0]])
        array([[0.75, 0.25],
               [ nan,  nan]])
    """
    matrix = np.asarray(counts, dtype=np.float64)
    totals = matrix.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    return shares


def class_changes(names: Sequence[str], before: Counts, after: Counts) -> list[ClassChange]:
    """Return each class that has test examples, the worst drop first; ties in the order of the classes."""
    totals = np.asarray(before).sum(axis=1)
    old, new = np.diag(row_normalized(before)), np.diag(row_normalized(after))
    changes = [
        ClassChange(name, int(totals[i]), float(old[i]), float(new[i]))
        for i, name in enumerate(names)
        if totals[i] and np.isfinite(new[i])
    ]
    return sorted(changes, key=lambda change: round(change.points, 9))


def matrices(names: Sequence[str], before: Counts, after: Counts, limit: int) -> Matrices:
    """Return both confusion matrices; of more than ``limit`` classes those that changed most, and a column for others.

    Rows are in the order of the classes, so that related classes remain neighbours.
    """
    old, new = row_normalized(before), row_normalized(after)
    if len(names) <= limit:
        return Matrices(tuple(names), tuple(names), old, new)
    moved = np.nan_to_num(np.abs(np.diag(new) - np.diag(old)), nan=-1.0)
    chosen = np.sort(np.argsort(-moved, kind="stable")[:limit])
    rows = tuple(names[i] for i in chosen)
    return Matrices(rows, (*rows, "all others"), _with_others(old, chosen), _with_others(new, chosen))


def _with_others(matrix: Floats, chosen: npt.NDArray[np.int64]) -> Floats:
    inside = matrix[np.ix_(chosen, chosen)]
    return np.concatenate([inside, 1 - inside.sum(axis=1, keepdims=True)], axis=1)


def grown_mistakes(names: Sequence[str], before: Counts, after: Counts, limit: int) -> list[Mistake]:
    """Return the confusions of two classes that grew most, largest growth first, at most ``limit``."""
    old, new = row_normalized(before), row_normalized(after)
    growth = np.round(np.nan_to_num(new - old, nan=0.0), 9)  # equal growth is a tie, whatever the last bits
    np.fill_diagonal(growth, 0.0)
    order = np.argsort(-growth, axis=None, kind="stable")[:limit]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, growth.shape), strict=True)]
    return [Mistake(names[i], names[j], float(old[i, j]), float(new[i, j])) for i, j in pairs if growth[i, j] > 0]


def chance_points(changes: Sequence[ClassChange]) -> float:
    """Return the change, in percentage points, that a typical class may show by chance.

    Two standard errors of the difference of two shares, the median over classes. Both networks saw the same
    examples, so it is rather too large.
    """
    errors = [2 * np.sqrt((c.before * (1 - c.before) + c.after * (1 - c.after)) / c.count) for c in changes]
    return 100 * float(np.median(errors))
