"""Cuts with which the network's code is run before any plan is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups

_KINDS_TRIED = 8
"""Kinds of units in a group that are tried one by one."""


def trial_cuts(groups: ChannelGroups) -> Iterator[dict[str, Sequence[int]]]:
    """Yield trial cuts that tell groups of equal size apart: code that mixes up their sizes must fail."""
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


def _one_of_each_kind(groups: ChannelGroups, group: ChannelGroup) -> list[int]:
    """Choose a unit of every kind in a group: those of one kind count alike in all integer arguments of operators.

    Halves of a stream that are sliced apart, say, may lose different numbers of channels with one unit and another.
    """
    kinds = groups.kinds_of_units[group.first_unit : group.first_unit + group.num_channels]
    units: list[int] = np.sort(np.unique(kinds, return_index=True)[1]).tolist()
    return units


def _choices(size: int) -> int:
    """Return how many different numbers of channels are removed from groups of one size."""
    return size if size < 12 else size // 6 + 1


def _about_a_third(place: int, size: int, digit: int) -> Sequence[int]:
    """Choose positions, the last among them, so that no arithmetic in the code is right by chance.

    Groups of equal size lose different numbers of positions: they depend on one of two digits of the group's place.
    """
    choices = _choices(size)
    shown = place // choices**digit % choices
    count = (1 + shown) % size if size < 12 else size // 3 - shown
    others = np.random.default_rng(place).permutation(size - 1)[: max(count - 1, 0)]
    return [*others.tolist(), size - 1] if count else []


def _leading_odd_third(size: int) -> Sequence[int]:
    """Choose an odd number of positions, all at the beginning: halves and quarters in the code are then wrong.

    Of few positions half are removed: code that rounds is only noticed when several are.
    """
    return range(-(-size // 2) if size < 6 else size // 3 | 1)
