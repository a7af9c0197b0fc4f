"""What units are compared by: their scores, scores per saved cost, or their places among units of like structure."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.groups.unit_costs import unit_costs
from lightning_taylor_prune.pruning.constraints import check_choice
from lightning_taylor_prune.pruning.costs import COSTS, Latency

RankBy = Literal["score", "score_per_param", "score_per_mac", "score_per_ms", "isomorphic"]

_COST_OF = {"score_per_param": "params", "score_per_mac": "macs"}

_LEAST = 1e-6
"""What a unit counts as saving at least, relative to the mean: one that saves nothing of the cost is removed last."""


def check_rank_by(value: RankBy | None) -> None:
    """Check what units are to be compared by.

    Raises:
        ArgumentError: There is no such way.
    """
    if value is not None:
        check_choice("rank_by", value, get_args(RankBy))


def rank_scores(
    scores: Tensor, groups: ChannelGroups, rank_by: RankBy | None = None, latency: Latency | None = None
) -> Tensor:
    """Return the values by which units are compared: the lowest are removed first.

    - ``"score"``, and ``None``: the score itself.
    - ``"score_per_param"``, ``"score_per_mac"``, ``"score_per_ms"``: the score over what the network saves if the unit
      alone is removed, as it is now, relative to the mean of all units; so each removed unit costs as little of the
      loss as can be for what it saves. A negative score is multiplied instead.
    - ``"isomorphic"`` (Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024): only units of like structure
      compete, since scores of others are not on one scale. Groups are alike if their units touch the same axes of the
      same parameters of as many modules of the same classes: the hidden units of all MLPs of a transformer, the heads
      of all its blocks, its stream. A class that had ``n`` units, of which ``m`` have been removed, gives the unit with
      the ``r``-th lowest score the value ``(m + r) / n``: the share of the class that is gone once it is removed. So
      all classes give the same share, and within each the lowest scores are removed, in whichever layer.

    Args:
        scores: Shape ``[groups.num_units]``; NaN stays NaN.
        groups: The groups of the network as it is now.
        rank_by: How.
        latency: Tells the latency, for ``"score_per_ms"``.

    Returns:
        Shape ``[groups.num_units]``.
    """
    if rank_by is None or rank_by == "score" or not groups.num_units:
        return scores
    scores = scores.detach().double().cpu()
    if rank_by == "isomorphic":
        return _places_in_classes(scores, groups)
    if rank_by == "score_per_ms":
        assert latency is not None
        saved = latency.unit_latency(groups)
    else:
        saved = unit_costs(groups, COSTS[_COST_OF[rank_by]])
    saved = saved.detach().double().cpu()
    relative = (saved / saved.mean().clamp(min=1e-30)).clamp(min=_LEAST)
    return torch.where(scores < 0, scores * relative, scores / relative)


def _places_in_classes(scores: Tensor, groups: ChannelGroups) -> Tensor:
    members: dict[frozenset[object], list[ChannelGroup]] = {}
    for group in groups:
        members.setdefault(structure_of_units(groups, group), []).append(group)
    places = torch.full_like(scores, torch.nan)
    for alike in members.values():
        units = torch.cat([torch.arange(g.first_unit, g.first_unit + g.num_channels) for g in alike])
        units = units[scores[units].isfinite()]
        whole = sum(group.original_num_channels for group in alike)
        gone = whole - sum(group.num_channels for group in alike)
        order = units[scores[units].argsort(stable=True)]
        places[order] = (gone + torch.arange(1, len(order) + 1, dtype=torch.float64)) / whole
    return places


def structure_of_units(groups: ChannelGroups, group: ChannelGroup) -> frozenset[object]:
    """Return what is equal for groups of like structure: which axes of which parameters, how often."""
    found = groups.structure.propagation
    kinds: Counter[object] = Counter()
    for number in groups.axes_of(group):
        owner, _, name = found.axes[number].tensor.rpartition(".")
        owner = owner.partition(".parametrizations.")[0]
        kinds[found.traces[0].classes.get(owner), name, found.axes[number].dim, groups.role_of(number)] += 1
    return frozenset(kinds.items())
