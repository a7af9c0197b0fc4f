"""Which channels can leave a network, and which must leave together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch import nn

from lightning_taylor_prune.errors import PlanError, PruningWarning, TraceError
from lightning_taylor_prune.interpret import Axis, Site, interpret
from lightning_taylor_prune.plan import Cut, Indices, PruningPlan
from lightning_taylor_prune.structure import Alive, Family, Structure, layer_name, locked_channels
from lightning_taylor_prune.trace import Call, Trace, trace, training_flags
from lightning_taylor_prune.verify import Divergence, verify

Role = Literal["writer", "reader", "affine"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where a group touches one axis of one tensor.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The axis.
        role: ``"writer"`` (a weight whose output axis this is), ``"reader"`` (a weight whose input axis it is) or
            ``"affine"`` (anything that rides along: bias, normalisation, statistics).
        positions: Positions on the axis, int64, shape ``[positions]``.
        units: The group's unit at each of them, same shape.
    """

    tensor: str
    dim: int
    role: Role
    positions: Indices
    units: Indices


@dataclass(frozen=True)
class LockedChannels:
    """Channels of one layer that cannot leave, and why."""

    name: str
    num_channels: int
    reason: str


class ChannelGroup:
    """A family of units that share the same parameter axes: a layer's channels, or a residual stream's.

    A *unit* is the smallest thing that can leave: mostly one channel with all that reads and writes it.

    Attributes:
        name: Name of the layer that writes the channels first.
        num_channels: Number of units now.
        original_num_channels: Number of units when the network was analysed.
        exact: Removing a unit is the same as setting it to zero; not so under normalisation across channels.
    """

    def __init__(self, owner: ChannelGroups, family: Family, first_unit: int) -> None:
        self.name = family.name
        self.exact = family.exact
        self.original_num_channels = len(family.roots)
        self.first_unit = first_unit
        self.roots = family.roots[owner.alive[family.roots]]
        self.num_channels = len(self.roots)
        self._owner = owner

    @cached_property
    def width(self) -> int:
        """Channels per unit on the axis that is written first: more than 1 for grouped convolutions and the like."""
        first = next((s for s in self.slices if s.role == "writer"), self.slices[0])
        return len(first.positions) // self.num_channels

    def __repr__(self) -> str:
        return f"ChannelGroup({self.name!r}, num_channels={self.num_channels})"

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Every axis of every tensor that the group touches, in the order of the network's tensors."""
        found = []
        for number in self._owner.axes_of(self):
            units = self._owner.units_on(number) - self.first_unit
            inside = np.flatnonzero((units >= 0) & (units < self.num_channels))
            axis = self._owner.structure.interpretation.axes[number]
            found.append(Slice(axis.tensor, axis.dim, self._owner.role_of(number), inside, units[inside]))
        return tuple(found)


class ChannelGroups:
    """All groups of a network; iterates over the groups, and ``groups["conv1"]`` is one by name.

    Immutable: after a cut, :meth:`after` describes the network as it is then.
    """

    def __init__(self, structure: Structure, alive: Alive | None = None) -> None:
        self.structure = structure
        self.alive = structure.everything() if alive is None else alive
        self.alive.setflags(write=False)
        groups, first = [], 0
        for family in structure.families:
            groups.append(ChannelGroup(self, family, first))
            first += groups[-1].num_channels
        self.num_units = first
        self._groups = {group.name: group for group in groups}

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

    # --- what there is ------------------------------------------------------------------------------------------

    @cached_property
    def locked(self) -> tuple[LockedChannels, ...]:
        """Channels that cannot leave, by layer and reason."""
        return tuple(
            LockedChannels(name, count, reason) for (name, reason), count in locked_channels(self.structure).items()
        )

    @cached_property
    def unit_roots(self) -> Indices:
        """Root label of every unit, group after group, shape ``[num_units]``."""
        return np.concatenate([g.roots for g in self]) if self.num_units else np.empty(0, dtype=np.int64)

    @cached_property
    def _unit_of_root(self) -> Indices:
        table = np.full(len(self.alive), -1)
        table[self.unit_roots] = np.arange(self.num_units)
        return table

    @cached_property
    def _axes_of_group(self) -> dict[str, list[int]]:
        """Numbers of the parameter axes that each group touches."""
        family = np.full(len(self.alive), -1)
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
        """Return the unit (counted over all groups) at each position of a parameter axis; -1 where none can leave."""
        roots = self.structure.roots_on(number)
        return self._unit_of_root[roots[self.alive[roots]]]

    def role_of(self, number: int) -> Role:
        """Return what the tensor does with the channels on this axis."""
        if number in self.structure.interpretation.readers:
            return "reader"
        return "writer" if number in self.structure.interpretation.writers else "affine"

    def axes(self, role: Role) -> list[tuple[Axis, Indices]]:
        """Return every parameter axis of a role on which some unit lies, with the unit at each position."""
        numbers = sorted({n for axes in self._axes_of_group.values() for n in axes})
        return [(self.structure.interpretation.axes[n], self.units_on(n)) for n in numbers if self.role_of(n) == role]

    # --- what it costs ------------------------------------------------------------------------------------------

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer of the network as it is now, tied ones under their first name."""
        return self.structure.tensor_shapes(self.alive)

    @cached_property
    def params(self) -> int:
        """Number of parameters now; tied ones count once, buffers do not."""
        is_parameter = self.structure.interpretation.traces[0].is_parameter
        return sum(int(np.prod(shape)) for name, shape in self.shapes.items() if name in is_parameter)

    @cached_property
    def macs(self) -> int:
        """MACs of one call with the captured input, batch included."""
        return self.structure.macs(self.alive)

    @cached_property
    def filters(self) -> dict[str, int]:
        """Convolution filters now, by layer."""
        found = {}
        for number in self.structure.interpretation.writers:
            axis = self.structure.interpretation.axes[number]
            if len(self.shapes[axis.tensor]) > 2:
                found[layer_name(axis.tensor)] = self.shapes[axis.tensor][axis.dim]
        return found

    @cached_property
    def num_filters(self) -> int:
        """Number of convolution filters now."""
        return sum(self.filters.values())

    @cached_property
    def num_prunable_filters(self) -> int:
        """Number of convolution filters now that belong to some group."""
        return sum(int((units >= 0).sum()) for axis, units in self.axes("writer") if len(self.shapes[axis.tensor]) > 2)

    # --- what can be done ---------------------------------------------------------------------------------------

    def plan(self, removed: Mapping[str, Sequence[int]]) -> PruningPlan:
        """Make a plan by hand.

        Args:
            removed: Group name -> positions of the units that leave, ``0 ... num_channels - 1`` as they stand now.

        Raises:
            PlanError: A group or position does not exist, or a group would be left empty.
        """
        chosen = {name: tuple(sorted({int(u) for u in units})) for name, units in removed.items() if len(units)}
        alive = self.alive.copy()
        for name, units in chosen.items():
            group = self[name]
            if units[0] < 0 or units[-1] >= group.num_channels:
                raise PlanError(
                    f"Group `{name}` has the channels 0 ... {group.num_channels - 1}, but the plan removes {units}."
                )
            if len(units) == group.num_channels:
                raise PlanError(f"The plan removes all {len(units)} channels of group `{name}`; one must stay.")
            alive[group.roots[list(units)]] = False
        return PruningPlan(chosen, tuple(self._cuts(alive)), self)

    def _cuts(self, alive: Alive) -> Iterator[Cut]:
        roots = self.structure.parameter_roots
        touched = np.unique(self.structure.axis_of_label[self.alive[roots] & ~alive[roots]])
        for number in touched.tolist():
            axis, on_axis = self.structure.interpretation.axes[number], self.structure.roots_on(number)
            now = on_axis[self.alive[on_axis]]
            yield Cut(axis.tensor, axis.dim, len(now), np.flatnonzero(alive[now]))

    def alive_after(self, plan: PruningPlan) -> Alive:
        """Return which labels are left after a plan."""
        alive = self.alive.copy()
        for name, units in plan.removed.items():
            alive[self[name].roots[list(units)]] = False
        return alive

    def after(self, plan: PruningPlan) -> ChannelGroups:
        """Return the groups of the network as it is after a plan."""
        return ChannelGroups(self.structure, self.alive_after(plan))

    def kept_units(self) -> dict[str, Indices]:
        """Return which of its original units every group has left."""
        return {f.name: np.flatnonzero(self.alive[f.roots]) for f in self.structure.families}

    def restricted(self, kept: Mapping[str, Any]) -> ChannelGroups:
        """Return the groups of the network with only those of its original units; the inverse of :meth:`kept_units`.

        Raises:
            PlanError: The groups are others than those that ``kept`` was made from.
        """
        alive = self.structure.everything()
        families = {family.name: family.roots for family in self.structure.families}
        if families.keys() != kept.keys():
            unknown = sorted(families.keys() ^ kept.keys())
            raise PlanError(f"The network has other groups than when it was pruned: {', '.join(unknown[:8])}.")
        for name, roots in families.items():
            alive[roots] = np.isin(np.arange(len(roots)), np.asarray(kept[name]))
        return ChannelGroups(self.structure, alive)

    def verify(self, model: nn.Module, plan: PruningPlan) -> Divergence | None:
        """Run the network's code, without data, at the shapes that the plan leads to; nothing is changed."""
        return verify(model, self.structure, self.alive_after(plan), plan.cuts)

    def blamed_groups(self, divergence: Divergence) -> set[str]:
        """Return the groups whose channels pass through the operator at which the network's code disagreed."""
        number, index = divergence.site
        interpretation = self.structure.interpretation
        roots = {
            int(root)
            for value in interpretation.touched[number][index]
            for f in value.fields
            for root in np.unique(interpretation.roots[f]).tolist()
        }
        return {group.name for group in self if not roots.isdisjoint(group.roots.tolist())}


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
) -> ChannelGroups:
    """Find which channels of a network can leave, and which must leave together.

    The network is run on fake tensors, in training and in evaluation mode; nothing is computed, and it comes out
    untouched.

    Args:
        model: Any network.
        example_inputs: A tensor, or a tuple of positional arguments (tensors nested as the network takes them).
        example_kwargs: Keyword arguments.

    Returns:
        The groups, and in ``groups.locked`` what cannot be pruned, with the reason.

    Raises:
        TraceError: The network cannot be run on fake tensors.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> [(group.name, group.num_channels) for group in find_groups(net, torch.zeros(1, 3, 8, 8))]
        [('0', 8)]
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return groups_of_calls(model, [Call("", args, dict(example_kwargs or {}))])


def groups_of_calls(
    model: nn.Module, calls: Sequence[Call], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> ChannelGroups:
    """Find groups over several ways in which a network is called; what any of them ties together is tied.

    Args:
        model: The network.
        calls: How it is called.
        shapes: Shapes of its parameters and buffers, where the groups are to be those of the network as it was.
    """
    traces = [t for call in calls for t in _trace_both_modes(model, call, shapes)]
    blamed: dict[Site, tuple[int, str]] = {}
    rounds = 0
    while True:
        groups = ChannelGroups(Structure(interpret(traces, blamed)))
        divergence = _probe(model, groups)
        if divergence is None:
            return groups
        rounds += 1
        _blame(groups.structure, divergence, blamed, widely=rounds > _PATIENCE)


_PATIENCE = 6
"""Contradictions taken one by one; then every operator on the same source line is treated alike."""


def _trace_both_modes(model: nn.Module, call: Call, shapes: Mapping[str, tuple[int, ...]] | None) -> list[Trace]:
    """Trace as the network is, and in the other mode too where that runs other operators (auxiliary heads, say)."""
    flags = training_flags(model)
    first = trace(model, call, flags, shapes)
    other = not flags[call.module]
    try:
        second = trace(model, call, dict.fromkeys(flags, other), shapes)
    except TraceError as error:
        warnings.warn(
            f"What the network does in {'training' if other else 'evaluation'} mode was not analysed: {error}",
            PruningWarning,
            stacklevel=4,
        )
        return [first]
    return [first] if first.signature() == second.signature() else [first, second]


def _probe(model: nn.Module, groups: ChannelGroups) -> Divergence | None:
    """Try cuts of several patterns; return the first contradiction of the network's code."""
    for pattern in (_a_third, _leading_odd_third):
        removed = {g.name: pattern(number, g.num_channels) for number, g in enumerate(groups) if g.num_channels > 1}
        plan = groups.plan(removed)
        if plan and (divergence := groups.verify(model, plan)) is not None:
            return divergence
    return None


def _a_third(number: int, size: int) -> Sequence[int]:
    """Choose about a third of the positions, the last among them, so that no arithmetic in the code fits by chance."""
    others = np.random.default_rng(number).permutation(size - 1)[: max(1, size // 3) - 1]
    return [*others.tolist(), size - 1]


def _leading_odd_third(number: int, size: int) -> Sequence[int]:
    """Choose an odd number of positions, all at the beginning: halves and quarters counted in the code do not fit."""
    return range(min(size // 3 | 1, size - 1))


def _blame(structure: Structure, divergence: Divergence, blamed: dict[Site, tuple[int, str]], widely: bool) -> None:
    """Have the nearest operator that touches prunable channels interpreted anew, or locked."""
    number, index = divergence.site
    prunable = np.zeros(len(structure.interpretation.roots), dtype=bool)
    for family in structure.families:
        prunable[family.roots] = True
    ops = structure.interpretation.traces[number].ops
    nearest = [*range(index, -1, -1), *range(index + 1, len(ops))]
    site = next((number, i) for i in nearest if _touches(structure, (number, i), prunable))
    sites = {site, *_alike(structure, site)} if widely else {site}
    for found in sites:
        blamed[found] = (blamed.get(found, (0, ""))[0] + 1, divergence.message)


def _touches(structure: Structure, site: Site, prunable: Alive) -> bool:
    """Whether an operator's operands or results carry channels that can still leave."""
    number, index = site
    interpretation = structure.interpretation
    return any(
        prunable[interpretation.roots[f]].any() for value in interpretation.touched[number][index] for f in value.fields
    )


def _alike(structure: Structure, site: Site) -> set[Site]:
    traces = structure.interpretation.traces
    node = traces[site[0]].ops[site[1]]
    return {
        (number, index)
        for number, trace_ in enumerate(traces)
        for index, other in enumerate(trace_.ops)
        if other.target is node.target and other.meta["source"] == node.meta["source"]
    }
