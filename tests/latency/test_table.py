from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from lightning_taylor_prune import ArgumentError, LatencyTable, PruningWarning, find_groups
from lightning_taylor_prune.latency import cache
from lightning_taylor_prune.latency.program import Part
from lightning_taylor_prune.latency.steps import Units
from tests.latency.clocks import NOTHING, affine, halved, macs, measured, wide
from tests.networks import NETWORKS

CNNS = ["sequential", "conv_bn", "residual", "depthwise_separable", "grouped", "squeeze_excite", "dense_concat"]
ATTENTION = ["attention_qkv", "multihead_attention"]


@pytest.fixture(params=[*CNNS, *ATTENTION])
def groups(request):
    network = NETWORKS[request.param]
    return find_groups(network.build(), network.example())


@pytest.mark.parametrize("name", CNNS)
def test_convolutions_take_what_their_macs_do(name):
    groups = find_groups(NETWORKS[name].build(), NETWORKS[name].example())
    table = measured(groups, macs)
    assert [1e6 * table.latency(g) for g in (groups, halved(groups))] == pytest.approx(
        [groups.macs, halved(groups).macs], rel=1e-6
    )


def test_latency_is_the_sum_over_operators_for_a_clock_without_steps(groups):
    table, after = measured(groups, affine), halved(groups)
    program = table.program(after)
    units = program.sizes.units(after.structure.counts(after.kept))
    expected = sum(
        calls * affine(part, part.full if part.is_view else tuple(units[n] for n in numbers))
        for part, numbers, calls in program.parts
    )
    assert table.latency(after) == pytest.approx(1e3 * expected, rel=1e-9)


def test_operators_count_as_often_as_they_run():
    groups = find_groups(nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))), torch.zeros(2, 6))
    table = measured(groups, lambda part, units: 1e-3 if part.key.startswith("aten.linear") else NOTHING)
    assert table.latency(groups) == pytest.approx(4)


def test_table_of_another_network_is_refused():
    with pytest.raises(ArgumentError, match="measured on another network"):
        measured(wide(256), affine).latency(wide(64))


def test_latency_needs_no_new_measurement_after_a_cut():
    groups = wide(256)
    table = measured(groups, affine)
    before = {key: dict(times) for key, times in table.times.items()}
    assert (table.latency(halved(groups)) < table.latency(groups), table.times == before) == (True, True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_operators_are_those_of_evaluation_mode(training):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3)).train(training)
    keys = measured(find_groups(model, torch.zeros(2, 3, 9, 9)), affine).times
    flags = [key for key in keys if "True, 0.1" in key or "0.5, True" in key]
    assert not flags


def test_statistics_of_the_batch_are_used_where_a_layer_has_no_others():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 3)).eval()
    keys = measured(find_groups(model, torch.zeros(2, 3, 9, 9)), affine).times
    assert any("None, None, True" in key for key in keys)


def test_channels_last_reaches_all_operators():
    network = NETWORKS["conv_bn"]
    table = measured(find_groups(network.build(), network.example()), affine, channels_last=True)
    assert all("@0231" in key for key in table.times if "aten.batch_norm" in key or "aten.conv2d" in key)


def test_dtype_reaches_all_operators():
    network = NETWORKS["attention_qkv"]
    table = measured(find_groups(network.build(), network.example()), affine, dtype=torch.bfloat16)
    assert not [key for key in table.times if "float32" in key]


def test_operator_that_cannot_run_counts_nothing_and_is_named():
    def clock(part: Part, units: Units) -> float | None:
        return None if "aten.relu" in part.key else affine(part, units)

    with pytest.warns(PruningWarning, match=r"unknown.*aten\.relu"):
        table = measured(wide(), clock)
    assert table.latency(wide()) > 0


def test_every_operator_is_measured_once_however_little_time_there_is():
    groups = wide()
    table = measured(groups, affine, max_seconds=1e-9)
    assert {len(times) for times in table.times.values()} == {1}
    assert table.latency(halved(groups)) < table.latency(groups)


def test_other_process_gets_the_same_table():
    groups = wide()
    table = measured(groups, affine)
    copies = [LatencyTable.from_json(table.to_json()), pickle.loads(pickle.dumps(table)), copy.deepcopy(table)]
    assert [t.latency(halved(groups)) for t in copies] == [table.latency(halved(groups))] * 3


def test_time_per_unit_is_the_slope():
    groups = wide(256)
    table = measured(groups, macs)
    first = groups["0"]
    saved = table.latency(groups) - table.latency(groups.after(groups.plan({"0": range(64)})))
    found = table.unit_latency(groups)
    assert found.shape == (groups.num_units,)
    assert found[: first.num_channels].numpy() == pytest.approx(saved / 64, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_seconds", 0), ("max_seconds", "long"), ("num_threads", 0), ("device", "toaster"), ("cache_dir", True)],
)
def test_bad_argument_is_named(name, value):
    with pytest.raises(ArgumentError, match=f"`{name}`"):
        LatencyTable.measure(wide(), **{name: value})


def test_real_measurement_is_positive():
    groups = find_groups(NETWORKS["conv_bn"].build(), NETWORKS["conv_bn"].example())
    table = LatencyTable.measure(groups, max_seconds=0.1, cache_dir=False, progress=False)
    assert 0 < table.latency(halved(groups)) < 1e4


# --- the cache ------------------------------------------------------------------------------------------------------


def test_what_is_in_the_cache_is_not_measured_again(tmp_path):
    groups = wide()
    first = measured(groups, affine, cache_dir=tmp_path)
    calls = []
    second = measured(groups, lambda part, units: calls.append(units), cache_dir=tmp_path)
    assert (calls, second.times) == ([], first.times)


def test_default_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured(wide(), affine, cache_dir=None, num_threads=3, dtype=torch.bfloat16, channels_last=True)
    (file,) = (tmp_path / "lightning_taylor_prune").iterdir()
    assert all(
        word in file.name for word in (torch.__version__.split("+")[0], "3-threads", "bfloat16", "channels-last")
    )


def test_measurement_that_was_killed_goes_on_where_it_was(tmp_path):
    groups, asked = wide(), []

    def clock(part: Part, units: Units) -> float:
        if len(asked) == 20:
            raise KeyboardInterrupt
        asked.append((part.key, units))
        return affine(part, units)

    with pytest.raises(KeyboardInterrupt):
        measured(groups, clock, cache_dir=tmp_path)
    further = []
    table = measured(groups, lambda p, u: further.append((p.key, u)) or affine(p, u), cache_dir=tmp_path)
    assert set(asked).isdisjoint(further)
    assert table.times == measured(groups, affine).times


def test_times_are_written_while_others_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_taylor_prune.latency.measuring._SAVE_EVERY", -1)
    seen = []

    def clock(part: Part, units: Units) -> float:
        files = list(tmp_path.glob("*.json"))
        seen.append(sum(map(len, json.loads(files[0].read_text())["operators"].values())) if files else 0)
        return affine(part, units)

    measured(wide(), clock, cache_dir=tmp_path)
    assert seen == list(range(len(seen)))


DAMAGED = {"empty": "", "text": "hello", "other": '{"format": 1}', "list": "[1]", "future": '{"format": 99}'}
DAMAGED["dtype"] = (
    '{"format": 1, "operators": {}, "conditions": {"device": "x", "device_type": "cpu", "torch_version": "2", '
    '"num_threads": 1, "dtype": "float1", "channels_last": null}}'
)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_in_the_cache_is_measured_anew_with_a_warning(tmp_path, content):
    groups = wide()
    measured(groups, affine, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with pytest.warns(PruningWarning, match=file.name):
        measured(groups, affine, cache_dir=tmp_path)
    assert LatencyTable.load(file).latency(groups) > 0


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_that_is_named_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ArgumentError, match=r"^Expected the file .*mine\.json.*measure anew\.$"):
        LatencyTable.load(tmp_path / "mine.json")


def test_file_with_a_time_that_is_none_is_refused(tmp_path):
    table = measured(wide(), affine)
    next(iter(table.times.values())).update({(7,): -1.0})
    table.save(tmp_path / "mine.json")
    with pytest.raises(ArgumentError, match="expected a time in seconds"):
        LatencyTable.load(tmp_path / "mine.json")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"none\.json.*LatencyTable\.measure"):
        LatencyTable.load(tmp_path / "none.json")


@pytest.mark.parametrize("what", ["device", "torch_version"])
def test_table_of_another_machine_is_refused_unless_asked_for(tmp_path, what):
    table = measured(wide(), affine)
    text = json.loads(table.to_json())
    text["conditions"][what] = "Abacus 9000"
    (tmp_path / "other.json").write_text(json.dumps(text))
    with pytest.raises(ArgumentError, match=r"other\.json.*Abacus 9000.*any_conditions=True"):
        LatencyTable.load(tmp_path / "other.json")
    assert LatencyTable.load(tmp_path / "other.json", any_conditions=True).latency(wide()) > 0


def test_table_in_the_cache_of_another_machine_is_measured_anew_with_a_warning(tmp_path):
    groups = wide()
    measured(groups, affine, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(cache.device_name(torch.device("cpu")), "Abacus 9000"))
    with pytest.warns(PruningWarning, match="Abacus 9000"):
        table = measured(groups, affine, cache_dir=tmp_path)
    assert LatencyTable.load(file).times == table.times


def test_folder_that_cannot_be_written_costs_no_measurement(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(PruningWarning, match="cannot be kept"):
        table = measured(wide(), affine, cache_dir=tmp_path / "file" / "folder")
    assert table.latency(wide()) > 0
