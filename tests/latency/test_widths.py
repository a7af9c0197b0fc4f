from __future__ import annotations

import pytest

from lightning_taylor_prune import find_groups
from tests.latency.clocks import macs, measured, stepped, wide
from tests.networks import NETWORKS


@pytest.mark.parametrize("step", [8, 16, 32])
def test_best_multiple_is_how_many_channels_are_taken_at_once(step):
    groups = wide(512)
    assert measured(groups, stepped(step)).best_multiple(groups) == {"0": step, "2": step}


def test_no_multiple_is_better_where_each_channel_costs_the_same():
    groups = wide()
    assert set(measured(groups, macs).best_multiple(groups).values()) == {1}


def test_multiple_is_of_channels_not_of_units():
    network = NETWORKS["attention_qkv_by_head_width"]
    groups = find_groups(network.build(), network.example())
    assert all(multiple >= 1 for multiple in measured(groups, stepped(8)).best_multiple(groups).values())


def test_unit_costs_its_part_of_a_step():
    groups = wide(256)
    table = measured(groups, stepped(32))
    whole = table.latency(groups) - table.latency(groups.after(groups.plan({"0": range(64)})))
    assert float(table.unit_latency(groups)[0]) == pytest.approx(whole / 64)


def test_group_of_one_unit_saves_nothing():
    groups = wide(256)
    last = groups.after(groups.plan({"0": range(255)}))
    assert float(measured(groups, macs).unit_latency(last)[0]) == 0
