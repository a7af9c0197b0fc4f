"""What an inspection says is what a cut then does."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_taylor_prune import ArgumentError, Inspection, inspect, measure_cost, prune_
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.networks import NETWORKS
from tests.oracles import differences, state_of

BATCH = 2  # of all examples

SOME = ("conv_bn", "residual", "squeeze_excite", "flatten_to_linear", "attention_single_head")


def inspected(name: str, **arguments: object) -> tuple[nn.Module, Inspection]:
    network = NETWORKS[name]
    model = network.build()
    return model, inspect(model, network.example(), **arguments)  # type: ignore[arg-type]


def bytes_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("name", SOME)
def test_least_costs_are_those_of_the_network_cut_so_far(name: str) -> None:
    model, found = inspected(name)
    removed = {group.name: range(group.least_units, group.units) for group in found.groups}
    prune_(model, found.channel_groups.plan(removed))
    cost = measure_cost(model, NETWORKS[name].example())
    measured = {"params": cost.params, "macs": cost.macs / BATCH, "memory": bytes_of(model)}
    assert {cost: found[cost].least for cost in measured} == measured


@pytest.mark.parametrize("name", SOME)
def test_unit_saves_what_its_cut_saves(name: str) -> None:
    model, found = inspected(name)
    for group in found.groups:
        cut = copy.deepcopy(model)
        prune_(cut, found.channel_groups.plan({group.name: [group.units - 1]}))
        before, after = (measure_cost(network, NETWORKS[name].example()) for network in (model, cut))
        saved = {"params": before.params - after.params, "macs": (before.macs - after.macs) / BATCH}
        saved["memory"] = bytes_of(model) - bytes_of(cut)
        assert {cost: group.saved[cost] for cost in saved} == saved


def test_network_is_unchanged() -> None:
    network = NETWORKS["conv_bn"]
    model = network.build()
    before = state_of(model)
    inspect(model, network.example())
    assert differences(before, state_of(model)) == []


def test_group_names_its_layers() -> None:
    _, found = inspected("conv_bn")
    assert [(g.layers, g.readers) for g in found.groups] == [(("0",), ("3",)), (("3",), ("6.2",))]


def test_lock_shows_the_line_of_code() -> None:
    _, found = inspected("option_a_constant")
    lock = next(lock for lock in found.locked if "padding" in lock.reason)
    assert lock.source.startswith(str(Path(__file__).parents[1] / "networks.py")) and "F.pad" in lock.code


def test_excluded_groups_keep_all_units() -> None:
    _, found = inspected("conv_bn", exclude=["0"])
    assert [(g.units, g.least_units) for g in found.groups] == [(10, 10), (14, 1)]


@pytest.mark.parametrize(
    ("arguments", "least"),
    [({"min_channels": 3}, [3, 3]), ({"max_pruning_ratio": 0.5}, [5, 7]), ({"min_channels": 12}, [10, 12])],
    ids=["smallest number", "largest share", "more than there are"],
)
def test_constraints(arguments: dict[str, object], least: list[int]) -> None:
    _, found = inspected("conv_bn", **arguments)
    assert [group.least_units for group in found.groups] == least


def test_latency_becomes_a_cost() -> None:
    class Table:
        def latency(self, groups: ChannelGroups) -> float:
            return 0.5 * groups.num_units

    _, found = inspected("conv_bn", latency=Table())
    assert (found["latency"].now, found["latency"].least, found.groups[0].saved["latency"]) == (12, 1, 0.5)


def test_everything_is_plain_data_for_json() -> None:
    _, found = inspected("conv_bn")
    read = json.loads(json.dumps(found.as_dict()))
    assert read["groups"][0]["saved"]["params"] == found.groups[0].saved["params"]


def test_nothing_to_remove() -> None:
    found = inspect(nn.Linear(4, 3), torch.zeros(1, 4))
    assert str(found).startswith("Linear, 15 parameters: nothing can be removed.") and found["params"].fraction == 0


def test_wrong_argument_is_named() -> None:
    with pytest.raises(ArgumentError, match="`max_pruning_ratio`"):
        inspected("conv_bn", max_pruning_ratio=2.0)
