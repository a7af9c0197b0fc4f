"""Random networks, pruned at random: the laws hold for every one. ``FUZZ_NETWORKS=2000`` looks at more of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.prune import prune_
from tests.oracles import (
    TOLERANCE,
    evaluate,
    flatten,
    mask_readers_,
    masked_error,
    random_units,
    randomize_norms_,
    relative_error,
    training_step,
)
from tests.random_networks import BLOCKS, Place, example, networks

SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
search = settings(max_examples=int(os.environ.get("FUZZ_NETWORKS", 40)), suppress_health_check=SLOW_TO_DRAW)
ratios, seeds = st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 9)


def analysed(network: nn.Module) -> tuple[nn.Module, ChannelGroups]:
    network = randomize_norms_(network).double()
    return network, find_groups(network, example())


def without(units: Mapping[str, Sequence[int]], gone: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Return the other ``units``, as they are numbered after ``gone`` is removed."""
    rest = {name: sorted(set(chosen) - set(gone[name])) for name, chosen in units.items()}
    return {name: [u - sum(g < u for g in gone[name]) for u in chosen] for name, chosen in rest.items()}


@search
@given(network=networks(), ratio=ratios, seed=seeds)
def test_pruned_equals_masked(network: nn.Module, ratio: float, seed: int) -> None:
    network, groups = analysed(network)
    units = random_units(groups, ratio, seed)
    plan = groups.plan({name: chosen for name, chosen in units.items() if groups[name].exact})
    assert masked_error(network, copy.deepcopy(network), plan, example()) <= TOLERANCE[torch.float64]


@search
@given(network=networks(), ratio=ratios, seed=seeds)
def test_pruning_in_two_halves_equals_pruning_once(network: nn.Module, ratio: float, seed: int) -> None:
    once, groups = analysed(network)
    twice, units = copy.deepcopy(once), random_units(groups, ratio, seed)
    first = {name: chosen[::2] for name, chosen in units.items()}
    prune_(once, groups.plan(units))
    between = prune_(twice, groups.plan(first))
    assert between is not None
    prune_(twice, between.plan(without(units, first)))
    expected, found = once.state_dict(), twice.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert relative_error(evaluate(twice, example()), evaluate(once, example())) == 0


@search
@given(network=networks(), ratio=ratios, seed=seeds)
def test_a_pruned_network_answers_and_trains(network: nn.Module, ratio: float, seed: int) -> None:
    network, groups = analysed(network)
    before = evaluate(network, example())
    prune_(network, groups.plan(random_units(groups, ratio, seed)))
    pruned = evaluate(network, example())
    assert [t.shape for t in flatten(pruned)] == [t.shape for t in flatten(before)]
    training_step(network, example())
    assert relative_error(evaluate(network, example()), pruned) > 0


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=4, suppress_health_check=SLOW_TO_DRAW)
@given(data=st.data())
def test_every_block_can_be_pruned_around(name: str, data: st.DataObject) -> None:
    """A search over networks none of which can be pruned would find nothing."""
    build, fits = BLOCKS[name]
    place = Place(channels=8, pixels=8)
    assert fits(place)
    module, end = build(data.draw, place)
    stem, last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(end.channels, 5, 1)
    _, groups = analysed(nn.Sequential(stem, module, last))
    plan = groups.plan({group.name: [0] for group in groups if group.num_channels > 1})
    assert groups.after(plan).params < groups.params


def test_masking_a_reader_is_seen() -> None:
    """The oracle can fail: masking another unit than the one that is removed gives another network."""
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
    network, groups = analysed(network)
    masked = mask_readers_(copy.deepcopy(network), groups.plan({"0": [1]}))
    prune_(network, groups.plan({"0": [2]}))
    assert relative_error(evaluate(network, example()), evaluate(masked, example())) > 1e-3
