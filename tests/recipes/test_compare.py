import csv
import json
import statistics

import pytest
import yaml

from recipes.compare import Run, compare, main, read_runs, rows_of, settings_of

HELD_OUT = {"taylor": [0.9, 0.92, 0.94], "random": [0.5, 0.7, 0.6]}


def write_run(folder, overrides, outcome=None, test_accuracy=None):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if outcome is not None:
        (folder / "outcome.json").write_text(json.dumps(outcome))
    if test_accuracy is not None:
        rows = [
            {"metric": "filters", "original": 9, "pruned": 5, "change_percent": -44.4},
            {"metric": "accuracy (%)", "original": 99, "pruned": 100 * test_accuracy, "change_percent": -1},
        ]
        (folder / "comparison.json").write_text(json.dumps(rows))


@pytest.fixture
def sweep(tmp_path):
    jobs = [(name, seed, acc) for name, accuracies in HELD_OUT.items() for seed, acc in enumerate(accuracies)]
    for number, (name, seed, accuracy) in enumerate(jobs):
        overrides = ["data=digits", f"pruning.criterion={name}", f"seed={seed}"]
        write_run(tmp_path / str(number), overrides, {"params": 1000 + seed, "val_acc": accuracy}, accuracy - 0.01)
    return tmp_path


def test_runs_are_gathered_by_what_differs_but_the_seed(sweep):
    runs, unfinished = read_runs([sweep])
    settings = settings_of(runs)
    assert [(s.name, len(s.runs)) for s in settings] == [("taylor", 3), ("random", 3)]
    assert not unfinished


def test_several_differences_are_named(tmp_path):
    for i, (ratio, lr) in enumerate([(1, "0.1"), (2, "0.1"), (2, "0.2")]):
        write_run(tmp_path / str(i), [f"+a={ratio}", f"lr={lr}"], {"params": 1, "val_acc": 0.5})
    names = {s.name for s in settings_of(read_runs([tmp_path])[0])}
    assert names == {"a=1 lr=0.1", "a=2 lr=0.1", "a=2 lr=0.2"}


@pytest.mark.parametrize("measure", ["val_acc", "test_acc"])
def test_mean_and_standard_deviation(sweep, measure):
    (best, _) = settings_of(read_runs([sweep])[0])
    off = 0.01 if measure == "test_acc" else 0.0
    assert best.mean(measure) == pytest.approx(statistics.mean(HELD_OUT["taylor"]) - off)
    assert best.deviation(measure) == pytest.approx(statistics.stdev(HELD_OUT["taylor"]))


def test_one_run_has_no_deviation(tmp_path):
    write_run(tmp_path / "0", ["seed=1"], {"params": 10, "val_acc": 0.5})
    _, row = rows_of(settings_of(read_runs([tmp_path])[0]))
    assert row == ["all runs", "1", "50.00", "10"]


def test_test_accuracy_of_some_runs_only_is_not_averaged(tmp_path):
    runs = [Run({"seed": "1"}, {"params": 1, "val_acc": 0.5, "test_acc": 0.4}), Run({"seed": "2"}, {"val_acc": 0.7})]
    (setting,) = settings_of(runs)
    assert setting.mean("val_acc") == pytest.approx(0.6)
    assert setting.mean("test_acc") is None


def test_files_hold_the_table(sweep, tmp_path):
    out = tmp_path / "out"
    compare([sweep], out)
    with (out / "sweep.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["setting"], first["runs"]) == ("taylor", "3")
    assert float(first["val_acc_mean"]) == pytest.approx(0.92)
    assert "| taylor | 3 | 92.00 ± 2.00 | 91.00 ± 2.00 | 1,001 ± 1 |" in (out / "sweep.md").read_text()
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_figure_shows_every_run_and_the_spread(sweep):
    from recipes.compare import figure_of

    panel = figure_of(settings_of(read_runs([sweep])[0])).axes[0]
    runs, bars = panel.collections[0], panel.containers[0]
    assert runs.get_offsets()[:, 0].tolist() == pytest.approx([90, 92, 94])
    assert bars.lines[2][0].get_segments()[0][:, 0].tolist() == pytest.approx([90, 94])


def test_unfinished_runs_are_named(sweep, capsys):
    write_run(sweep / "6", ["pruning.criterion=magnitude"])
    compare([sweep], sweep)
    assert str(sweep / "6") in capsys.readouterr().err


def test_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: No finished run in .*outcome.json") as stop:
        main([str(tmp_path)])
    assert "\n" not in stop.value.code
    assert not list(tmp_path.iterdir())
