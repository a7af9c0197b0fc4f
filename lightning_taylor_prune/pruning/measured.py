"""Latencies that arguments ask for and nobody hands in: they are measured, once for all ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.latency import LatencyTable
from lightning_taylor_prune.pruning.constraints import AUTO, Constraints
from lightning_taylor_prune.pruning.costs import LATENCY
from lightning_taylor_prune.pruning.rank_by import RankBy
from lightning_taylor_prune.pruning.ranks import Ranks


def needs_latency(constraints: Constraints, rank_by: RankBy | None) -> bool:
    """Whether choosing units asks for latencies that nothing tells yet."""
    asked = LATENCY in (constraints.stop_at or {}) or rank_by == "score_per_ms" or constraints.round_to == AUTO
    return asked and constraints.latencies is None


def with_latency(
    constraints: Constraints,
    rank_by: RankBy | None,
    groups: ChannelGroups,
    ranks: Ranks | None = None,
    known: str | None = None,
) -> Constraints:
    """Return constraints that can tell latencies, if these are asked for.

    Args:
        constraints: As the user gave them; their ``latency`` may hold options of the measurement.
        rank_by: What units are compared by.
        groups: The groups of the network, whose operators are measured.
        ranks: The ranks of a job: the first one measures, for all.
        known: A table of an earlier part of this training, as text; it is taken instead of measuring.
    """
    if not needs_latency(constraints, rank_by):
        return replace(constraints, latency=constraints.latencies)
    if known is None and (ranks is None or ranks.rank == 0):
        options: Any = constraints.latency or {}
        known = LatencyTable.measure(groups, **options).to_json()
    if ranks is not None:
        known = ranks.from_first(known)
    assert known is not None
    return replace(constraints, latency=LatencyTable.from_json(known))
