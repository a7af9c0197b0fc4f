"""Which channels can leave a network, and which must leave together."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from lightning_taylor_prune.errors import PlanError, PruningWarning, TraceError
from lightning_taylor_prune.evidence import Trial, find_rewriting, find_size_rules, find_ties, leaves_a_choice
from lightning_taylor_prune.interpret import Axis, Site, Tie, interpret
from lightning_taylor_prune.parts import parts_of_call
from lightning_taylor_prune.plan import Cut, Indices, PruningPlan
from lightning_taylor_prune.rules.base import alternatives_of, find_rule
from lightning_taylor_prune.rules.movement import reshape
from lightning_taylor_prune.structure import Alive, Family, SizeRule, Structure, layer_name, locked_channels
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
        return self.units_of(roots[self.alive[roots]])

    def units_of(self, roots: Indices) -> Indices:
        """Return the unit (counted over all groups) of each root; -1 where none can leave."""
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
    *,
    rewrite_hard_coded: bool = False,
) -> ChannelGroups:
    """Find which channels of a network can leave, and which must leave together.

    The network is run on fake tensors, in training and in evaluation mode; nothing is computed, and it comes out
    untouched. One that depends on the values of tensors (a detector, say) is run for real once, and the parts of it
    that do not are analysed: backbone and heads.

    Args:
        model: Any network.
        example_inputs: A tensor, or a tuple of positional arguments (tensors nested as the network takes them).
        example_kwargs: Keyword arguments.
        rewrite_hard_coded: Where a module's own code holds sizes as numbers (``view(-1, 64)``, ``x[:, :8]``), let
            :func:`~lightning_taylor_prune.surgery.prune_` give that module a generated `forward` in which they
            follow what leaves; by default such channels are locked. Class, parameters, hooks and the keys of the
            state dict stay as they are.

    Returns:
        The groups, and in ``groups.locked`` what cannot be pruned, with the reason.

    Raises:
        TraceError: The network cannot be run on fake tensors, nor any part of it from which something can leave.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> [(group.name, group.num_channels) for group in find_groups(net, torch.zeros(1, 3, 8, 8))]
        [('0', 8)]
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    call = Call("", args, dict(example_kwargs or {}))
    try:
        return groups_of_calls(model, [call], rewrite_hard_coded=rewrite_hard_coded)
    except TraceError as error:
        parts = parts_of_call(model, call) if error.in_forward else None
        if not parts or not parts.calls:
            raise
        groups = groups_of_calls(model, parts.calls, rewrite_hard_coded=rewrite_hard_coded, fixed=parts.fixed)
        if not groups.num_units:
            raise
        warnings.warn(parts.describe(str(error)), PruningWarning, stacklevel=2)
        return groups


def groups_of_calls(
    model: nn.Module,
    calls: Sequence[Call],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rewrite_hard_coded: bool = False,
    fixed: Collection[str] = (),
) -> ChannelGroups:
    """Find groups over several ways in which a network is called; what any of them ties together is tied.

    Args:
        model: The network.
        calls: How it is called.
        shapes: Shapes of its parameters and buffers, where the groups are to be those of the network as it was.
        rewrite_hard_coded: As in :func:`find_groups`.
        fixed: Names of parameters and buffers that must stay as they are, since they are used outside of the calls.
    """
    traces = [t for call in calls for t in _trace_both_modes(model, call, shapes)]
    analysis = _Analysis(model, traces, rewrite_hard_coded, fixed)
    groups, stuck = analysis.settle()
    while stuck is not None:
        groups, stuck = analysis.tie(stuck) or analysis.blame(stuck)
    return groups


@dataclass(frozen=True)
class _Stuck:
    """A trial cut that the network's code contradicts."""

    groups: ChannelGroups
    plan: PruningPlan
    divergence: Divergence


class _Analysis:
    """Interprets traces until the network's code agrees with what is predicted."""

    def __init__(
        self, model: nn.Module, traces: Sequence[Trace], rewrite_hard_coded: bool, fixed: Collection[str]
    ) -> None:
        self._model, self._traces, self._rewrite, self._fixed = model, traces, rewrite_hard_coded, fixed
        self._blamed: dict[Site, tuple[int, str]] = {}
        self._ties: tuple[Tie, ...] = ()
        self._learnt: tuple[tuple[SizeRule, ...], tuple[str, ...]] = (), ()
        self._rounds = 0
        self._untied: set[tuple[Any, ...]] = set()
        self._hints: dict[tuple[str, ...], bool] = {}

    def settle(self, ties: Sequence[Tie] = ()) -> tuple[ChannelGroups, _Stuck | None]:
        """Interpret with more ties and try the outcome; what was learnt of attributes so far is kept."""
        structure = Structure(interpret(self._traces, self._blamed, (*self._ties, *ties), self._fixed))
        rules, structure.rewritten = self._learnt
        structure.size_rules = tuple(rule for rule in rules if structure.has(rule.follows))
        groups = ChannelGroups(structure)
        return groups, _probe(self._model, groups, self._rewrite)

    def tie(self, stuck: _Stuck) -> tuple[ChannelGroups, _Stuck | None] | None:
        """Tie axes of which the code takes one's size for the other's, if that gets it further and leaves a choice."""
        self._learn(stuck)
        site = stuck.divergence.site
        place = stuck.divergence.lines, self._blamed.get(site, (0, ""))[0]
        if self._has_other_interpretation(site) or place in self._untied:
            return None
        for ties in islice(find_ties(_trial(self._model, stuck.groups, stuck.plan), stuck.divergence), _TIES_TRIED):
            groups, now = self.settle(ties)
            further = now is None or now.divergence.site > stuck.divergence.site
            if further and leaves_a_choice(groups.structure, ties[0]):
                self._ties += tuple(ties)
                return groups, now
        self._untied.add(place)  # nor will ties help where other modules run the same lines
        return None

    def _learn(self, stuck: _Stuck) -> None:
        structure = stuck.groups.structure
        self._learnt = structure.size_rules, structure.rewritten

    def _has_other_interpretation(self, site: Site) -> bool:
        target = self._traces[site[0]].ops[site[1]].target
        return find_rule(target) is not reshape and self._blamed.get(site, (0, ""))[0] < alternatives_of(target)

    def blame(self, stuck: _Stuck) -> tuple[ChannelGroups, _Stuck | None]:
        """Have the operator interpreted anew, or lock what it touches."""
        self._rounds += 1
        divergence = stuck.divergence
        elsewhere = _alike(stuck.groups.structure, divergence.site) - {divergence.site}
        widely = self._rounds > _PATIENCE or any(site in self._blamed for site in elsewhere)
        if not self._rewrite and self._could_be_rewritten(stuck):
            hint = "; `rewrite_hard_coded=True` would free them"
            divergence = replace(divergence, message=divergence.message + hint)
        _blame(stuck.groups.structure, divergence, self._blamed, widely)
        return self.settle()

    def _could_be_rewritten(self, stuck: _Stuck) -> bool:
        """Whether sizes in the code that was running could follow; asked once for all modules that run these lines."""
        lines = stuck.divergence.lines
        if lines not in self._hints:
            found = find_rewriting(_trial(self._model, stuck.groups, stuck.plan), stuck.divergence)[1]
            self._hints[lines] = bool(found)
        return self._hints[lines]


_TIES_TRIED = 8


def _trial(model: nn.Module, groups: ChannelGroups, plan: PruningPlan) -> Trial:
    return Trial(model, groups.structure, groups.alive_after(plan), plan.cuts)


_PATIENCE = 6
"""Contradictions on lines of their own taken one by one; from then on, and where a line contradicts in a second module,
every operator on it is treated alike."""


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


def _probe(model: nn.Module, groups: ChannelGroups, rewrite: bool) -> _Stuck | None:
    """Try cuts of several patterns; return the first contradiction of the network's code.

    Where it goes away by letting integers that modules hold follow the channels, they do from then on.
    """
    structure = groups.structure
    learnt = True
    while learnt:  # what one pattern teaches must hold for the others too
        learnt = False
        for removed in _patterns(groups):
            plan = groups.plan(removed)
            while plan and (divergence := groups.verify(model, plan)) is not None:
                trial = _trial(model, groups, plan)
                rules = find_size_rules(trial, divergence)
                if not rules and rewrite:
                    names, rules = find_rewriting(trial, divergence)
                    structure.rewritten = (*structure.rewritten, *(n for n in names if n not in structure.rewritten))
                if not rules:
                    return _Stuck(groups, plan, divergence)
                structure.size_rules += rules
                learnt = True
    return None


def _patterns(groups: ChannelGroups) -> Iterator[dict[str, Sequence[int]]]:
    """Yield trial cuts that tell groups of one size apart: code that takes one's size for another's must not fit."""
    places: dict[str, int] = {}
    peers: dict[int, int] = {}
    for group in groups:
        places[group.name] = peers.get(group.num_channels, 0)
        peers[group.num_channels] = places[group.name] + 1
    several = any(count > _choices(size) for size, count in peers.items())
    for digit in (0, 1) if several else (0,):
        yield {g.name: _about_a_third(places[g.name], g.num_channels, digit) for g in groups if g.num_channels > 1}
    yield {g.name: _leading_odd_third(g.num_channels) for g in groups if g.num_channels > 1}
    kinds = {g.name: units for g in groups if g.num_channels > 1 and len(units := _one_of_each_kind(groups, g)) > 1}
    for number in range(min(max(map(len, kinds.values()), default=0), _KINDS_TRIED)):
        yield {name: units[number : number + 1] for name, units in kinds.items() if number < len(units)}


_KINDS_TRIED = 8
"""Kinds of units in a group that are tried one by one."""


def _one_of_each_kind(groups: ChannelGroups, group: ChannelGroup) -> list[int]:
    """Choose a unit of every kind in a group: those of one kind count alike in all integer arguments of operators.

    Halves of a stream that are sliced apart, say, may lose different numbers of channels with one unit and another.
    """
    kinds = groups.kinds_of_units[group.first_unit : group.first_unit + group.num_channels]
    return np.sort(np.unique(kinds, return_index=True)[1]).tolist()


def _choices(size: int) -> int:
    """Return how many different numbers of channels are removed from groups of one size."""
    return size if size < 12 else size // 6 + 1


def _about_a_third(place: int, size: int, digit: int) -> Sequence[int]:
    """Choose positions, the last among them, so that no arithmetic in the code fits by chance.

    The number is another for every group of the size: two digits of its place among them are shown, one a time.
    """
    choices = _choices(size)
    shown = place // choices**digit % choices
    count = (1 + shown) % size if size < 12 else size // 3 - shown
    others = np.random.default_rng(place).permutation(size - 1)[: max(count - 1, 0)]
    return [*others.tolist(), size - 1] if count else []


def _leading_odd_third(size: int) -> Sequence[int]:
    """Choose an odd number of positions, all at the beginning: halves and quarters counted in the code do not fit.

    Of few positions half leave: what code rounds only shows when several do.
    """
    return range(-(-size // 2) if size < 6 else size // 3 | 1)


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
