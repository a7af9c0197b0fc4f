"""Look at a network before it is cut: what can be removed at most, what each unit costs, what is locked and why."""

from __future__ import annotations

import linecache
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.group import ChannelGroup, LockedChannels
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import Constraints, check_bool
from lightning_taylor_prune.pruning.costs import COSTS
from lightning_taylor_prune.pruning.layers import ratios_of_groups, without_leave
from lightning_taylor_prune.pruning.prune import refuse_wrappers
from lightning_taylor_prune.tracing.call import batch_size

if TYPE_CHECKING:
    from rich.console import RenderableType

Measure = Callable[[ChannelGroups], float]


class Latency(Protocol):
    """Tells how long networks take that have lost channels, without building them."""

    def latency(self, groups: ChannelGroups) -> float:
        """Return the time of one call in milliseconds."""


_PLACE = re.compile(r"(?P<place>[^\s,()]+:\d+)\)")
"""File and line as the reasons of locks hold them."""


@dataclass(frozen=True)
class Reduction:
    """How far one cost can fall.

    Attributes:
        cost: ``"params"``, ``"macs"`` (per example), ``"filters"``, ``"memory"`` (bytes of parameters and buffers),
            ``"latency"`` (milliseconds of one call) ...
        now: What the network costs.
        least: What it would cost if every group kept as few units as it may.
    """

    cost: str
    now: float
    least: float

    @property
    def fraction(self) -> float:
        """Share that can be removed at most, 0 to 1."""
        return 1 - self.least / self.now if self.now else 0.0


@dataclass(frozen=True)
class InspectedGroup:
    """Units of which any can be removed, and what one of them costs.

    Attributes:
        name: Name of the group.
        layers: Layers whose weights write its channels, in the order of the network's tensors.
        readers: Layers whose weights read them.
        units: Units now.
        least_units: Units that the group keeps at least.
        width: Channels per unit in the first layer.
        saved: What one more removed unit saves, by cost.
        exact: Removing a unit is the same as setting it to zero.
    """

    name: str
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    units: int
    least_units: int
    width: int
    saved: Mapping[str, float]
    exact: bool


@dataclass(frozen=True)
class InspectedLock:
    """Channels that cannot be removed.

    Attributes:
        layer: Name of the layer that writes them.
        channels: How many there are.
        reason: Why.
        source: File and line of the code that says so, ``""`` where no single line does.
        code: That line, ``""`` where it cannot be read.
    """

    layer: str
    channels: int
    reason: str
    source: str
    code: str


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found; ``print`` shows it as tables, and so does ``rich.print``.

    Attributes:
        network: Class of the network.
        reductions: The largest possible reduction of every cost.
        groups: Every group, in the order of execution.
        locked: What cannot be removed, and why.
        channel_groups: The groups themselves, for :func:`~lightning_taylor_prune.pruning.select.select`,
            :func:`~lightning_taylor_prune.pruning.sensitivity.sensitivity` and plans by hand.
    """

    network: str
    reductions: tuple[Reduction, ...]
    groups: tuple[InspectedGroup, ...]
    locked: tuple[InspectedLock, ...]
    channel_groups: ChannelGroups = field(repr=False, compare=False)

    def __getitem__(self, cost: str) -> Reduction:
        """Return the reduction of one cost."""
        return {reduction.cost: reduction for reduction in self.reductions}[cost]

    @property
    def units(self) -> int:
        """Number of units of all groups."""
        return sum(group.units for group in self.groups)

    def __str__(self) -> str:
        from lightning_taylor_prune.report.inspection_text import as_text

        return as_text(self)

    def __rich__(self) -> RenderableType:
        from lightning_taylor_prune.report.inspection_text import as_tables

        return as_tables(self)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the groups themselves as plain data, for JSON."""
        return {
            "network": self.network,
            "units": self.units,
            "reductions": [{**vars(reduction), "fraction": reduction.fraction} for reduction in self.reductions],
            "groups": [
                {**vars(g), "layers": list(g.layers), "readers": list(g.readers), "saved": dict(g.saved)}
                for g in self.groups
            ],
            "locked": [dict(vars(lock)) for lock in self.locked],
        }


def inspect(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    exclude: Collection[str] = (),
    min_channels: int = 1,
    max_pruning_ratio: float = 1.0,
    rewrite_hard_coded: bool = False,
    latency: Latency | None = None,
) -> Inspection:
    """Say what can be removed from a network, before anything is: the network is unchanged.

    Args:
        model: Any network.
        example_inputs: A tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.
        exclude: Names or patterns of layers, none of whose filters would be removed.
        min_channels: Units that every group would keep at least.
        max_pruning_ratio: Largest fraction of a group's units that would be removed.
        rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
        latency: Tells the latency of smaller networks (a table of measured times); it becomes the cost ``"latency"``.

    Raises:
        ArgumentError: An argument cannot be used.
        PlanError: The network is wrapped (in ``DistributedDataParallel``, say).
        TraceError: The network cannot be run with these inputs, not even in parts.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> found = inspect(net, torch.zeros(1, 3, 8, 8))
        >>> found["params"]
        Reduction(cost='params', now=516, least=68)
        >>> found.groups[0].saved["params"], found.locked[0].reason
        (64, 'is an output of the network')
    """
    constraints = Constraints(min_channels, max_pruning_ratio, exclude=exclude)
    check_bool("rewrite_hard_coded", rewrite_hard_coded)
    refuse_wrappers(model)
    groups = find_groups(model, example_inputs, example_kwargs, rewrite_hard_coded=rewrite_hard_coded)
    measures = _measures(latency)
    least, refused = _smallest(model, groups, constraints)
    return Inspection(
        network=type(model).__name__,
        reductions=tuple(Reduction(name, measure(groups), measure(least)) for name, measure in measures.items()),
        groups=tuple(_inspected(groups, group, least, measures) for group in groups),
        locked=tuple(_with_source(lock) for lock in (*groups.locked, *refused)),
        channel_groups=groups,
    )


def _measures(latency: Latency | None) -> dict[str, Measure]:
    """Return how every cost is measured, by name."""
    measures: dict[str, Measure] = {**COSTS, "macs": macs_per_example, "memory": memory_bytes}
    return measures if latency is None else {**measures, "latency": latency.latency}


def macs_per_example(groups: ChannelGroups) -> float:
    """Return MACs per example, as the history and the loggers have them."""
    return groups.macs / batch_size(groups.calls[0])


def memory_bytes(groups: ChannelGroups) -> int:
    """Return the bytes of all parameters and buffers in their dtypes; tied ones count once."""
    tensors = groups.structure.propagation.traces[0].tensors
    return sum(math.prod(shape) * tensors[name].dtype.itemsize for name, shape in groups.shapes.items())


def _smallest(
    model: nn.Module, groups: ChannelGroups, constraints: Constraints
) -> tuple[ChannelGroups, list[LockedChannels]]:
    """Return the groups of the smallest network that the constraints and the network's own code allow.

    Returns:
        The groups, and what the code turned out to need although nothing locks it.
    """
    kept_whole, ratios = without_leave(groups, constraints), ratios_of_groups(groups, constraints.max_pruning_ratio)
    refused: list[LockedChannels] = []
    while True:
        plan = groups.plan(
            {g.name: _removable(g, constraints, ratios[g.name]) for g in groups if g.name not in kept_whole}
        )
        divergence = groups.verify(model, plan) if plan else None
        if divergence is None:
            return groups.after(plan), refused
        concerned = groups.groups_at(divergence) & set(plan.removed) or set(plan.removed)
        kept_whole |= concerned
        reason = f"cannot shrink to so few channels: {divergence.message}"
        refused += [LockedChannels(name, groups[name].num_channels, reason) for name in sorted(concerned)]


def _removable(group: ChannelGroup, constraints: Constraints, ratio: float) -> range:
    """Return the units that may be removed from a group, the last ones."""
    kept = math.ceil((1 - ratio) * group.original_num_channels - 1e-9)
    return range(max(1, constraints.min_channels, kept), group.num_channels)


def _inspected(
    groups: ChannelGroups, group: ChannelGroup, least: ChannelGroups, measures: Mapping[str, Measure]
) -> InspectedGroup:
    fewer = _without_one(groups, group)
    return InspectedGroup(
        name=group.name,
        layers=_layers(group, "writer"),
        readers=_layers(group, "reader"),
        units=group.num_channels,
        least_units=least[group.name].num_channels,
        width=group.width,
        saved={name: measure(groups) - measure(fewer) for name, measure in measures.items()},
        exact=group.exact,
    )


def _layers(group: ChannelGroup, role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer_name(s.tensor) for s in group.slices if s.role == role))


def _without_one(groups: ChannelGroups, group: ChannelGroup) -> ChannelGroups:
    """Return the groups without the last unit of one of them; also where it is the only one."""
    kept = groups.kept.copy()
    kept[group.roots[-1:]] = False
    return ChannelGroups(groups.analysis, np.ascontiguousarray(kept))


def _with_source(lock: LockedChannels) -> InspectedLock:
    source = next(_places(lock.reason), "")
    file, _, line = source.rpartition(":")
    code = linecache.getline(file, int(line)).strip() if source else ""
    return InspectedLock(lock.name, lock.num_channels, lock.reason, source, code)


def _places(reason: str) -> Iterator[str]:
    yield from (found["place"] for found in _PLACE.finditer(reason))
