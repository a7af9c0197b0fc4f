"""The sizes in a network that pruning changes, each once: numbers of units, and their multiples on the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.shapes import Shape, ShapeRule
from lightning_taylor_prune.labels.space import Field


class Free(NamedTuple):
    """The size of an axis that pruning changes: so many times a number of units.

    Attributes:
        number: Which number of units, counted within one operator (or within a network).
        multiple: How many positions each unit has on the axis.
    """

    number: int
    multiple: int

    def __str__(self) -> str:
        letter = chr(ord("a") + self.number) if self.number < 26 else f"n{self.number}"
        return letter if self.multiple == 1 else f"{self.multiple}{letter}"


Size = int | Free
"""The size of an axis."""

SizedShape = tuple[Size, ...]
"""A shape, some of whose sizes pruning changes."""


def at(shape: SizedShape, units: Sequence[int]) -> Shape:
    """Return a shape at given numbers of units.

    Example:
        >>> at((8, Free(0, 64), 7), [3])
        (8, 192, 7)
    """
    return tuple(size if isinstance(size, int) else units[size.number] * size.multiple for size in shape)


@dataclass(frozen=True, eq=False)
class FreeSizes:
    """All numbers of units that pruning changes, of one network.

    Attributes:
        of_count: For every registered count of the network's structure the size it stands for.
        counts: For every number of units a registered count that tells it.
        roots: The units of every number, as roots of labels.
    """

    of_count: Sequence[Size]
    counts: Sequence[tuple[int, int]]
    roots: Sequence[Field]

    @staticmethod
    def of(groups: ChannelGroups) -> FreeSizes:
        """Find them: counts of the same units are the same size, or multiples of it."""
        structure = groups.structure
        prunable = np.zeros(len(structure.propagation.roots), dtype=bool)
        for family in groups.analysis.families:
            prunable[family.roots] = True
        ends = np.append(structure.starts[1:], len(structure.counted))
        known: dict[bytes, int] = {}
        sizes: list[Size] = []
        counts: list[tuple[int, int]] = []
        roots: list[Field] = []
        for number, (start, end) in enumerate(zip(structure.starts, ends, strict=True)):
            counted = structure.counted[start:end]
            if not prunable[counted].any():
                sizes.append(len(counted))
                continue
            units, multiple = _units(counted)
            index = known.setdefault(units.tobytes(), len(known))
            if index == len(counts):
                counts.append((number, multiple))
                roots.append(units)
            sizes.append(Free(index, multiple))
        return FreeSizes(sizes, counts, roots)

    def shape(self, rule: ShapeRule) -> SizedShape:
        """Return the shape that a rule describes."""
        sizes: list[Size] = list(rule.shape)
        for axis, number in rule.counted:
            sizes[axis] = self.of_count[number]
        return tuple(sizes)

    def units(self, counts: Sequence[int]) -> list[int]:
        """Return every number of units, given the counts of the network's structure."""
        return [counts[number] // multiple for number, multiple in self.counts]


def _units(counted: Field) -> tuple[Field, int]:
    """Return the units on an axis, sorted, and how many positions each of them has there.

    Where units differ in that, every position is taken for a unit.
    """
    units, positions = np.unique(counted, return_counts=True)
    multiple = int(positions[0])
    return (units, multiple) if (positions == multiple).all() else (np.sort(counted), 1)
