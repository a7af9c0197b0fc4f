"""Why a plan takes what it takes, in a few plain numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan

Floats = npt.NDArray[np.float64]


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
