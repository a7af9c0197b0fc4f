"""Which channels can be removed from a network, and which must be removed together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.changes import CodeChanges
from lightning_taylor_prune.groups.costs import CountedCosts
from lightning_taylor_prune.groups.divergence import Divergence
from lightning_taylor_prune.groups.families import locked_channels
from lightning_taylor_prune.groups.group import ChannelGroup, LockedChannels, Role, Slice
from lightning_taylor_prune.groups.shapes import KeepMask, varying_line
from lightning_taylor_prune.labels.places import Axis
from lightning_taylor_prune.modules.likeness import Twin, twin_names
from lightning_taylor_prune.plan import Cut, Indices, PruningPlan
from lightning_taylor_prune.tracing.call import Call


class ChannelGroups(CountedCosts):
    """All groups of a network; iterates over the groups, and ``groups["conv1"]`` is one by name.

    Immutable: after a cut, :meth:`after` describes the network as it is then.

    Attributes:
        analysis: What is known of the network, whichever channels have been removed.
        kept: Which labels are kept, bool, shape ``[labels]``.
        num_units: Number of units over all groups.
    """

    def __init__(self, analysis: Analysis, kept: KeepMask | None = None) -> None:
        self.analysis = analysis
        self.kept = analysis.structure.everything() if kept is None else kept
        self.kept.setflags(write=False)
        groups, first = [], 0
        for family in analysis.families:
            groups.append(ChannelGroup(family, self.kept, first, self._slices_of))
            first += groups[-1].num_channels
        self.num_units = first
        self._groups = {group.name: group for group in groups}

    @property
    def calls(self) -> tuple[Call, ...]:
        """How the network, or each of the submodules that are analysed in its place, is called."""
        return self.analysis.calls

    @property
    def fixed(self) -> tuple[str, ...]:
        """Names of parameters and buffers that keep their sizes, as they are also used outside of these calls."""
        return self.structure.propagation.fixed

    @property
    def twins(self) -> tuple[Twin, ...]:
        """Modules that follow others, as averages of their weights, and lose the same channels."""
        return self.structure.propagation.twins

    @cached_property
    def followers(self) -> frozenset[str]:
        """Names of the parameters and buffers of modules that follow others."""
        return frozenset(name for name, _ in twin_names(self.structure.propagation.traces[0].tensors, self.twins))

    def __getitem__(self, name: str) -> ChannelGroup:
        try:
            return self._groups[name]
        except KeyError:
            raise PlanError(f"There is no group `{name}`; the groups are {', '.join(self._groups)}.") from None

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def __repr__(self) -> str:
        return f"ChannelGroups({len(self)} groups, {self.num_units} units, {len(self.locked)} locked layers)"

    @cached_property
    def locked(self) -> tuple[LockedChannels, ...]:
        """Channels that cannot be removed, by layer and reason."""
        return tuple(
            LockedChannels(name, count, reason) for (name, reason), count in locked_channels(self.structure).items()
        )

    @cached_property
    def unit_roots(self) -> Indices:
        """Root label of every unit, group after group, shape ``[num_units]``."""
        return np.concatenate([g.roots for g in self]) if self.num_units else np.empty(0, dtype=np.int64)

    @cached_property
    def _unit_of_root(self) -> Indices:
        table = np.full(len(self.kept), -1)
        table[self.unit_roots] = np.arange(self.num_units)
        return table

    @cached_property
    def _axes_of_group(self) -> dict[str, list[int]]:
        """Numbers of the parameter axes that each group touches."""
        family = np.full(len(self.kept), -1)
        for number, group in enumerate(self):
            family[group.roots] = number
        groups = list(self._groups)
        owners = family[self.structure.parameter_roots]
        pairs = np.unique(np.stack([owners, self.structure.axis_of_label]), axis=1)
        axes: dict[str, list[int]] = {name: [] for name in groups}
        for owner, axis in pairs.T.tolist():
            if owner >= 0:
                axes[groups[owner]].append(axis)
        return axes

    def axes_of(self, group: ChannelGroup) -> Sequence[int]:
        """Return the numbers of the parameter axes that a group touches."""
        return self._axes_of_group[group.name]

    def units_on(self, number: int) -> Indices:
        """Return the unit (counted over all groups) at each position of a parameter axis; -1 where it is locked."""
        roots = self.structure.roots_on(number)
        return self.units_of(roots[self.kept[roots]])

    def units_of(self, roots: Indices) -> Indices:
        """Return the unit (counted over all groups) of each root; -1 where it is locked."""
        return self._unit_of_root[roots]

    @cached_property
    def kinds_of_units(self) -> npt.NDArray[np.uint64]:
        """A number for every unit, equal where units count alike in all integer arguments that follow the channels."""
        kinds = np.zeros(self.num_units, dtype=np.uint64)
        marks = np.random.default_rng(0)
        for roots in self.structure.argument_roots():
            units = self.units_of(roots)
            np.add.at(kinds, units[units >= 0], marks.integers(0, 2**63, dtype=np.uint64))
        return kinds

    def role_of(self, number: int) -> Role:
        """Return what the tensor does with the channels on this axis."""
        found = self.structure.propagation
        return "reader" if number in found.readers else "writer" if number in found.writers else "affine"

    def axes(self, role: Role) -> list[tuple[Axis, Indices]]:
        """Return every parameter axis of a role on which some unit lies, with the unit at each position."""
        numbers = sorted({n for axes in self._axes_of_group.values() for n in axes})
        return [(self.structure.propagation.axes[n], self.units_on(n)) for n in numbers if self.role_of(n) == role]

    @cached_property
    def locked_share(self) -> float:
        """Share of the parameters, 0 to 1, in tensors that no unit touches: pruning cannot make them smaller."""
        touched = {self.structure.propagation.axes[n].tensor for axes in self._axes_of_group.values() for n in axes}
        is_parameter = self.structure.propagation.traces[0].is_parameter
        untouched = sum(math.prod(s) for name, s in self.shapes.items() if name in is_parameter and name not in touched)
        return untouched / max(self.params, 1)

    @cached_property
    def num_prunable_filters(self) -> int:
        """Number of filters now that belong to some group, units of linear layers included."""
        return sum(int((units >= 0).sum()) for axis, units in self.axes("writer") if self._is_weight(axis))

    def plan(self, removed: Mapping[str, Iterable[Any]]) -> PruningPlan:
        """Make a plan by hand.

        Args:
            removed: Group name -> positions of the units to remove, ``0 ... num_channels - 1`` as they stand now: ints,
                or a bool for every unit, ``True`` where it is to be removed (as in ``scores < threshold``).

        Raises:
            PlanError: A group or position does not exist, or a group would have no channels.
        """
        positions = {name: self[name].positions_of(units) for name, units in removed.items()}
        chosen = {name: units for name, units in positions.items() if units}
        kept = self.kept.copy()
        for name, units in chosen.items():
            kept[self[name].roots[list(units)]] = False
        return PruningPlan(chosen, tuple(self._cuts(kept)), self)

    def _cuts(self, kept: KeepMask) -> Iterator[Cut]:
        roots = self.structure.parameter_roots
        touched = np.unique(self.structure.axis_of_label[self.kept[roots] & ~kept[roots]])
        for number in touched.tolist():
            axis, on_axis = self.structure.propagation.axes[number], self.structure.roots_on(number)
            now = on_axis[self.kept[on_axis]]
            yield Cut(axis.tensor, axis.dim, len(now), np.flatnonzero(kept[now]))

    def cuts_of_made(self, plan: PruningPlan) -> list[Cut]:
        """Return how a plan cuts the module attributes that every forward pass makes anew of parameters."""
        after, made = self.kept_after(plan), self.structure.propagation.made
        roots_of = self.structure.propagation.roots
        lines = [
            (name, *line) for name, labels in made.items() for f in labels.fields if (line := varying_line(roots_of[f]))
        ]
        return [
            Cut(name, axis, len(now), np.flatnonzero(after[now]))
            for name, axis, roots in lines
            if not after[now := roots[self.kept[roots]]].all()
        ]

    def kept_after(self, plan: PruningPlan) -> KeepMask:
        """Return which labels are kept after a plan."""
        kept = self.kept.copy()
        for name, units in plan.removed.items():
            kept[self[name].roots[list(units)]] = False
        return kept

    def after(self, plan: PruningPlan) -> ChannelGroups:
        """Return the groups of the network as it is after a plan."""
        return ChannelGroups(self.analysis, self.kept_after(plan))

    def unpruned(self) -> ChannelGroups:
        """Return the groups of the network as it was before anything was removed."""
        return ChannelGroups(self.analysis)

    def with_changes(self, changes: CodeChanges) -> ChannelGroups:
        """Return the same groups, with other changes of modules."""
        return ChannelGroups(replace(self.analysis, changes=changes), self.kept)

    def kept_units(self) -> dict[str, Indices]:
        """Return which of its original units every group still has."""
        return {f.name: np.flatnonzero(self.kept[f.roots]) for f in self.analysis.families}

    def restricted(self, kept: Mapping[str, Any]) -> ChannelGroups:
        """Return the groups of the network with only those of its original units; the inverse of :meth:`kept_units`.

        Raises:
            PlanError: ``kept`` was made from other groups.
        """
        restricted = self.structure.everything()
        families = {family.name: family.roots for family in self.analysis.families}
        if families.keys() != kept.keys():
            unknown = sorted(families.keys() ^ kept.keys())
            raise PlanError(f"The network has other groups than when it was pruned: {', '.join(unknown[:8])}.")
        for name, roots in families.items():
            restricted[roots] = np.isin(np.arange(len(roots)), np.asarray(kept[name]))
        return ChannelGroups(self.analysis, restricted)

    def verify(self, model: nn.Module, plan: PruningPlan) -> Divergence | None:
        """Run the network's code, without data, at the shapes that the plan leads to; nothing is changed."""
        analysis = self.analysis
        return analysis.dry_run.check(model, analysis.structure, analysis.changes, self.kept_after(plan), plan.cuts)

    def groups_at(self, divergence: Divergence) -> set[str]:
        """Return the groups whose channels pass through the operator at which the network's code disagreed."""
        roots = self.structure.roots_at(divergence.site)
        return {group.name for group in self if not roots.isdisjoint(group.roots.tolist())}

    def _slices_of(self, group: ChannelGroup) -> Iterator[Slice]:
        """Yield every axis of every tensor that a group touches, in the order of the network's tensors."""
        for number in self.axes_of(group):
            units = self.units_on(number) - group.first_unit
            inside = np.flatnonzero((units >= 0) & (units < group.num_channels))
            axis = self.structure.propagation.axes[number]
            yield Slice(axis.tensor, axis.dim, self.role_of(number), inside, units[inside])
