"""The order in which units are removed, and how many of a group may be."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.constraints import AUTO, Constraints
from lightning_taylor_prune.pruning.layers import ratios_of_groups, without_leave

Floats = npt.NDArray[np.float64]

Block = tuple[str, npt.NDArray[np.int64]]
"""Units of one group that are removed together; afterwards the group has an allowed size."""


def ranked_blocks(groups: ChannelGroups, scores: Floats, constraints: Constraints) -> list[Block]:
    """Return blocks of units in the order of removal; after each block its group has an allowed size.

    Within a group a block never ranks before an earlier one, so that every prefix is a valid choice.
    """
    skipped, ratios = without_leave(groups, constraints), ratios_of_groups(groups, constraints.max_pruning_ratio)
    multiples = _multiples(groups, constraints)
    names: list[str] = []
    blocks: list[npt.NDArray[np.int64]] = []
    means: list[float] = []
    for group in groups:
        if group.name in skipped:
            continue
        own = scores[group.first_unit : group.first_unit + group.num_channels]
        order = np.argsort(own, kind="stable")  # NaN sorts last
        multiple, scored = multiples[group.name], int(np.isfinite(own).sum())
        stops = _stops(group, scored, constraints.min_channels, multiple, ratios[group.name])
        pieces = np.split(order[: stops[-1]], stops[:-1]) if stops else []
        values = np.maximum.accumulate(np.array([own[piece].mean() for piece in pieces]))
        names += [group.name] * len(pieces)
        blocks += pieces
        means += values.tolist()
    ranking = np.argsort(np.array(means), kind="stable")
    return [(names[i], blocks[i]) for i in ranking.tolist()]


def _multiples(groups: ChannelGroups, constraints: Constraints) -> Mapping[str, int]:
    """Return of what the channels of each group are to be a multiple; the same however far pruning has come."""
    if constraints.round_to == AUTO:
        assert constraints.latencies is not None
        return constraints.latencies.best_multiple(groups.unpruned())
    return dict.fromkeys((group.name for group in groups), constraints.round_to)


def _stops(group: ChannelGroup, scored: int, min_channels: int, multiple: int, ratio: float) -> list[int]:
    """Return the numbers of units, ascending, that may be removed from a group altogether."""
    kept = math.ceil((1 - ratio) * group.original_num_channels - 1e-9)
    removable = min(scored, group.num_channels - max(1, min_channels, kept))
    step = multiple // math.gcd(multiple, group.width)
    first = group.num_channels % step or step
    return list(range(first, removable + 1, step))
