"""Every size in a network as a count of labels that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lightning_taylor_prune.groups.memory import Allocation, allocations_of, peak
from lightning_taylor_prune.groups.shapes import (
    ArgumentRef,
    AxisCounts,
    ExpectedArgument,
    KeepMask,
    Shape,
    ShapeRule,
    SizeRef,
    TensorRef,
)
from lightning_taylor_prune.labels.places import AxisRef, Site
from lightning_taylor_prune.labels.propagate import Propagation
from lightning_taylor_prune.labels.space import Field
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass(frozen=True, eq=False)
class Structure:
    """Rules for every shape in the network, whichever channels have been removed.

    Attributes:
        propagation: What this was made from.
        tensors: Shape rule of every parameter and buffer, tied ones under their first name.
        results: Per trace and operator, shape rules of its results.
        expectations: Per trace and operator, what its integer arguments must equal.
        products: The cost in MACs as a sum of products: a factor, and the numbers of the counts it is multiplied with.
        counted: The labels that each count counts, one after another.
        starts: Where each count's labels start.
    """

    propagation: Propagation
    tensors: Mapping[str, ShapeRule]
    results: Sequence[Sequence[Sequence[ShapeRule]]]
    expectations: Sequence[Mapping[int, Sequence[ExpectedArgument]]]
    products: Sequence[tuple[int, Sequence[int]]]
    counted: Field
    starts: Field

    @staticmethod
    def of(propagation: Propagation) -> Structure:
        """Arrange the outcome of a propagation for counting."""
        counts = AxisCounts(propagation.roots)
        tensors = _tensor_rules(propagation, counts)
        results = [[[counts.shape_rule(v) for v in values] for values in run] for run in propagation.results]
        expectations = [
            {
                index: [ExpectedArgument(e, counts.shape_rule_of(e.labels)) for e in found]
                for index, found in run.items()
            }
            for run in propagation.expectations
        ]
        products = [
            _product(counts, factor, fields)
            for number in _traces_of_one_run(propagation.traces)
            for costs in propagation.macs[number].values()
            for factor, fields in costs
        ]
        return Structure(propagation, tensors, results, expectations, products, *counts.finish())

    @cached_property
    def axis_of_label(self) -> Field:
        """Number of the parameter axis that each parameter label lies on."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def sizes(self) -> Field:
        """Length of every parameter axis."""
        return np.array([axis.size for axis in self.propagation.axes], dtype=np.int64)

    @cached_property
    def parameter_roots(self) -> Field:
        """Roots of the labels on parameter axes, axis after axis."""
        return self.propagation.roots[: int(self.sizes.sum())]

    def roots_on(self, number: int) -> Field:
        """Return the roots along one parameter axis."""
        axis = self.propagation.axes[number]
        return self.propagation.roots[axis.start : axis.start + axis.size]

    def roots_at(self, site: Site) -> set[int]:
        """Return the roots of all labels that an operator's operands and results have."""
        touched = self.propagation.touched[site.trace][site.op]
        fields = [self.propagation.roots[f] for value in touched for f in value.fields]
        return {int(root) for f in fields for root in np.unique(f).tolist()}

    def everything(self) -> KeepMask:
        """Return the state in which nothing is removed."""
        return np.ones(len(self.propagation.roots), dtype=bool)

    def counts(self, kept: KeepMask) -> list[int]:
        """Return every registered count."""
        if not len(self.counted):
            return []
        counts: list[int] = np.add.reduceat(kept[self.counted], self.starts, dtype=np.int64).tolist()
        return counts

    def tensor_shapes(self, kept: KeepMask) -> dict[str, Shape]:
        """Return the shape of every parameter and buffer, tied ones under their first name."""
        counts = self.counts(kept)
        return {name: rule.apply(counts) for name, rule in self.tensors.items()}

    def has(self, ref: SizeRef) -> bool:
        """Whether a size exists: which arguments have an expected value depends on the rule of their operator."""
        if isinstance(ref, TensorRef):
            return ref.tensor in self.tensors
        return isinstance(ref, AxisRef) or ref.number < len(self.expectations[ref.trace].get(ref.op, ()))

    def argument_roots(self) -> Iterator[Field]:
        """Yield the roots of the positions that each integer argument counts, where it must follow the channels."""
        expected = (e.expectation.labels for run in self.expectations for found in run.values() for e in found)
        for labels in {id(labels): labels for labels in expected}.values():
            yield self.propagation.roots[labels].ravel()

    def size(self, ref: SizeRef, counts: Sequence[int] | None) -> int:
        """Return a size at these counts; ``None``: before anything was removed."""
        if isinstance(ref, ArgumentRef):
            expected = self.expectations[ref.trace][ref.op][ref.number]
            return expected.value(counts if counts is not None else self.full_counts)
        if isinstance(ref, TensorRef):
            rule, axis = self.tensors[ref.tensor], ref.dim
        else:
            rule, axis = self.results[ref.trace][ref.op][ref.number], ref.axis
        return (rule.shape if counts is None else rule.apply(counts))[axis]

    @cached_property
    def full_counts(self) -> list[int]:
        """Every registered count before anything was removed."""
        return self.counts(self.everything())

    def macs(self, kept: KeepMask) -> int:
        """Return the MACs of the first traced call; of all submodules, where only these are traced."""
        counts = self.counts(kept)
        return sum(factor * math.prod(counts[n] for n in numbers) for factor, numbers in self.products)

    @cached_property
    def allocations(self) -> list[list[Allocation]]:
        """What the first traced call allocates; what each submodule does, where only these are traced."""
        traces = self.propagation.traces
        return [allocations_of(traces[n], self.results[n]) for n in _traces_of_one_run(traces)]

    def activation_memory(self, kept: KeepMask) -> int:
        """Return the most bytes of activations that are alive at once in the first traced call."""
        counts = self.counts(kept)
        return max(peak(allocations, counts) for allocations in self.allocations)


def _product(counts: AxisCounts, factor: int, fields: Sequence[Field]) -> tuple[int, list[int]]:
    """Split a cost into what never changes, axes that are one unit included, and the numbers of the counts."""
    fixed = [f for f in fields if counts.is_one_unit(f)]
    moving = [f for f in fields if all(f is not other for other in fixed)]
    return factor * math.prod(len(f) for f in fixed), [counts.number_of(f) for f in moving]


def _tensor_rules(propagation: Propagation, counts: AxisCounts) -> dict[str, ShapeRule]:
    counted: dict[str, list[tuple[int, int]]] = {}
    for axis in propagation.axes:
        number = counts.number_of(np.arange(axis.start, axis.start + axis.size))
        counted.setdefault(axis.tensor, []).append((axis.dim, number))
    rules, seen = {}, set()
    for name, tensor in propagation.traces[0].tensors.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            rules[name] = ShapeRule(tuple(tensor.shape), tuple(counted.get(name, ())))
    return rules


def _traces_of_one_run(traces: Sequence[Trace]) -> list[int]:
    """Return the numbers of the traces that make up one run: the first, or all submodules in its mode."""
    first = traces[0]
    return [i for i, t in enumerate(traces) if t is first or (t.call.is_submodule and t.training == first.training)]
