import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes import stages
from recipes.errors import RecipeError

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model=resnet8",
    "train.trainer.max_epochs=1",
    "pruning.every_n_steps=2",
    "pruning.filters_per_prune=4",
    "pruning.max_prunes=3",
    "retrain.trainer.max_epochs=1",
    "+trainer.limit_train_batches=6",
)


@pytest.fixture
def result(compose_recipe, tmp_path):
    rows = stages.run(compose_recipe(*TINY))
    return {row.name: row for row in rows}, tmp_path / "out"


def test_network_comes_out_smaller_and_everything_is_saved(result):
    rows, out = result
    assert rows["learnables"].pruned < rows["learnables"].original == 19_810
    assert rows["MACs"].pruned < rows["MACs"].original
    assert rows["filters"].original - rows["filters"].pruned >= 12
    names = "comparison.csv comparison.json filters.png history.json original.pt progress.png pruned.pt"
    assert set(names.split()) <= {file.name for file in out.iterdir()}
    assert {file.stem for file in out.glob("*.ckpt")} == {"train", "prune", "retrain"}
    assert len(list(out.glob("logs/*/tensorboard/events.*"))) == 3
    records = json.loads((out / "comparison.json").read_text())
    assert records[0]["pruned"] == rows["learnables"].pruned


def test_history_logs_and_weights_agree_with_the_table(result):
    rows, out = result
    history = json.loads((out / "history.json").read_text())
    assert [event["step"] for event in history] == [2, 4, 6]
    assert history[-1]["params"] == rows["learnables"].pruned
    with (out / "logs/prune/csv/metrics.csv").open(newline="") as file:
        logged = [line["prune/params"] for line in csv.DictReader(file) if line["prune/params"]]
    assert [float(value) for value in logged] == [event["params"] for event in history]
    weights = torch.load(out / "pruned.pt", weights_only=True)
    learnables = (v.numel() for k, v in weights.items() if "running" not in k and "batches" not in k)
    assert sum(learnables) == rows["learnables"].pruned


def test_same_seed_same_result(compose_recipe, tmp_path):
    runs = [compose_recipe(*TINY, f"output_dir={tmp_path}/{i}", "seed=3") for i in range(2)]
    assert stages.run(runs[0]) == stages.run(runs[1])
    first, second = (torch.load(tmp_path / str(i) / "pruned.pt", weights_only=True) for i in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_replace_the_training(compose_recipe, tmp_path):
    assert stages.run(compose_recipe(*TINY, "stages=[train]")) is None
    weights = tmp_path / "out" / "original.pt"
    cfg = compose_recipe(*TINY, "stages=[prune]", f"weights={weights}", f"output_dir={tmp_path}/second")
    assert stages.run(cfg)
    assert not (tmp_path / "second" / "train.ckpt").exists()
    first, second = (torch.load(file, weights_only=True) for file in tmp_path.glob("*/original.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[train,prune,polish]", "got polish"),
        ("stages=[train,retrain]", "Stage `retrain` follows `prune`"),
        ("stages=[prune]", "Expected `weights` to name a checkpoint"),
    ],
)
def test_stages_that_cannot_work_are_refused(compose_recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        stages.run(compose_recipe(override))


def run_script(*overrides, folder):
    command = [sys.executable, "recipes/prune.py", *overrides, f"hydra.run.dir={folder}/out"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_script_runs_from_the_repository(tmp_path):
    done = run_script(*TINY, "logger=csv", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "learnables" in done.stdout
    assert (tmp_path / "out" / "comparison.json").is_file()
    assert not (tmp_path / "out" / "logs" / "train" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["nonsense=1"], "Could not override 'nonsense'"),
        (["data=nonsense"], "Could not find 'data/nonsense'"),
        (["data=imagefolder"], "data.root"),
        (["data=imagefolder", "data.root=/nowhere"], "No folder /nowhere/train"),
        (["model.depth=21"], "Expected argument `depth`"),
        (["pruning.every_n_steps=0"], "every_n_steps"),
        (["weights=/nowhere.pt"], "No file /nowhere.pt"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(overrides, message, tmp_path, monkeypatch, capsys):
    from recipes.prune import main

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["recipes/prune.py", *overrides, f"hydra.run.dir={tmp_path}/out"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert message in stop.value.code
    assert "\n" not in stop.value.code
