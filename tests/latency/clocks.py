"""What stands for a clock in tests: from an operator and numbers of units to seconds, without running anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_taylor_prune import ChannelGroups, LatencyTable, find_groups
from lightning_taylor_prune.latency.operators import Operator
from lightning_taylor_prune.latency.program import Part
from lightning_taylor_prune.latency.sizes import at
from lightning_taylor_prune.latency.steps import Units

Clock = Callable[[Part, Units], float | None]

NOTHING = 1e-15
"""Seconds of what does not count in a test."""


def macs(part: Part, units: Units) -> float:
    """A nanosecond for every multiplication of convolutions and linear layers."""
    if not isinstance(part, Operator) or not part.contracts:
        return NOTHING
    result, weight = at(part.results[0], units), at(part.operands[1].shape, units)
    return 1e-9 * math.prod(result) * math.prod(weight[1:])


def affine(part: Part, units: Units) -> float:
    """A microsecond for every call, and a nanosecond for every unit of work."""
    return 1e-6 + 1e-9 * part.work(units)


def stepped(step: int) -> Clock:
    """Convolutions and linear layers that take so many channels at once."""

    def clock(part: Part, units: Units) -> float:
        if not isinstance(part, Operator) or not part.contracts:
            return NOTHING
        channels = [n * multiple for n, multiple in zip(units, part.multiples, strict=True)]
        return 1e-6 * math.prod(math.ceil(c / step) for c in channels)

    return clock


def measured(groups: ChannelGroups, clock: Clock, **options: Any) -> LatencyTable:
    """Return a complete table without a cache, with a fake clock."""
    return LatencyTable.measure(groups, **{"cache_dir": False, "progress": False, "time_part": clock, **options})


def wide(width: int = 256) -> ChannelGroups:
    """Groups of a network of linear layers."""
    model = nn.Sequential(
        nn.Linear(9, width), nn.ReLU(), nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 5)
    )
    return find_groups(model, torch.zeros(2, 9))


def halved(groups: ChannelGroups) -> ChannelGroups:
    """Groups after every second unit has been removed."""
    return groups.after(groups.plan({g.name: range(0, g.num_channels, 2) for g in groups if g.num_channels > 1}))
