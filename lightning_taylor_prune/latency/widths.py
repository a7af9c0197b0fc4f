"""How the time of a network depends on the size of one group: what a unit costs, which multiples are fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.latency.operators import Operator
from lightning_taylor_prune.latency.program import Part, Program
from lightning_taylor_prune.latency.steps import STEPS, Units

Seconds = Callable[[Part, Units], float]

_TRIED = 32
"""Numbers of units at which multiples are compared."""

_TOLERANCE = 1.003
"""A larger multiple must be faster by this factor."""


class _Widths:
    """The time of the operators that one group changes, at every number of units that it may keep."""

    def __init__(self, program: Program, groups: ChannelGroups, group: ChannelGroup, seconds: Seconds) -> None:
        self._seconds = seconds
        self._now = program.sizes.units(groups.structure.counts(groups.kept))
        self._at = dict(_numbers_of_units(program, groups, group))
        self._parts = [entry for entry in program.parts if not self._at.keys().isdisjoint(entry[1])]
        self._known: dict[int, float] = {}

    def __call__(self, kept: int) -> float:
        """Return the seconds of these operators once the group keeps so many units, its first ones."""
        if kept not in self._known:
            self._known[kept] = self._sum(kept)
        return self._known[kept]

    def _sum(self, kept: int) -> float:
        total = 0.0
        for part, numbers, calls in self._parts:
            units = tuple(int(self._at[n][kept]) if n in self._at else self._now[n] for n in numbers)
            total += calls * self._seconds(part, units)
        return total


def _numbers_of_units(
    program: Program, groups: ChannelGroups, group: ChannelGroup
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield the numbers of units that a group changes, each with its value for 0, 1, ... units that the group keeps."""
    position = np.full(len(groups.kept), -1)
    position[group.roots] = np.arange(group.num_channels)
    for number, roots in enumerate(program.sizes.roots):
        own = position[roots]
        if (own >= 0).any():
            others = int(groups.kept[roots[own < 0]].sum())
            added = np.bincount(own[own >= 0], minlength=group.num_channels)
            yield number, others + np.concatenate([[0], np.cumsum(added)])


def milliseconds_per_unit(program: Program, groups: ChannelGroups, seconds: Seconds) -> Tensor:
    """Return what a unit of each group costs, shape ``[groups.num_units]``, in milliseconds, at least 0."""
    costs = torch.zeros(groups.num_units, dtype=torch.float64)
    for group in groups:
        count = group.num_channels
        if count > 1:
            widths, block = _Widths(program, groups, group, seconds), _block(group)
            saved = max(widths(count) - widths(count - block), 0.0) / block
            costs[group.first_unit : group.first_unit + count] = 1e3 * saved
    return costs


def _block(group: ChannelGroup) -> int:
    """Return over how many units costs are averaged: some of the largest steps, so that the step remains the same."""
    step = STEPS[0] // math.gcd(STEPS[0], group.width)
    block = max(round(group.num_channels / 4 / step), 1) * step
    return block if block < group.num_channels else group.num_channels // 2


def best_multiples(program: Program, groups: ChannelGroups, seconds: Seconds) -> dict[str, int]:
    """Return for every group the smallest multiple of channels that no larger one is faster than."""
    program = replace(program, parts=[entry for entry in program.parts if isinstance(entry[0], Operator)])
    return {group.name: _best_multiple(_Widths(program, groups, group, seconds), group) for group in groups}


def _best_multiple(widths: _Widths, group: ChannelGroup) -> int:
    count = group.num_channels
    lowest = max(count // 4, 1)
    tried = sorted({round(n) for n in np.linspace(lowest, count, _TRIED)})
    slope = (widths(count) - widths(lowest)) / max(count - lowest, 1)
    means = {}
    for multiple in sorted(STEPS):
        step = multiple // math.gcd(multiple, group.width)
        if 2 * step > count:
            break
        rounded = [min(max(round(n / step), 1), count // step) * step for n in tried]
        moved = sum(rounded) - sum(tried)  # what is kept more or less altogether must not decide
        means[multiple] = sum(map(widths, rounded)) - slope * moved
    fastest = min(means.values(), default=0.0)
    return next((multiple for multiple, mean in means.items() if mean <= fastest * _TOLERANCE), 1)
