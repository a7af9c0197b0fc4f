"""Targets that cannot be reached are refused, with what keeps them from being reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_taylor_prune import ArgumentError, Pruner, find_groups
from lightning_taylor_prune.pruning.constraints import Constraints
from lightning_taylor_prune.pruning.reach import check_targets


class Net(nn.Sequential):
    """Groups `first` and `second`; the wide output of `head` is locked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 16, 3), nn.ReLU()
        self.second, self.head = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 200, 1)


GROUPS = find_groups(Net(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("stop_at", "options", "message"),
    [
        ({"params": 0.02}, {}, r"`stop_at\['params'\]` to be at least 438 \(3.7% of 11,688\).*got 234 \(2.0%"),
        ({"params": 0.02}, {}, "200 channels of `head`: each is an output of the network"),
        ({"params": 0.2}, {"max_pruning_ratio": 0.5}, r"`max_pruning_ratio=0.5` \(without it: 438 "),
        ({"params": 0.2}, {"exclude": ["second"]}, r"`exclude=\['second'\]` \(without it: 438 "),
        ({"macs": 0.2}, {"min_channels": 12}, "`min_channels=12`"),
        ({"filters": 210}, {"round_to": 16}, r"at least 232 \(93.5% of 248\).*`round_to=16`"),
        ({"memory": 10**9}, {}, "at most what the network costs now, .* bytes, but got 1,000,000,000 bytes"),
        ({"params": 0.95, "filters": 0.83}, {}, "params of at least .*, the filters fall to about .* Ask for fewer p"),
    ],
    ids=["all", "locks", "ratio", "exclude", "min_channels", "round_to", "above", "contradiction"],
)
def test_target_out_of_reach_is_refused(stop_at: dict[str, float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_targets(GROUPS, Constraints(stop_at=stop_at, **options))


@pytest.mark.parametrize(
    "stop_at",
    [{"params": 0.04}, {"params": 1.0}, {"params": 0.5, "macs": 0.5}, {"params": 0.5, "filters": 0.9}, None, {}],
    ids=str,
)
def test_target_within_reach_is_accepted(stop_at: dict[str, float] | None) -> None:
    check_targets(GROUPS, Constraints(stop_at=stop_at))


def test_pruned_network_is_judged_by_what_it_was() -> None:
    small = GROUPS.after(GROUPS.plan({"second": range(20)}))
    check_targets(small, Constraints(stop_at={"params": GROUPS.params - 1}))


def test_pruner_refuses_before_it_prunes() -> None:
    with pytest.raises(ArgumentError, match="What keeps more: `max_pruning_ratio=0.9`"):
        Pruner(Net(), torch.zeros(2, 3, 8, 8), stop_at={"params": 0.05})
