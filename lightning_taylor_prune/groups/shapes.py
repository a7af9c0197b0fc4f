"""Shapes whose axes are counts of labels that are kept, and integers that follow such a count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_taylor_prune.labels.places import AxisRef
from lightning_taylor_prune.labels.rules.context import Expectation
from lightning_taylor_prune.labels.space import Field, Labels, axes_of, first_along

KeepMask = npt.NDArray[np.bool_]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRule:
    """A shape, some axes of which are counted."""

    shape: Shape
    counted: tuple[tuple[int, int], ...]

    def apply(self, counts: Sequence[int]) -> Shape:
        """Return the shape with the counted axes filled in."""
        if not self.counted:
            return self.shape
        sizes = list(self.shape)
        for axis, number in self.counted:
            sizes[axis] = counts[number]
        return tuple(sizes)


class ExpectedArgument(NamedTuple):
    """An integer argument of an operator, and the rule of its value."""

    expectation: Expectation
    rule: ShapeRule

    def value(self, counts: Sequence[int]) -> int:
        """Return what the argument must be."""
        return self.rule.apply(counts)[self.expectation.axis] + self.expectation.offset


class ArgumentRef(NamedTuple):
    """One integer argument that must follow the channels: trace, position of the operator, which expectation."""

    trace: int
    op: int
    number: int


class TensorRef(NamedTuple):
    """One axis of a parameter or buffer, under its first name if it is tied."""

    tensor: str
    dim: int


TracedSize = AxisRef | ArgumentRef
"""A size that an operator has."""

SizeRef = TracedSize | TensorRef
"""A size in the network."""


def is_multiple(size: int, of: int) -> bool:
    """Whether a size is a whole number of times another; a size of 0 (a detector that finds nothing) has no multiples.

    Example:
        >>> is_multiple(12, 4), is_multiple(12, 5), is_multiple(12, 0)
        (True, False, False)
    """
    return of != 0 and size % of == 0


def varying_line(roots: Field) -> tuple[int, Field] | None:
    """Return the only axis along which the roots of a field vary, and the roots along it; else ``None``."""
    axes = [a for a in axes_of(roots) if (roots != first_along(roots, a)).any()]
    if len(axes) != 1:
        return None
    return axes[0], np.moveaxis(roots, axes[0], -1).reshape(-1, roots.shape[axes[0]])[0]


class AxisCounts:
    """Collects label arrays to be counted together; the same array object is counted once."""

    def __init__(self, roots: Field) -> None:
        self._roots = roots
        self._arrays: list[Field] = []
        self._numbers: dict[int, tuple[int, int] | None] = {}
        self._kept_arrays: list[Field] = []  # an id is only unique while its array exists

    def is_one_unit(self, labels: Field) -> bool:
        """Whether all labels of an array are removed together, so that an axis with these labels never shrinks."""
        roots = self._roots[labels]
        return bool((roots == roots[0]).all())

    def number_of(self, labels: Field) -> int:
        """Register a 1-D array of labels; returns its number."""
        found = self._lookup(labels, lambda: (0, self._roots[labels]))
        assert found is not None
        return found[1]

    def shape_rule_of(self, labels: Field) -> ShapeRule:
        """Register the axis along which a single field varies."""
        return self.shape_rule(Labels(labels.shape, (labels,)))

    def shape_rule(self, value: Labels) -> ShapeRule:
        """Register the axes along which a value's fields still vary."""
        found = (self._lookup(f, partial(varying_line, self._roots[f])) for f in value.fields)
        return ShapeRule(value.shape, tuple(pair for pair in found if pair is not None))

    def _lookup(self, labels: Field, make: Callable[[], tuple[int, Field] | None]) -> tuple[int, int] | None:
        if id(labels) not in self._numbers:
            self._kept_arrays.append(labels)
            line = make()
            if line is not None:
                self._arrays.append(line[1])
            self._numbers[id(labels)] = None if line is None else (line[0], len(self._arrays) - 1)
        return self._numbers[id(labels)]

    def finish(self) -> tuple[Field, Field]:
        """Return all arrays in one, and where each starts."""
        lengths = [len(a) for a in self._arrays]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        return np.concatenate(self._arrays) if self._arrays else np.empty(0, dtype=np.int64), starts
