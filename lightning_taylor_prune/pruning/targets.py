"""Costs that pruning is to reach and never to undercut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.costs import TOLERANCE, TOLERANCES, Measure, measures, said


@dataclass(frozen=True)
class Target:
    """One cost that is to be reached.

    Attributes:
        name: The cost.
        measure: Reads it.
        original: What it was before anything was removed.
        floor: What it must not undercut.
    """

    name: str
    measure: Measure
    original: float
    floor: float

    def is_respected(self, groups: ChannelGroups) -> bool:
        """Whether a network does not undercut it."""
        return self.measure(groups) >= self.floor

    def is_reached(self, groups: ChannelGroups) -> bool:
        """Whether a network is as near to it as is asked for, or below."""
        return self.measure(groups) <= self.floor * (1 + TOLERANCES.get(self.name, TOLERANCE))

    def said(self, value: float) -> str:
        """Write a value of this cost, and its share of the original."""
        whole = said(self.name, self.original)
        return f"{said(self.name, value)} ({value / max(self.original, 1e-9):.1%} of {whole})"

    def at(self, groups: ChannelGroups) -> str:
        """Say where a network stands."""
        return f"{self.name} {self.said(self.measure(groups))}"


def targets_of(groups: ChannelGroups, constraints: Constraints) -> list[Target]:
    """Return the targets in absolute numbers.

    A float up to 1 is a fraction of what the network was before anything was removed.
    """
    if not constraints.stop_at:
        return []
    original, known = groups.unpruned(), measures(constraints.latencies)
    targets = []
    for name, value in constraints.stop_at.items():
        whole = known[name](original)
        floor = value * whole if isinstance(value, float) and value <= 1 else value
        targets.append(Target(name, known[name], whole, floor))
    return targets


def with_floors(targets: Sequence[Target], floors: Mapping[str, float]) -> list[Target]:
    """Return targets with other floors, by name."""
    return [replace(target, floor=floors.get(target.name, target.floor)) for target in targets]
