"""How far pruning can go: targets that cannot be reached are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.unit_costs import unit_costs
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.costs import said
from lightning_taylor_prune.pruning.select import choose
from lightning_taylor_prune.pruning.targets import Target, targets_of

_CONTRADICTION = 0.1
"""Share of the original cost by which one target must be missed, once another one is reached, to be refused: what is
removed then is chosen well, but perhaps not best."""


def check_targets(groups: ChannelGroups, constraints: Constraints) -> None:
    """Check that all targets can be reached from the unpruned network, each by itself and any two together.

    Raises:
        ArgumentError: One cannot; the message tells how far pruning can go, and what keeps it from going further.
    """
    targets = targets_of(groups, constraints)
    if not targets or not groups.num_units:
        return
    original = groups.unpruned()
    for target in targets:
        if target.floor > target.original:
            raise ArgumentError(
                f"Expected `stop_at[{target.name!r}]` to be at most what the network costs now, "
                f"{said(target.name, target.original)}, but got {said(target.name, target.floor)}."
            )
    least = smallest(original, constraints)
    for target in targets:
        if not target.is_reached(least):
            raise ArgumentError(_out_of_reach(target, original, least, constraints))
    for first, second in permutations(targets, 2):
        _check_pair(original, constraints, first, second)


def smallest(groups: ChannelGroups, constraints: Constraints) -> ChannelGroups:
    """Return the groups of the smallest network that the constraints allow, targets aside."""
    free = replace(constraints, stop_at=None)
    return groups.after(choose(groups, torch.zeros(groups.num_units), None, free).plan)


def _out_of_reach(target: Target, original: ChannelGroups, least: ChannelGroups, constraints: Constraints) -> str:
    reasons = [*_binding(target, original, least, constraints), *_locks(original)]
    return (
        f"Expected `stop_at[{target.name!r}]` to be at least {target.said(target.measure(least))}, as no more can be "
        f"removed, but got {target.said(target.floor)}. What keeps more: {'; '.join(reasons)}."
    )


def _binding(target: Target, original: ChannelGroups, least: ChannelGroups, constraints: Constraints) -> Iterator[str]:
    """Name every argument without which more could be removed."""
    for name, loosened in _loosened(constraints).items():
        value, reachable = getattr(constraints, name), target.measure(smallest(original, loosened))
        if reachable < target.measure(least):
            shown = value if isinstance(value, (int, float, Mapping)) else list(value or ())
            yield f"`{name}={shown}` (without it: {target.said(reachable)})"


def _loosened(constraints: Constraints) -> dict[str, Constraints]:
    """Return the constraints without each of them."""
    return {
        "min_channels": replace(constraints, min_channels=1),
        "max_pruning_ratio": replace(constraints, max_pruning_ratio=1.0),
        "round_to": replace(constraints, round_to=1),
        "include": replace(constraints, include=None),
        "exclude": replace(constraints, exclude=()),
    }


def _locks(groups: ChannelGroups, most: int = 3) -> Iterator[str]:
    """Name the reasons for which most channels are locked, and some layers of each."""
    layers: dict[str, dict[str, int]] = {}
    for entry in groups.locked:
        layers.setdefault(entry.reason, {})[entry.name] = entry.num_channels
    for reason, found in sorted(layers.items(), key=lambda item: -sum(item[1].values()))[:most]:
        yield f"{sum(found.values()):,} channels of {_some(found)}: each {reason}"


def _some(names: Mapping[str, int], most: int = 3) -> str:
    shown = ", ".join(f"`{name}`" for name in list(names)[:most])
    return f"{shown} and {len(names) - most} more layers" if len(names) > most else shown


def _check_pair(original: ChannelGroups, constraints: Constraints, kept: Target, wanted: Target) -> None:
    """Check that one target is about reached when what saves most of it per unit of the other has reached the other."""
    ratio = unit_costs(original, kept.measure) / unit_costs(original, wanted.measure).clamp(min=1e-9)
    alone = replace(constraints, stop_at={kept.name: kept.floor})
    after = original.after(choose(original, ratio, None, alone).plan)
    if wanted.measure(after) > wanted.floor + _CONTRADICTION * wanted.original:
        raise ArgumentError(
            f"Expected targets in `stop_at` that can be reached together, but with {kept.name} of at least "
            f"{kept.said(kept.floor)}, the {wanted.name} fall to about {wanted.said(wanted.measure(after))} at best, "
            f"not to {wanted.said(wanted.floor)}. Ask for fewer {kept.name} or more {wanted.name}."
        )


def where(targets: Sequence[Target], groups: ChannelGroups) -> str:
    """Say where a network stands once no more can be removed on the way to its targets."""
    stands = ", ".join(target.at(groups) for target in targets)
    if all(target.is_reached(groups) for target in targets):
        return f"the target is reached: {stands}"
    floors = ", ".join(f"{target.name} {target.said(target.floor)}" for target in targets)
    return f"any unit more would undercut the target ({floors}): {stands}"
