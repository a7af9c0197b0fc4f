"""What a prune did: for the loop that asked for it, and for the history."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.summary import highest_removed, score_summary


@dataclass(frozen=True)
class PruneOutcome:
    """What a prune did, and why it removed no more.

    Attributes:
        plan: What was removed; empty where nothing was.
        reason: Why fewer units were removed than asked for: ``"target"`` (the next one would undercut ``stop_at``),
            ``"nothing_left"`` (no unit is left within the constraints), ``"no_scores"`` (no minibatch since the last
            prune had finite gradients), ``"untraceable"`` (the network does other things now than when it was
            analysed, and cannot be traced); ``None`` if as many were removed as asked for.
    """

    plan: PruningPlan
    reason: Literal["target", "nothing_left", "no_scores", "untraceable"] | None

    def __bool__(self) -> bool:
        """Whether anything was removed."""
        return bool(self.plan)


def history_row(
    plan: PruningPlan, before: ChannelGroups, after: ChannelGroups, scores: Tensor, batch_size: int
) -> dict[str, Any]:
    """Return what the history notes of a prune, as plain data.

    Args:
        plan: What was removed.
        before: The groups before the cut.
        after: The groups after it.
        scores: Shape ``[before.num_units]``, as they were compared.
        batch_size: Examples in a call, for MACs per example.
    """
    return {
        "removed": len(plan),
        "filters": after.num_filters,
        "num_prunable_filters": after.num_prunable_filters,
        "params": after.params,
        "macs": after.macs // batch_size,
        "score_threshold": highest_removed(plan, before, scores),
        "scores": score_summary(plan, before, scores),
    }


def history_of_data(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a copy of the history in a checkpoint, in which earlier versions have a column of another name."""
    now = {"prunable_filters": "num_prunable_filters"}
    return [{now.get(name, name): copy.deepcopy(value) for name, value in row.items()} for row in rows]
