"""Make scores of different groups comparable."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.unit_costs import unit_costs


def normalize_scores(scores: Tensor, groups: ChannelGroups, how: str = "none", macs_weight: float = 0.0) -> Tensor:
    """Make scores of different groups comparable.

    Args:
        scores: Shape ``[num_units]``.
        groups: The groups.
        how: ``"none"``, or divide by each group's ``"mean"``, ``"l2"`` norm or ``"max"``.
        macs_weight: Take this much, times the share of all MACs that a unit costs, off its score
            (Molchanov et al. 2017, section 2.3). 0 for no preference.

    Returns:
        Shape ``[num_units]``.
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"`normalize` must be one of {', '.join(NORMALIZATIONS)}, but got {how!r}.")
    parts = []
    for part in scores.split_with_sizes([g.num_channels for g in groups]):
        divisor = NORMALIZATIONS[how](part[part.isfinite()]) if part.isfinite().any() else torch.ones(())
        parts.append(part / divisor if divisor > 0 else part)
    normalized = torch.cat(parts) if parts else scores
    if macs_weight:
        normalized = normalized - macs_weight * unit_macs(groups) / groups.macs
    return normalized


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda part: torch.ones((), dtype=part.dtype),
    "mean": torch.mean,
    "l2": torch.linalg.vector_norm,
    "max": torch.max,
}


def unit_macs(groups: ChannelGroups) -> Tensor:
    """Return, for every unit, the MACs saved when it alone is removed; float64, shape ``[num_units]``."""
    return unit_costs(groups, lambda now: now.macs)


def without_groups(scores: Tensor, groups: ChannelGroups, names: Collection[str]) -> Tensor:
    """Return scores with NaN, which is never chosen, for all units of some groups."""
    scores = scores.clone()
    for name in names:
        first = groups[name].first_unit
        scores[first : first + groups[name].num_channels] = torch.nan
    return scores
