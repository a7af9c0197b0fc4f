"""What follows a module has its labels tied to that one's; it need not run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups, prune_
from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin
from lightning_taylor_prune.tracing.call import Call
from tests.lightning_modules import small_network


class Followed(nn.Module):
    """A network with a head, and a frozen copy of the network."""

    def __init__(self, runs: bool) -> None:
        super().__init__()
        self.runs = runs
        self.average = copy.deepcopy(small_network()[:6]).requires_grad_(False)
        self.network, self.head = small_network()[:6], small_network()[6:]

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.network(x))
        return out + self.head(self.average(x)) if self.runs else out


X = torch.zeros(2, 1, 8, 8)


def groups_of(module: Followed, twins: list[Twin]) -> ChannelGroups:
    return groups_of_calls(module, [Call("", (X,), {})], twins=twins)


TWINS = [Twin("average", "network")]


@pytest.mark.parametrize("runs", [True, False], ids=["runs", "never runs"])
def test_the_follower_is_cut_at_the_same_positions(runs: bool) -> None:
    module = Followed(runs)
    groups = find_groups(module, X)
    prune_(module, groups.plan({"network.0": [1, 5]}))
    assert all(torch.equal(a, b) for a, b in zip(module.average.parameters(), module.network.parameters(), strict=True))


def test_groups_are_named_after_the_leader() -> None:
    assert [group.name for group in groups_of(Followed(runs=True), TWINS)] == ["network.0", "network.3"]


def test_outputs_are_locked_where_it_was_not_seen_how_the_followers_are_used() -> None:
    reasons = {entry.name: entry.reason for entry in groups_of(Followed(runs=False), TWINS).locked}
    assert "how that one is used was not seen" in reasons["network.3"]


def test_what_is_no_twin_and_not_used_is_no_reader_or_writer() -> None:
    groups = groups_of(Followed(runs=False), [])
    roles = {slice_.role for group in groups for slice_ in group.slices if "average" in slice_.tensor}
    assert roles <= {"affine"}


def test_a_lock_of_the_follower_locks_the_leader() -> None:
    module = Followed(runs=True)
    groups = groups_of_calls(module, [Call("", (X,), {})], fixed=["average.0.weight"], twins=TWINS)
    assert "network.0" not in groups
