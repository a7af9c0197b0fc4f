"""What an interpretation says, arranged for counting: units, groups and every size that depends on them.

Nothing here changes when channels leave; a boolean array over labels (``alive``) says which are still there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_taylor_prune.interpret import AxisRef, Interpretation
from lightning_taylor_prune.labels import Field, Labels, axes_of, first_along
from lightning_taylor_prune.modules import AttributeUpdate, size_updates
from lightning_taylor_prune.rules.base import Expectation
from lightning_taylor_prune.trace import Trace

Alive = npt.NDArray[np.bool_]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """Units that touch the same parameter axes: a group, whatever its current size.

    Attributes:
        name: Module of the first writer, numbered where several families share it.
        roots: Root label of each unit, in the order of the first writer's channels.
        exact: Removing a unit is the same as setting it to zero.
    """

    name: str
    roots: Field
    exact: bool


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


SizeRef = AxisRef | ArgumentRef
"""A size in the network."""


class SizeRule(NamedTuple):
    """An integer that a module holds, and the size in the network that it is proportional to.

    Attributes:
        module: Qualified name of the module.
        path: Where the module holds it, see :func:`~lightning_taylor_prune.modules.find_sizes`.
        original: Its value before anything left.
        follows: The size.
    """

    module: str
    path: str
    original: int
    follows: SizeRef


def proportional(value: int, size: int, original: int) -> int | None:
    """Return ``value * size / original`` where that is a whole number."""
    quotient, rest = divmod(value * size, original)
    return None if rest else quotient


class _Counter:
    """Collects label arrays to be counted together; the same array object is counted once."""

    def __init__(self, roots: Field) -> None:
        self._roots = roots
        self._arrays: list[Field] = []
        self._numbers: dict[int, tuple[int, int] | None] = {}
        self._kept_alive: list[Field] = []

    def is_one_unit(self, labels: Field) -> bool:
        """Whether all of an array's labels leave together, so that an axis of its own never shrinks."""
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
        found = (self._lookup(f, lambda f=f: self._varying_line(f)) for f in value.fields)  # type: ignore[misc]
        return ShapeRule(value.shape, tuple(pair for pair in found if pair is not None))

    def _lookup(self, labels: Field, make) -> tuple[int, int] | None:  # type: ignore[no-untyped-def]
        if id(labels) not in self._numbers:
            self._kept_alive.append(labels)
            line = make()
            if line is not None:
                self._arrays.append(line[1])
                line = (line[0], len(self._arrays) - 1)
            self._numbers[id(labels)] = line
        return self._numbers[id(labels)]

    def _varying_line(self, labels: Field) -> tuple[int, Field] | None:
        roots = self._roots[labels]
        axes = [a for a in axes_of(roots) if (roots != first_along(roots, a)).any()]
        if len(axes) != 1:
            return None
        return axes[0], np.moveaxis(roots, axes[0], -1).reshape(-1, roots.shape[axes[0]])[0]

    def finish(self) -> tuple[Field, Field]:
        """Return all arrays in one, and where each starts."""
        lengths = [len(a) for a in self._arrays]
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        return np.concatenate(self._arrays) if self._arrays else np.empty(0, dtype=np.int64), starts


class Structure:
    """Units, groups, and rules for every shape in the network.

    Attributes:
        interpretation: What this was made from.
        families: The groups.
        tensors: Shape rule of every parameter and buffer.
        results: Per trace and operator, shape rules of its results.
        expectations: Per trace and operator, what its integer arguments must equal.
        size_rules: Integers held by modules that follow what leaves, found by evidence.
        rewritten: Names of the modules that get a generated `forward`, so that integers in their code can follow.
    """

    def __init__(self, interpretation: Interpretation) -> None:
        self.interpretation = interpretation
        counter = _Counter(interpretation.roots)
        self.tensors = self._tensor_rules(counter)
        self.results = [[[counter.shape_rule(v) for v in values] for values in run] for run in interpretation.results]
        self.expectations = [
            {
                index: [ExpectedArgument(e, counter.shape_rule_of(e.labels)) for e in found]
                for index, found in run.items()
            }
            for run in interpretation.expectations
        ]
        self._macs = [
            self._cost(counter, factor, fields)
            for number in _traces_of_one_run(interpretation.traces)
            for costs in interpretation.macs[number].values()
            for factor, fields in costs
        ]
        self._flat, self._starts = counter.finish()
        self.size_rules: tuple[SizeRule, ...] = ()
        self.rewritten: tuple[str, ...] = ()
        self.families = _find_families(self)

    @cached_property
    def axis_of_label(self) -> Field:
        """Number of the parameter axis that each parameter label lies on."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def sizes(self) -> Field:
        """Length of every parameter axis."""
        return np.array([axis.size for axis in self.interpretation.axes], dtype=np.int64)

    @cached_property
    def parameter_roots(self) -> Field:
        """Roots of the labels on parameter axes, axis after axis."""
        return self.interpretation.roots[: int(self.sizes.sum())]

    def roots_on(self, number: int) -> Field:
        """Return the roots along one parameter axis."""
        axis = self.interpretation.axes[number]
        return self.interpretation.roots[axis.start : axis.start + axis.size]

    def everything(self) -> Alive:
        """Return the state in which nothing has left."""
        return np.ones(len(self.interpretation.roots), dtype=bool)

    def counts(self, alive: Alive) -> list[int]:
        """Return every registered count."""
        if not len(self._flat):
            return []
        return np.add.reduceat(alive[self._flat], self._starts, dtype=np.int64).tolist()

    def tensor_shapes(self, alive: Alive) -> dict[str, Shape]:
        """Return the shape of every parameter and buffer, tied ones under their first name."""
        counts = self.counts(alive)
        return {name: rule.apply(counts) for name, rule in self.tensors.items()}

    def has(self, ref: SizeRef) -> bool:
        """Whether a size is there: what is expected of an argument depends on how its operator is interpreted."""
        return isinstance(ref, AxisRef) or ref.number < len(self.expectations[ref.trace].get(ref.op, ()))

    def argument_roots(self) -> Iterator[Field]:
        """Yield the roots of the positions that each integer argument counts, where it must follow the channels."""
        expected = (e.expectation.labels for run in self.expectations for found in run.values() for e in found)
        for labels in {id(labels): labels for labels in expected}.values():
            yield self.interpretation.roots[labels].ravel()

    def size(self, ref: SizeRef, counts: Sequence[int] | None) -> int:
        """Return a size at these counts; ``None``: before anything left."""
        if isinstance(ref, ArgumentRef):
            expected = self.expectations[ref.trace][ref.op][ref.number]
            return expected.value(counts if counts is not None else self.full_counts)
        rule = self.results[ref.trace][ref.op][ref.number]
        return (rule.shape if counts is None else rule.apply(counts))[ref.axis]

    @cached_property
    def full_counts(self) -> list[int]:
        """Every registered count before anything left."""
        return self.counts(self.everything())

    def size_updates(self, root: nn.Module, counts: Sequence[int]) -> list[AttributeUpdate]:
        """Return the integers that modules hold, by evidence, at their values for these counts."""
        wanted: dict[str, dict[str, int]] = {}
        for rule in self.size_rules:
            value = proportional(rule.original, self.size(rule.follows, counts), self.size(rule.follows, None))
            wanted.setdefault(rule.module, {})[rule.path] = rule.original if value is None else value
        return [u for name, sizes in wanted.items() for u in size_updates(root.get_submodule(name), sizes)]

    def macs(self, alive: Alive) -> int:
        """Return the MACs of the first traced call; of all parts, where the network cannot be traced as a whole."""
        counts = self.counts(alive)
        return sum(factor * math.prod(counts[n] for n in numbers) for factor, numbers in self._macs)

    @staticmethod
    def _cost(counter: _Counter, factor: int, fields: Sequence[Field]) -> tuple[int, list[int]]:
        """Split a cost into what never changes, axes that are one unit included, and the numbers of the counts."""
        fixed = [f for f in fields if counter.is_one_unit(f)]
        moving = [f for f in fields if all(f is not other for other in fixed)]
        return factor * math.prod(len(f) for f in fixed), [counter.number_of(f) for f in moving]

    def _tensor_rules(self, counter: _Counter) -> dict[str, ShapeRule]:
        counted: dict[str, list[tuple[int, int]]] = {}
        for axis in self.interpretation.axes:
            number = counter.number_of(np.arange(axis.start, axis.start + axis.size))
            counted.setdefault(axis.tensor, []).append((axis.dim, number))
        rules, seen = {}, set()
        for name, tensor in self.interpretation.traces[0].tensors.items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                rules[name] = ShapeRule(tuple(tensor.shape), tuple(counted.get(name, ())))
        return rules


def _traces_of_one_run(traces: Sequence[Trace]) -> list[int]:
    """Return the numbers of the traces that make up one run: the first, or every part in the first one's mode."""
    first = traces[0]
    return [i for i, t in enumerate(traces) if t is first or (t.call.piece and t.training == first.training)]


def _find_families(structure: Structure) -> tuple[Family, ...]:
    """Sort prunable units into families by the set of axes that they touch."""
    roots, axis_of = structure.parameter_roots, structure.axis_of_label
    prunable = _prunable(structure)
    chosen = np.flatnonzero(prunable[roots])
    if not len(chosen):
        return ()
    units, unit_of = np.unique(roots[chosen], return_inverse=True)
    axis_count = len(structure.sizes)
    pairs = np.unique(unit_of * axis_count + axis_of[chosen])
    marks = np.random.default_rng(0).integers(0, 2**63, axis_count, dtype=np.uint64)
    keys = np.zeros(len(units), dtype=np.uint64)
    np.add.at(keys, pairs // axis_count, marks[pairs % axis_count])
    ranks, labels = _first_writers(structure, chosen, unit_of, len(units))
    order = np.lexsort((labels, ranks))
    families: dict[int, list[int]] = {}
    for unit in order.tolist():
        families.setdefault(int(keys[unit]), []).append(unit)
    inexact = set(structure.interpretation.inexact.tolist())
    names = _names(structure, [int(labels[members[0]]) for members in families.values()])
    return tuple(
        Family(name, units[members], inexact.isdisjoint(units[members].tolist()))
        for name, members in zip(names, families.values(), strict=True)
    )


def _prunable(structure: Structure) -> Alive:
    """Return, by root, what is not locked and is written or read by some weight."""
    interpretation = structure.interpretation
    prunable = np.zeros(len(interpretation.roots), dtype=bool)
    for number in {*interpretation.readers, *interpretation.writers}:
        prunable[structure.roots_on(number)] = True
    prunable[list(interpretation.locked)] = False
    return prunable


def _first_writers(structure: Structure, chosen: Field, unit_of: Field, count: int) -> tuple[Field, Field]:
    """Return each unit's earliest writer axis (its rank in execution order) and first label there."""
    axis_count = len(structure.sizes)
    rank_of_axis = np.arange(axis_count) + axis_count
    writers = structure.interpretation.writers
    rank_of_axis[list(writers)] = np.arange(len(writers))
    ranks = np.full(count, 2 * axis_count)
    rank = rank_of_axis[structure.axis_of_label[chosen]]
    np.minimum.at(ranks, unit_of, rank)
    first = rank == ranks[unit_of]
    labels = np.full(count, len(structure.interpretation.roots))
    np.minimum.at(labels, unit_of[first], chosen[first])
    return ranks, labels


def _names(structure: Structure, labels: Sequence[int]) -> list[str]:
    """Name families after the module that holds their first writer."""
    names: list[str] = []
    used: dict[str, int] = {}
    for label in labels:
        tensor = structure.interpretation.axes[int(structure.axis_of_label[label])].tensor
        name = layer_name(tensor)
        used[name] = used.get(name, 0) + 1
        names.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return names


def layer_name(tensor: str) -> str:
    """Return the module's name for a parameter's: ``"conv1"`` for ``"conv1.weight"``, parametrized or not."""
    owner, _, name = tensor.rpartition(".")
    return owner.partition(".parametrizations.")[0] or name


def locked_channels(structure: Structure) -> Mapping[tuple[str, str], int]:
    """Return how many channels each writer cannot lose, by (layer, reason)."""
    interpretation = structure.interpretation
    locked = interpretation.locked
    table: dict[tuple[str, str], int] = {}
    for number in interpretation.writers:
        axis = interpretation.axes[number]
        roots, counts = np.unique(structure.roots_on(number), return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root in locked:
                key = (layer_name(axis.tensor), locked[root])
                table[key] = table.get(key, 0) + count
    return table
