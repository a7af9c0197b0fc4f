"""The units that can be removed, sorted into families, and the channels that are locked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.space import Field
from lightning_taylor_prune.modules.likeness import is_inside


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


def find_families(structure: Structure) -> tuple[Family, ...]:
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
    inexact = set(structure.propagation.inexact.tolist())
    names = _names(structure, [int(labels[members[0]]) for members in families.values()])
    return tuple(
        Family(name, units[members], inexact.isdisjoint(units[members].tolist()))
        for name, members in zip(names, families.values(), strict=True)
    )


def _prunable(structure: Structure) -> KeepMask:
    """Return which roots are not locked, and are written or read by some weight."""
    propagation = structure.propagation
    prunable = np.zeros(len(propagation.roots), dtype=bool)
    for number in {*propagation.readers, *propagation.writers}:
        prunable[structure.roots_on(number)] = True
    prunable[list(propagation.locked)] = False
    return prunable


def _first_writers(structure: Structure, chosen: Field, unit_of: Field, count: int) -> tuple[Field, Field]:
    """Return each unit's earliest writer axis (its rank in execution order) and first label there."""
    axis_count = len(structure.sizes)
    rank_of_axis = np.arange(axis_count) + axis_count
    axes, twins = structure.propagation.axes, structure.propagation.twins
    writers = [
        n for n in structure.propagation.writers if not any(is_inside(axes[n].tensor, t.follower) for t in twins)
    ]
    rank_of_axis[list(writers)] = np.arange(len(writers))
    ranks = np.full(count, 2 * axis_count)
    rank = rank_of_axis[structure.axis_of_label[chosen]]
    np.minimum.at(ranks, unit_of, rank)
    first = rank == ranks[unit_of]
    labels = np.full(count, len(structure.propagation.roots))
    np.minimum.at(labels, unit_of[first], chosen[first])
    return ranks, labels


def _names(structure: Structure, labels: Sequence[int]) -> list[str]:
    """Name families after the module that holds their first writer."""
    names: list[str] = []
    used: dict[str, int] = {}
    for label in labels:
        tensor = structure.propagation.axes[int(structure.axis_of_label[label])].tensor
        name = layer_name(tensor)
        used[name] = used.get(name, 0) + 1
        names.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return names


def layer_name(tensor: str) -> str:
    """Return the module's name for a parameter's: ``"conv1"`` for ``"conv1.weight"``, parametrized or not."""
    owner, _, name = tensor.rpartition(".")
    return owner.partition(".parametrizations.")[0] or name


def locked_channels(structure: Structure) -> Mapping[tuple[str, str], int]:
    """Return how many channels each layer cannot lose, by (layer, reason).

    These are the channels that weights write. Of another parameter that no unit touches (a normalisation of the
    network's input, say, or one that is returned) those along its first locked axis are named, unless a weight that is
    named writes them, or its layer is named already.
    """
    propagation = structure.propagation
    table: dict[tuple[str, str], int] = {}
    named = _prunable(structure)
    for number in propagation.writers:
        _count_locked(structure, number, table)
        named[structure.roots_on(number)] = True
    layers = {layer for layer, _ in table}
    for tensor, axes in _axes_of_parameters(structure).items():
        locked = [n for n in axes if not propagation.locked.keys().isdisjoint(structure.roots_on(n).tolist())]
        if locked and layer_name(tensor) not in layers and not any(named[structure.roots_on(n)].any() for n in axes):
            _count_locked(structure, locked[0], table)
            layers.add(layer_name(tensor))
    return table


def _axes_of_parameters(structure: Structure) -> dict[str, list[int]]:
    """Return the numbers of the axes of every parameter."""
    found: dict[str, list[int]] = {}
    for number, axis in enumerate(structure.propagation.axes):
        if axis.tensor in structure.propagation.traces[0].is_parameter:
            found.setdefault(axis.tensor, []).append(number)
    return found


def _count_locked(structure: Structure, number: int, table: dict[tuple[str, str], int]) -> None:
    """Count the locked positions of an axis for its layer."""
    locked, name = structure.propagation.locked, layer_name(structure.propagation.axes[number].tensor)
    roots, counts = np.unique(structure.roots_on(number), return_counts=True)
    for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
        if root in locked:
            table[name, locked[root]] = table.get((name, locked[root]), 0) + count
