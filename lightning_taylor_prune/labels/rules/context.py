"""What a label rule knows of its operator, and what it may do to the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.fx import Node

from lightning_taylor_prune.labels.rules.registry import describe_operator
from lightning_taylor_prune.labels.space import Field, Labels, LabelSpace, axes_of, first_along

Results = Labels | list[Labels]
"""Labels of the result of an operator, or of each of its results."""


@dataclass
class Expectation:
    """An integer argument of an operator that must equal the number of kept positions on an axis of these labels.

    Attributes:
        argument: Reads it from the operator's arguments.
        labels: A field; it may vary along other axes too, as long as only whole rows or columns are removed.
        axis: The axis.
        offset: Constant difference between the argument and that number.
        meaning: What the argument is, for messages.
    """

    argument: Callable[..., int]
    labels: Field
    axis: int
    offset: int
    meaning: str


class Rectangle(NamedTuple):
    """A field that may vary along several axes at once, while only whole rows or columns of it can be removed.

    Attributes:
        labels: The field.
        pinned: Axes along which it must not vary at the end: an index or a fixed count is taken there.
        choice: Which of the axes that are free to shrink is preferred, the longest being number 0.
        where: Operator and source line, for messages.
    """

    labels: Field
    pinned: tuple[int, ...]
    choice: int
    where: str


class Deferred(NamedTuple):
    """A constant that is combined with rows and columns of channels, of which only one kind can be removed.

    Attributes:
        labels: The rows and columns.
        narrow: The constant's labels, along some of the same axes.
        where: Operator and source line, for messages.
    """

    labels: Field
    narrow: Field
    where: str


@dataclass
class Notes:
    """What the rules of one trace record for later."""

    readers: list[Field] = field(default_factory=list)
    writers: list[Field] = field(default_factory=list)
    rectangles: list[Rectangle] = field(default_factory=list)
    deferred: list[Deferred] = field(default_factory=list)
    expectations: dict[int, list[Expectation]] = field(default_factory=dict)
    macs: dict[int, list[tuple[int, list[Field]]]] = field(default_factory=dict)


@dataclass
class RuleContext:
    """What a rule knows of its operator, and the methods with which it ties, locks and counts labels.

    Attributes:
        space: The union-find.
        notes: Where readers, writers and expectations are collected.
        node: The fx node.
        index: Position of the node among the operators of its trace.
        unused: Nothing reads the results.
    """

    space: LabelSpace
    notes: Notes
    node: Node
    index: int
    unused: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return self.shapes[0]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all results; ``()`` for results that are not tensors."""
        shapes: list[tuple[int, ...]] = self.node.meta["shapes"]
        return shapes

    def where(self) -> str:
        """Name operator and source line, for messages."""
        return describe_operator(self.node)

    def lock(self, labels: Field | None, why: str) -> None:
        """Lock labels, if there are any; operator and source line are added to the reason."""
        if labels is not None:
            self.space.lock(labels, f"{why} ({self.where()})")

    def lock_all(self, values: Sequence[Labels], why: str) -> None:
        """Lock all labels of these tensors."""
        for value in values:
            for f in value.fields:
                self.lock(f, why)

    def free(self, count: int) -> Field:
        """Make labels for positions that this operator creates (padding, fills, expansion)."""
        return self.space.fresh(count)

    def tie(self, a: Field | None, b: Field | None, why: str) -> None:
        """Unite two fields. If only one exists, lock it: the other tensor cannot shrink along this axis."""
        if a is not None and b is not None:
            self.space.unite(a, b)
        else:
            self.lock(a if a is not None else b, why)

    def pin(self, labels: Field, axis: int) -> None:
        """Demand that ``labels`` never vary along ``axis`` (the code uses an index or a fixed count there)."""
        self.rectangle(labels, (axis,))

    def rectangle(self, labels: Field, pinned: tuple[int, ...] = (), choice: int = 0) -> None:
        """Demand that at the end ``labels`` vary along one axis only, see :class:`Rectangle`."""
        self.notes.rectangles.append(Rectangle(labels, pinned, choice, self.where()))

    def drop(self, labels: Field, axis: int) -> Field:
        """Reduce an axis to size 1; if the field also varies along other axes, unite along this one."""
        if set(self.space.varies(labels)) - {axis}:
            return self.space.unite_along(labels, axis)
        return first_along(labels, axis)

    def expect(self, argument: Callable[..., int], labels: Field, meaning: str, axis: int = 0, offset: int = 0) -> None:
        """Demand that an integer argument equals the number of kept positions; every dry run compares them.

        Args:
            argument: Reads the integer from the operator's arguments.
            labels: A field.
            meaning: What the argument is, for messages.
            axis: The axis of ``labels`` whose positions count.
            offset: Constant difference between the argument and their number.
        """
        expectation = Expectation(argument, labels, axis, offset, meaning)
        self.notes.expectations.setdefault(self.index, []).append(expectation)

    def mark_inexact(self, labels: Field) -> None:
        """Record that removing these channels is not the same as setting them to zero, if anything reads the result."""
        if not self.unused:
            self.space.mark_inexact(labels)

    def defer(self, labels: Field, narrow: Field) -> None:
        """Tie ``narrow`` to ``labels`` if positions of their common axes can be removed; else it keeps its size."""
        self.rectangle(labels)
        self.notes.deferred.append(Deferred(labels, narrow, self.where()))

    def count_macs(self, factor: int, axes: Sequence[tuple[int, Field | None]]) -> None:
        """Record a cost in MACs: ``factor`` times the number of kept positions on each axis.

        Args:
            factor: Whatever does not depend on labels.
            axes: Size of each axis, and the field that varies along it.
        """
        fixed = math.prod(size for size, labels in axes if labels is None)
        tracked = [labels for _, labels in axes if labels is not None]
        self.notes.macs.setdefault(self.index, []).append((factor * fixed, tracked))

    def reader(self, labels: Field | None) -> None:
        """Record that these labels of a weight read channels: the weight is summed over them."""
        if labels is not None:
            self.notes.readers.append(labels)

    def writer(self, labels: Field | None) -> None:
        """Record that these labels of a weight write channels."""
        if labels is not None:
            self.notes.writers.append(labels)


def align(value: Labels, ndim: int) -> Labels:
    """Prepend axes of size 1, as broadcasting does."""
    if len(value.shape) == ndim:
        return value
    lead = (1,) * (ndim - len(value.shape))
    return Labels(
        lead + value.shape, tuple(f.reshape(lead + f.shape) for f in value.fields), value.direct, value.static
    )


def combine(ctx: RuleContext, operands: Sequence[Labels], shape: tuple[int, ...]) -> tuple[Field, ...]:
    """Unite the labels of operands of equal rank at the same positions; lock axes that only some operands track."""
    _check_tracked(ctx, operands, shape)
    return ctx.space.merge([f for v in operands for f in v.fields])


def _check_tracked(ctx: RuleContext, operands: Sequence[Labels], shape: tuple[int, ...]) -> None:
    for axis, size in enumerate(shape):
        present = [v for v in operands if v.shape[axis] == size > 1]
        tracked = [f for v in present if (f := v.along(axis)) is not None]
        if len(tracked) < len(present):
            for f in tracked:
                if len(axes_of(f)) > 1:
                    ctx.pin(f, axis)
                else:
                    ctx.lock(f, "is combined with a tensor that cannot shrink along this axis")


def pointwise(ctx: RuleContext, operands: Sequence[Labels], shape: tuple[int, ...]) -> Labels:
    """Broadcast operands to ``shape`` and unite the labels of equal positions.

    Channels may stand in rows and columns (heads and their width) and be combined with a constant along one of these.
    Whether rows or columns can be removed is not known yet: the constant then follows, or keeps its size.
    """
    aligned = [align(value, len(shape)) for value in operands]
    _check_tracked(ctx, aligned, shape)
    wide = [f for v in aligned if not v.static for f in v.fields if len(ctx.space.varies(f)) > 1]
    together = []
    for value in aligned:
        for f in value.fields:
            wider = next((w for w in wide if set(axes_of(f)) < set(axes_of(w))), None) if value.static else None
            if wider is None:
                together.append(f)
            else:
                ctx.defer(wider, f)
    fields = ctx.space.merge(together)
    return Labels(shape, tuple(f for f in fields if axes_of(f)), static=all(v.static for v in operands))


def find_labels(values: Any) -> list[Labels]:
    """Return all labels in nested lists and tuples of arguments."""
    if isinstance(values, Labels):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [found for value in values for found in find_labels(value)]
