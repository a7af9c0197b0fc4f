"""Choose which units are removed: scores and constraints in, a plan out. Pure and deterministic."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_taylor_prune.errors import ArgumentError, PlanError
from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.constraints import Constraints, check_fraction, check_int
from lightning_taylor_prune.pruning.costs import COSTS

Floats = npt.NDArray[np.float64]

StopReason = Literal["target", "nothing_left"]


@dataclass(frozen=True)
class Choice:
    """A plan, and why it holds fewer units than were asked for (``None`` if it does not)."""

    plan: PruningPlan
    reason: StopReason | None


def select(
    groups: ChannelGroups,
    scores: Tensor,
    num_units: int | None = None,
    *,
    pruning_ratio: float | None = None,
    min_channels: int = 1,
    max_pruning_ratio: float = 1.0,
    round_to: int = 1,
    exclude: Collection[str] = (),
    stop_at: Mapping[str, float] | None = None,
) -> PruningPlan:
    """Choose the units of lowest score over all groups.

    A unit counts once, however many layers it spans. Ties go to the earlier group and the earlier channel.

    Args:
        groups: The groups of the network as it is now.
        scores: One score per unit, shape ``[groups.num_units]``, group after group; NaN is never chosen.
        num_units: How many units to remove at most.
        pruning_ratio: Instead, the fraction of all units, in [0, 1].
        min_channels: Units that every group keeps at least.
        max_pruning_ratio: Largest fraction of a group's original units that may be removed, earlier plans included.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores).
        exclude: Names or patterns of layers, none of whose filters is removed.
        stop_at: Costs that must not be undercut: ``{"params": 0.45}``; a float up to 1 is a fraction of the original
            network's, anything else absolute. Costs are ``params``, ``macs`` and ``filters``.

    Returns:
        A plan for :func:`~lightning_taylor_prune.pruning.prune.prune_`.

    Raises:
        PlanError: The scores do not fit the groups.
        ArgumentError: An argument cannot be used, or names something unknown.

    Example:
        >>> from lightning_taylor_prune import find_groups
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> groups = find_groups(net, torch.zeros(1, 3, 8, 8))
        >>> select(groups, torch.tensor([5.0, 0.1, 4.0, 3.0, 0.2, 6.0, 7.0, 8.0]), 2).removed
        {'0': (1, 4)}
    """
    if (num_units is None) == (pruning_ratio is None):
        raise ArgumentError("Expected exactly one of the arguments `num_units` and `pruning_ratio`.")
    if num_units is not None:
        check_int("num_units", num_units, at_least=0)
    else:
        check_fraction("pruning_ratio", pruning_ratio, zero=True)
    wanted = num_units if num_units is not None else int((pruning_ratio or 0.0) * groups.num_units)
    constraints = Constraints(min_channels, max_pruning_ratio, round_to, exclude, stop_at)
    return choose(groups, scores, wanted, constraints).plan


def choose(groups: ChannelGroups, scores: Tensor, wanted: int, constraints: Constraints) -> Choice:
    """Choose up to ``wanted`` units, and say why there are fewer; see :func:`select`."""
    if scores.shape != (groups.num_units,):
        raise PlanError(f"Expected `scores` of shape ({groups.num_units},), but got {tuple(scores.shape)}.")
    blocks = _ranked_blocks(groups, scores.detach().double().cpu().numpy(), constraints)
    sizes = np.cumsum([len(units) for _, units in blocks])
    count = int(np.searchsorted(sizes, wanted, side="right"))
    if not count and wanted > 0 and blocks:
        count = 1  # a block may be larger than a step; then it is removed by itself
    floors = cost_floors(groups, constraints.stop_at)
    fitting = count
    if floors:
        fitting = _longest_prefix(count, lambda k: _respects(groups.after(_plan(groups, blocks[:k])), floors))
    reason: StopReason | None = None
    if fitting < count:
        reason = "target"
    elif (sizes[count - 1] if count else 0) < wanted and count == len(blocks):
        reason = "nothing_left"
    return Choice(_plan(groups, blocks[:fitting]), reason)


def cost_floors(groups: ChannelGroups, stop_at: Mapping[str, float] | None) -> dict[str, float]:
    """Return absolute floors for a target given in fractions of the original network or absolute numbers."""
    if not stop_at:
        return {}
    original = groups.unpruned()
    floors = {}
    for name, value in stop_at.items():
        fraction = isinstance(value, float) and value <= 1
        floors[name] = value * COSTS[name](original) if fraction else value
    return floors


def excluded_groups(groups: ChannelGroups, patterns: Iterable[str]) -> set[str]:
    """Return the groups that would take filters from a layer that some pattern names.

    A pattern is a layer's name, a shell pattern, or the name of a module that contains layers.

    Raises:
        ArgumentError: A pattern matches no layer.
    """
    called = _names_of_layers(groups)
    layers = {
        g.name: {n for s in g.slices if s.role == "writer" for n in called[layer_name(s.tensor)]} | {g.name}
        for g in groups
    }
    known = {name for names in layers.values() for name in names}
    known |= {name for entry in groups.locked for name in called[entry.name]}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            raise ArgumentError(
                f"Expected argument `exclude` to name layers, but {pattern!r} matches none of "
                f"{', '.join(sorted(known))}."
            )
    return {
        group
        for group, names in layers.items()
        if any(matches(name, pattern) for name in names for pattern in patterns)
    }


def _names_of_layers(groups: ChannelGroups) -> dict[str, set[str]]:
    """Return all names of every layer, one under which a tied weight is found as well, by each of them."""
    same: dict[int, set[str]] = {}
    tensors = groups.structure.propagation.traces[0].tensors
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), set()).add(layer_name(name))
    called: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        called.setdefault(layer_name(name), set()).update(same[id(tensor)])
    return called


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a layer: exactly, as a shell pattern, or as a module that contains it."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _ranked_blocks(
    groups: ChannelGroups, scores: Floats, constraints: Constraints
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Return blocks of units in the order of removal; after each block its group has an allowed size.

    Within a group a block never ranks before an earlier one, so that every prefix is a valid choice.
    """
    skipped = excluded_groups(groups, constraints.exclude) if constraints.exclude else set()
    names: list[str] = []
    blocks: list[npt.NDArray[np.int64]] = []
    means: list[float] = []
    for group in groups:
        if group.name in skipped:
            continue
        own = scores[group.first_unit : group.first_unit + group.num_channels]
        order = np.argsort(own, kind="stable")  # NaN sorts last
        stops = _stops(group, int(np.isfinite(own).sum()), constraints)
        pieces = np.split(order[: stops[-1]], stops[:-1]) if stops else []
        values = np.maximum.accumulate(np.array([own[piece].mean() for piece in pieces]))
        names += [group.name] * len(pieces)
        blocks += pieces
        means += values.tolist()
    ranking = np.argsort(np.array(means), kind="stable")
    return [(names[i], blocks[i]) for i in ranking.tolist()]


def _stops(group: ChannelGroup, scored: int, constraints: Constraints) -> list[int]:
    """Return the numbers of units, ascending, that may be removed from a group altogether."""
    kept = math.ceil((1 - constraints.max_pruning_ratio) * group.original_num_channels - 1e-9)
    removable = min(scored, group.num_channels - max(1, constraints.min_channels, kept))
    step = constraints.round_to // math.gcd(constraints.round_to, group.width) if constraints.round_to > 1 else 1
    first = group.num_channels % step or step
    return list(range(first, removable + 1, step))


def _plan(groups: ChannelGroups, blocks: Iterable[tuple[str, npt.NDArray[np.int64]]]) -> PruningPlan:
    removed: dict[str, list[int]] = {}
    for name, units in blocks:
        removed.setdefault(name, []).extend(units.tolist())
    return groups.plan(removed)


def _respects(groups: ChannelGroups, floors: Mapping[str, float]) -> bool:
    return all(COSTS[name](groups) >= floor for name, floor in floors.items())


def _longest_prefix(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest ``k <= count`` that fits, by bisection: costs only fall as more is removed."""
    if fits(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def highest_removed(plan: PruningPlan, groups: ChannelGroups, scores: Tensor) -> float:
    """Return the highest score among the units that a plan removes."""
    removed = [groups[name].first_unit + unit for name, units in plan.removed.items() for unit in units]
    return float(scores[torch.tensor(removed)].max()) if removed else math.nan


def score_summary(plan: PruningPlan, groups: ChannelGroups, scores: Tensor) -> dict[str, dict[str, Any]]:
    """Sum up why a plan takes what it takes: for each group, a few plain numbers (``None`` where there is nothing).

    Args:
        plan: What is removed.
        groups: The groups before the cut.
        scores: Shape ``[groups.num_units]``, as they were compared.

    Returns:
        By group: ``removed``, units removed; ``removed_score`` and ``kept_score``, median scores of the units that are
        removed and kept; ``rank``, where the group's median unit stands among all scored units, from 0 (lowest score)
        to 1.
    """
    values = scores.detach().double().cpu().numpy()
    ranks = _ranks(values)
    summary = {}
    for group in groups:
        units = slice(group.first_unit, group.first_unit + group.num_channels)
        removed = np.zeros(group.num_channels, dtype=bool)
        removed[list(plan.removed.get(group.name, ()))] = True
        summary[group.name] = {
            "removed": int(removed.sum()),
            "removed_score": _median(values[units][removed]),
            "kept_score": _median(values[units][~removed]),
            "rank": _median(ranks[units]),
        }
    return summary


def _ranks(values: Floats) -> Floats:
    """Return each value's place among the finite ones, 0 to 1; NaN for the others."""
    ranks = np.full_like(values, math.nan)
    finite = np.flatnonzero(np.isfinite(values))
    ranks[finite[np.argsort(values[finite], kind="stable")]] = np.linspace(0, 1, len(finite))
    return ranks


def _median(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None
