"""Choose which units are removed: scores and constraints in, a plan out. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lightning_taylor_prune.errors import ArgumentError, PlanError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.balance import balanced
from lightning_taylor_prune.pruning.constraints import Constraints, check_fraction, check_int
from lightning_taylor_prune.pruning.costs import Latency
from lightning_taylor_prune.pruning.layers import Layers
from lightning_taylor_prune.pruning.measured import with_latency
from lightning_taylor_prune.pruning.rank_by import RankBy, check_rank_by, rank_scores
from lightning_taylor_prune.pruning.ranking import Block, ranked_blocks
from lightning_taylor_prune.pruning.targets import Target, targets_of, with_floors


@dataclass(frozen=True)
class _Way:
    """Blocks to remove, and why there are no more."""

    blocks: Sequence[Block]
    reason: Literal["target", "nothing_left"] | None


@dataclass(frozen=True)
class Choice:
    """A plan, and why it holds fewer units than were asked for (``None`` if it does not)."""

    plan: PruningPlan
    reason: Literal["target", "nothing_left"] | None


def select(
    groups: ChannelGroups,
    scores: Tensor,
    num_units: int | None = None,
    *,
    pruning_ratio: float | None = None,
    min_channels: int = 1,
    max_pruning_ratio: float | Mapping[Layers, float] = 1.0,
    round_to: int | Literal["auto"] = 1,
    exclude: Collection[Layers] = (),
    include: Collection[Layers] | None = None,
    stop_at: Mapping[str, float] | None = None,
    rank_by: RankBy | None = None,
    latency: Latency | Mapping[str, Any] | None = None,
) -> PruningPlan:
    """Choose the units of lowest score over all groups.

    A unit counts once, however many layers it spans. Ties go to the earlier group and the earlier channel.

    Args:
        groups: The groups of the network as it is now.
        scores: One score per unit, shape ``[groups.num_units]``, group after group; NaN is never chosen.
        num_units: How many units to remove at most.
        pruning_ratio: Instead, the fraction of all units, in [0, 1].
        min_channels: Units that every group keeps at least.
        max_pruning_ratio: Largest fraction of a group's original units that may be removed, earlier plans included;
            or a dict of those by layer: of several that match the smallest counts, and what none names has 0.9.
        round_to: The channels that a group keeps are a multiple of this (8 suits tensor cores); ``"auto"``: each
            group's own, at which its layers run fast on the device.
        exclude: Names, patterns or classes of layers, or of modules around them, none of whose filters is removed.
        include: The same, for the only layers whose filters are removed.
        stop_at: Costs that must not be undercut: ``{"params": 0.45}``; a float up to 1 is a fraction of the original
            network's, anything else absolute. Costs are ``params``, ``macs`` (per example), ``filters``, ``memory`` and
            ``activation_memory`` (bytes), ``latency`` (milliseconds). Where the next unit would undercut one, those of
            higher score that fit are chosen, until the cost is within 1 % of the target (latency 3 %). Several targets
            shift the ranking so far that all are reached together, see
            :func:`~lightning_taylor_prune.pruning.balance.balanced`.
        rank_by: What units are compared by, see :func:`~lightning_taylor_prune.pruning.rank_by.rank_scores`.
        latency: Tells latencies: a :class:`~lightning_taylor_prune.latency.table.LatencyTable`. Without one, a target
            of ``latency``, ``"score_per_ms"`` and ``"auto"`` have it measured, once, which takes up to two minutes (or
            as a dict of options of its ``measure`` says, such as ``{"max_seconds": 20}``).

    Returns:
        A plan for :func:`~lightning_taylor_prune.pruning.prune.prune_`.

    Raises:
        PlanError: The scores do not fit the groups.
        ArgumentError: An argument cannot be used, or names something unknown.

    Example:
        >>> import torch
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
    constraints = Constraints(min_channels, max_pruning_ratio, round_to, exclude, stop_at, include, latency)
    check_rank_by(rank_by)
    check_scores(groups, scores)
    constraints = with_latency(constraints, rank_by, groups)
    return choose(groups, rank_scores(scores, groups, rank_by, constraints.latencies), wanted, constraints).plan


def choose(
    groups: ChannelGroups,
    scores: Tensor,
    wanted: int | None,
    constraints: Constraints,
    floors: Mapping[str, float] | None = None,
) -> Choice:
    """Choose units, and say why there are fewer than were asked for; see :func:`select`.

    Args:
        groups: The groups of the network as it is now.
        scores: Shape ``[groups.num_units]``.
        wanted: How many units to remove at most; ``None`` for as many as the targets allow.
        constraints: What to respect.
        floors: Absolute costs that this choice must not undercut on the way to the targets.
    """
    check_scores(groups, scores)
    scores = scores.detach().double().cpu()
    targets = targets_of(groups, constraints)
    limits = targets if floors is None else with_floors(targets, floors)

    def ranked(by: Tensor) -> Sequence[Block]:
        return ranked_blocks(groups, by.numpy(), constraints)

    def take(by: Tensor) -> ChannelGroups:
        return without(groups, _on_the_way(groups, ranked(by), limits).blocks)

    blocks = ranked(balanced(groups, scores, limits, take))
    way = _on_the_way(groups, blocks, limits) if floors else _up_to_targets(groups, blocks, wanted, targets)
    return Choice(_plan(groups, way.blocks), way.reason)


def check_scores(groups: ChannelGroups, scores: Tensor) -> None:
    """Check that there is a score for every unit."""
    if scores.shape != (groups.num_units,):
        raise PlanError(f"Expected `scores` of shape ({groups.num_units},), but got {tuple(scores.shape)}.")


def _on_the_way(groups: ChannelGroups, blocks: Sequence[Block], floors: Sequence[Target]) -> _Way:
    """Take blocks in their order up to the first that would undercut a floor; it can be taken at a later prune."""
    count = _fitting(groups, (), blocks, floors)
    return _Way(blocks[:count], None if count < len(blocks) else "nothing_left")


def _up_to_targets(
    groups: ChannelGroups, blocks: Sequence[Block], wanted: int | None, targets: Sequence[Target]
) -> _Way:
    """Take blocks in their order; past one that would undercut a target, those that still fit, until it is reached."""
    taken: list[Block] = []
    blocked = reached = False
    while not reached:
        count = _within(blocks, None if wanted is None else wanted - _units(taken), bool(taken))
        fitting = _fitting(groups, taken, blocks[:count], targets)
        taken += blocks[:fitting]
        if fitting == count:
            blocks = blocks[count:]
            break
        blocked, full = True, blocks[fitting][0]
        blocks = [block for block in blocks[fitting:] if block[0] != full]
        reached = all(target.is_reached(without(groups, taken)) for target in targets)
    if blocked and (reached or not blocks):
        return _Way(taken, "target")
    return _Way(taken, "nothing_left" if not blocks and (wanted is None or _units(taken) < wanted) else None)


def _fitting(groups: ChannelGroups, taken: Sequence[Block], blocks: Sequence[Block], targets: Sequence[Target]) -> int:
    """Return how many of further blocks, in their order, can be taken without undercutting a target."""
    if not targets:
        return len(blocks)
    return _longest_prefix(len(blocks), lambda k: _respects(without(groups, [*taken, *blocks[:k]]), targets))


def _within(blocks: Sequence[Block], wanted: int | None, has_some: bool) -> int:
    """Return how many blocks hold ``wanted`` units at most; a first one that is larger is removed by itself."""
    if wanted is None:
        return len(blocks)
    count = int(np.searchsorted(np.cumsum([len(units) for _, units in blocks]), wanted, side="right"))
    return 1 if not count and blocks and wanted > 0 and not has_some else count


def _units(blocks: Iterable[Block]) -> int:
    return sum(len(units) for _, units in blocks)


def without(groups: ChannelGroups, blocks: Iterable[Block]) -> ChannelGroups:
    """Return the groups of the network without some blocks; cheaper than by a plan, and enough for counting."""
    kept = groups.kept.copy()
    for name, units in blocks:
        kept[groups[name].roots[units]] = False
    return ChannelGroups(groups.analysis, kept)


def _plan(groups: ChannelGroups, blocks: Iterable[Block]) -> PruningPlan:
    removed: dict[str, list[int]] = {}
    for name, units in blocks:
        removed.setdefault(name, []).extend(units.tolist())
    return groups.plan(removed)


def _respects(groups: ChannelGroups, targets: Iterable[Target]) -> bool:
    return all(target.is_respected(groups) for target in targets)


def _longest_prefix(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest ``k <= count`` that fits, by bisection: costs only fall as more is removed."""
    if not count or fits(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
