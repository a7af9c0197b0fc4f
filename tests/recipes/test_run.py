import csv
import json
import sys

import pytest
import torch

from lightning_taylor_prune import load_pruned
from lightning_taylor_prune.report import Results
from recipes import evaluation, stages
from recipes.errors import RecipeError
from recipes.models import ResNet
from tests.recipes.tiny import TINY

NETWORKS = ("original.pt", "pruned.pt", "retrained.pt")


@pytest.fixture(scope="module")
def whole(compose_into, tmp_path_factory):
    """A folder that all four stages wrote, and what `run` returned."""
    out = tmp_path_factory.mktemp("whole")
    return out, stages.run(compose_into(out, *TINY, "logger=default"))


@pytest.fixture(scope="module")
def results(whole):
    return Results.load(whole[0] / "results.json")


def weights(file):
    return torch.load(file, weights_only=True)["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_network_comes_out_smaller(results):
    assert results.pruned.params < results.original.params == 19_810
    assert results.pruned.macs < results.original.macs
    assert results.original.filters - results.pruned.filters >= 12


def test_folder_holds_every_network_the_report_and_nothing_unfinished(whole):
    names = {file.name for file in whole[0].iterdir()}
    assert {*NETWORKS, "report.html", "comparison.csv", "comparison.json", "pruning.json", "outcome.json"} <= names
    assert not [name for name in names if "unfinished" in name or name.endswith(".part")]
    assert len(list(whole[0].glob("logs/*/tensorboard/events.*"))) == 3


def test_history_logs_and_table_agree(whole, results):
    out, _ = whole
    assert [event["step"] for event in results.history] == [2, 4, 6]
    with (out / "logs/prune/csv/metrics.csv").open(newline="") as file:
        logged = [float(line["prune/params"]) for line in csv.DictReader(file) if line["prune/params"]]
    assert logged == [event["params"] for event in results.history]
    records = json.loads((out / "comparison.json").read_text())
    assert records[0]["pruned"] == results.history[-1]["params"] == results.pruned.params


def test_retrained_network_loads_in_a_fresh_one(whole, results):
    network = load_pruned(whole[0] / "retrained.pt", ResNet(1, 10, 8, (8, 16, 32)))
    assert sum(p.numel() for p in network.parameters()) == results.pruned.params
    assert same(network.state_dict(), weights(whole[0] / "retrained.pt"))


def test_outcome_is_of_the_last_network_on_held_out_images(whole, results):
    out, found = whole
    assert json.loads((out / "outcome.json").read_text()) == found
    assert found["params"] == results.pruned.params
    assert 0 <= found["val_acc"] <= 1


def test_confusion_counts_every_test_image(results):
    for network in (results.original, results.pruned):
        assert sum(map(sum, network.confusion)) == 359
    assert results.class_names == tuple("0123456789")


def test_groups_tell_what_they_lost(results):
    lost = sum(group.units_before - group.units_after for group in results.groups)
    assert lost == sum(event["removed"] for event in results.history) == 12


def test_stage_by_stage_is_the_same_as_at_once(whole, compose_into, tmp_path):
    for stage in stages.NEEDS:
        stages.run(compose_into(tmp_path, *TINY, f"stage={stage}"))
    assert [same(weights(whole[0] / name), weights(tmp_path / name)) for name in NETWORKS] == [True] * 3
    one, other = (Results.load(folder / "results.json") for folder in (whole[0], tmp_path))
    assert (one.original.confusion, one.pruned.confusion) == (other.original.confusion, other.pruned.confusion)


def test_weights_replace_the_training_and_a_run_goes_on_in_another_folder(whole, compose_into, tmp_path):
    given = f"weights={whole[0] / 'original.pt'}"
    stages.run(compose_into(tmp_path / "pruned", *TINY, "stage=prune", given))
    assert same(weights(whole[0] / "pruned.pt"), weights(tmp_path / "pruned" / "pruned.pt"))
    assert not (tmp_path / "pruned" / "logs" / "train").exists()
    stages.run(compose_into(tmp_path / "on", *TINY, "stage=retrain", f"run={tmp_path}/pruned"))
    assert same(weights(whole[0] / "retrained.pt"), weights(tmp_path / "on" / "retrained.pt"))


def test_second_report_does_not_read_the_test_images_again(whole, compose_into, monkeypatch):
    out, _ = whole
    before = Results.load(out / "results.json")
    (out / "report.html").unlink()
    monkeypatch.setattr(evaluation, "confusion", lambda *_: pytest.fail("read the test images again"))
    stages.run(compose_into(out, *TINY, "stage=compare", "title=Anew"))
    assert (out / "report.html").is_file()
    after = Results.load(out / "results.json")
    assert (after.title, after.pruned.confusion) == ("Anew", before.pruned.confusion)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=prune"], "stage `prune` needs original.pt, which stage `train` makes"),
        (["stage=[train,retrain]"], "stage `retrain` needs pruned.pt, which stage `prune` makes"),
        (["stage=compare"], "stage `compare` needs original.pt"),
    ],
    ids=str,
)
def test_stages_that_lack_their_input_are_refused_before_anything_is_made(compose_into, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        stages.run(compose_into(tmp_path / "out", *overrides, f"run={tmp_path}/nothing"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["nonsense=1"], "Could not override 'nonsense'"),
        (["data=nonsense"], "Could not find 'data/nonsense'"),
        (["data=imagefolder"], "data.root"),
        (["data=imagefolder", "data.root=/nowhere"], "No folder /nowhere/train"),
        (["data.batch_size=many"], "Expected `data.batch_size` to be int"),
        (["model.depth=21"], "model: Expected argument `depth`"),
        (["model=vgg16_bn"], "`model` does not take images of 1 x 8 x 8"),
        (["pruning.every_n_steps=0"], "pruning: Expected argument `every_n_steps`"),
        (["pruning.target=head"], "Expected `pruning.target` to name a part of the network, got head"),
        (["pruning.stop_at={parms: 0.5}"], "parms"),
        (["weights=/nowhere.pt"], "No file /nowhere.pt"),
        (["seed=abc"], "Expected `seed` to be int"),
        (["stage=polish"], "got polish"),
        (["stage=retrain"], "Nothing to go on from"),
        (["train.trainer.max_epochs=soon"], "`train.trainer`: expected `max_epochs` to be int or null, got 'soon'"),
        (["trainer.precision=12"], "Precision 12 is invalid"),
        (["+trainer.nonsense=1"], "unexpected keyword argument 'nonsense'"),
        (["retrain.optimizer.lr=-1"], "`retrain.optimizer` or `retrain.scheduler`: Invalid learning rate: -1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_a_failure_and_nothing_half_written(overrides, message, tmp_path, monkeypatch, capsys):
    from recipes.prune import main

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["recipes/prune.py", *overrides, f"hydra.run.dir={tmp_path}/out"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert message in stop.value.code
    assert "\n" not in stop.value.code
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "out").exists()
