"""The bar, the figures and the curve, in real fits; what loggers got is read back from their own files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import rich
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.live import LossCurve, PruningFigures, PruningProgressBar, end_run, log_figure, progress_of
from lightning_taylor_prune.live.standing import Pace, Sizes, accuracy, headline, standing
from tests.lightning_modules import Classifier, loader, trainer

NAMES = ("prune/progress", "prune/filters_per_layer")
STEPS = [4, 8]  # optimizer steps at which `pruning()` prunes


def pruning(**kwargs: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(**{"every_n_steps": 4, "filters_per_prune": 2, "max_prunes": 2, **kwargs})


def fit(callbacks: list[Any], module: Any = None, validation: Any = None, ckpt_path: Any = None, **kwargs: Any) -> Any:
    """Ten steps, of which eight make an epoch."""
    runner = trainer(more_callbacks=callbacks, **{"max_epochs": -1, "max_steps": 10, **kwargs})
    runner.fit(module or Classifier(), loader(), validation or loader(16, seed=1), ckpt_path=ckpt_path)
    return runner


# --- loggers ----------------------------------------------------------------------------------------------------------


class Recorder(Logger):
    """A logger that takes figures once someone registers it."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[tuple[str, int, Any]] = []
        self.scalars: list[tuple[int | None, dict[str, float]]] = []

    name = version = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.scalars.append((step, dict(metrics)))


class Unknown(Recorder):
    """A logger of which nothing is known."""


@log_figure.register(Recorder)
def _(logger: Recorder, name: str, figure: Any, step: int) -> None:
    logger.figures.append((name, step, figure))


log_figure.register(Unknown, log_figure.dispatch(object))


def drawn(recorder: Recorder, name: str = NAMES[0]) -> list[int]:
    return [step for this, step, _ in recorder.figures if this == name]


def test_tensorboard_has_scalars_and_figures_of_each_prune(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit([pruning(), PruningFigures()], logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent), size_guidance={"images": 0}).Reload()
    assert {name: [image.step for image in events.Images(name)] for name in NAMES} == dict.fromkeys(NAMES, STEPS)
    assert [image.width for image in events.Images(NAMES[0])] == [800, 800]
    assert [scalar.value for scalar in events.Scalars("prune/filters")] == [22, 20]
    assert len(events.Scalars("prune/val_acc")) == 2


def test_csv_has_scalars_and_silence_about_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit([pruning(), PruningFigures()], logger=CSVLogger(tmp_path))
    with next(tmp_path.rglob("metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prune/filters"] for row in rows if row["prune/filters"]] == ["22.0", "20.0"]
    assert "figures" not in caplog.text


def test_mlflow_has_scalars_and_figures_of_each_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/runs")
    fit([pruning(), PruningFigures()], logger=logger)
    client, run = logger.experiment, logger.run_id
    assert [metric.value for metric in client.get_metric_history(run, "prune/filters")] == [22, 20]
    paths = "\n".join(sorted(file.path for file in client.list_artifacts(run, "images")))
    # MLflow writes name and step into the name of the file, between signs that depend on its version.
    patterns = {name: name.replace("/", ".") + r".step.(\d+).*\.png" for name in NAMES}
    steps = {name: [int(step) for step in re.findall(pattern, paths)] for name, pattern in patterns.items()}
    assert steps == dict.fromkeys(NAMES, STEPS)


def wandb_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the history of an offline run: LevelDB's log format, each record a protocol buffer."""
    from wandb.proto import wandb_internal_pb2

    data, record, at = path.read_bytes(), b"", 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if (left := 32768 - at % 32768) < 7:  # too little for a header: padding
            at += left
            continue
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            message = wandb_internal_pb2.Record.FromString(record)
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            record = b""


def test_wandb_has_scalars_and_figures_of_each_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(
        save_dir=tmp_path, settings={"x_disable_stats": True, "x_disable_meta": True, "console": "off"}
    )
    fit([pruning(), PruningFigures()], logger=logger)
    end_run(logger)
    wandb.teardown()  # only now its service has surely written everything
    rows = list(wandb_rows(next(tmp_path.rglob("*.wandb"))))
    assert [row["prune/filters"] for row in rows if "prune/filters" in row] == [22, 20]
    kinds = {name: f"{name}/_type" for name in NAMES}
    steps = {name: [row["trainer/global_step"] for row in rows if kind in row] for name, kind in kinds.items()}
    assert steps == dict.fromkeys(NAMES, STEPS)
    assert len(list(tmp_path.rglob("media/images/**/*.png"))) == 4


def test_unknown_logger_is_passed_over_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = Unknown()
    with caplog.at_level("INFO"):
        fit([pruning(), PruningFigures()], logger=logger)
    assert sum("Unknown gets no figures" in message for message in caplog.messages) == 1
    assert any("prune/val_acc" in row for _, row in logger.scalars)


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["after the pruning callback", "before it"])
def test_figures_show_what_validation_found(order: tuple[int, int]) -> None:
    recorder, pair = Recorder(), [pruning(), PruningFigures()]
    fit([pair[i] for i in order], logger=recorder)
    last = {(name, step): figure for name, step, figure in recorder.figures}[NAMES[0], STEPS[-1]]
    accuracies = last.axes[1].lines[0].get_ydata()
    expected = [100 * row["metrics"]["val_acc"] for row in pair[0].history]
    np.testing.assert_allclose(accuracies, [np.nan, *expected])


@pytest.mark.parametrize(("every", "steps"), [(1, [4, 8, 12]), (2, [8, 12]), (5, [12])])
def test_one_prune_in_so_many_is_drawn_and_the_last(every: int, steps: list[int]) -> None:
    recorder = Recorder()
    fit([pruning(max_prunes=3), PruningFigures(every)], logger=recorder, max_steps=12)
    assert drawn(recorder) == steps


def test_validation_before_training_is_the_first_point() -> None:
    figures, prune = PruningFigures(), pruning()
    module = Classifier()
    expected = trainer().validate(module, loader(16, seed=1), verbose=False)[0]["val_acc"]
    fit([prune, figures], module, num_sanity_val_steps=-1)
    progress = figures.progress(prune)
    assert progress.accuracies[0] == pytest.approx(expected)
    assert (progress.iterations, progress.prunable_filters) == ([0, *STEPS], [24, 22, 20])


def test_two_pruning_callbacks_have_figures_of_their_own() -> None:
    recorder = Recorder()
    targets = [pruning(target=f"network.{part}", max_prunes=1) for part in ("first", "second")]
    network = torch.nn.Sequential(
        OrderedDict(
            first=torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)),
            second=torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 4)),
        )
    )
    fit([*targets, PruningFigures()], Classifier(network), logger=recorder)
    assert {name for name, *_ in recorder.figures} == {f"{n}/network.{p}" for n in NAMES for p in ("first", "second")}


def test_other_ranks_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit([pruning(), figures := PruningFigures()], logger=recorder)
    assert not recorder.figures
    assert figures.curve.losses == []


def test_every_n_prunes_is_checked() -> None:
    with pytest.raises(MisconfigurationException, match="`every_n_prunes` to be at least 1, got 0"):
        PruningFigures(every_n_prunes=0)


# --- the curve --------------------------------------------------------------------------------------------------------


class Noting(Classifier):
    """Notes the losses that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        self.noted.append(loss.item())
        return loss if batch_idx != 3 else None


@pytest.mark.parametrize("accumulated", [1, 2])
def test_curve_has_the_losses_of_the_module(accumulated: int) -> None:
    curve, module = LossCurve(), Noting()
    fit([curve], module, accumulate_grad_batches=accumulated, max_epochs=1, max_steps=-1)
    del module.noted[3]  # this one led to no step
    assert curve.losses == module.noted
    assert curve.iterations == {1: [1, 2, 3, 5, 6, 7, 8], 2: [0, 1, 1, 2, 3, 3, 4]}[accumulated]


def test_very_long_curve_keeps_evenly_spaced_losses() -> None:
    thin, whole = LossCurve(max_points=8), LossCurve()
    for curve in (thin, whole):
        pl.seed_everything(0, verbose=False)
        fit([curve], max_steps=50)
    assert thin.every == 8
    assert thin.iterations == whole.iterations[::8]
    assert thin.losses == whole.losses[::8]


def test_losses_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_taylor_prune.live.curve.READ_AT_ONCE", 4)
    reads = []
    read = LossCurve._read
    monkeypatch.setattr(LossCurve, "_read", lambda self: (reads.append(len(self._waiting)), read(self)))
    fit([LossCurve()])
    assert reads == [4, 4, 2]


@pytest.mark.parametrize("own", [True, False], ids=["of the figures", "a callback by itself"])
def test_resumed_curve_goes_on_bit_for_bit(own: bool, tmp_path: Path) -> None:
    def callbacks() -> tuple[list[Any], PruningFigures, Recorder]:
        figures = PruningFigures()
        return [pruning(max_prunes=9), figures, *([] if own else [LossCurve()])], figures, Recorder()

    def epochs(count: int, ckpt_path: Any = None) -> tuple[LossCurve, list[int]]:
        these, figures, recorder = callbacks()
        saving = ModelCheckpoint(tmp_path, filename=f"{count}", save_on_train_epoch_end=True)
        limits = {"max_epochs": count, "max_steps": -1, "enable_checkpointing": True}
        fit([*these, saving], logger=recorder, ckpt_path=ckpt_path, **limits)
        return figures.curve, drawn(recorder)

    whole, _ = epochs(3)
    epochs(1)
    resumed, drawn_after = epochs(3, ckpt_path=tmp_path / "1.ckpt")
    assert resumed.losses == whole.losses
    assert resumed.iterations == whole.iterations
    # The prune at the end of the first epoch was not drawn yet when the checkpoint was written.
    assert drawn_after == [8, 12, 16, 20, 24]


def test_another_module_begins_another_curve() -> None:
    curve = LossCurve()
    for module in (Classifier(), Classifier()):
        fit([curve], module)
    assert len(curve.losses) == 10


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metrics", "monitor", "shown"),
    [
        ({"val_loss": 1.0, "val_acc": 0.5}, None, ("val_acc", 0.5)),
        ({"val_loss": 1.0, "val_f1": 0.5}, None, ("val_loss", 1.0)),
        ({"val_loss": 1.0, "val_f1": 0.5}, "val_f1", ("val_f1", 0.5)),
        ({"val_loss": 1.0}, "val_f1", None),
        ({}, None, None),
    ],
    ids=["accuracy", "first", "asked for", "missing", "none"],
)
def test_headline(metrics: dict[str, float], monitor: str | None, shown: Any) -> None:
    assert headline(metrics, monitor) == shown


def test_loss_is_no_accuracy() -> None:
    assert np.isnan(accuracy({"val_loss": 1.0}))


def test_rows_without_metrics_have_no_accuracy() -> None:
    rows = [{"step": 0, "metrics": {}, "prunable_filters": 9}, {"step": 5, "metrics": {"a": 1}, "prunable_filters": 7}]
    progress = progress_of(rows, [1], [0.5], "a")
    np.testing.assert_equal(progress.accuracies, [np.nan, 1])


@pytest.mark.parametrize(
    ("arguments", "done", "step", "last", "expected"),
    [
        ({"max_prunes": 3}, 0, 0, None, (3, 12)),
        ({"max_prunes": 3}, 1, 6, None, (3, 6)),
        ({"max_prunes": 3, "start_step": 5}, 0, 2, None, (3, 15)),
        ({"max_prunes": 3}, 0, 5, None, (3, 11)),
        ({"max_prunes": 9}, 1, 4, 14, (3, 8)),
        ({"max_prunes": None}, 1, 4, 14, (3, 8)),
        ({"max_prunes": None}, 1, 4, None, (None, None)),
        ({"max_prunes": 3, "start_step": 50}, 0, 2, 40, (0, 0)),
    ],
    ids=["start", "between", "late start", "one was skipped", "training is short", "no limit", "no end", "never"],
)
def test_prunes_and_steps_to_come(arguments: Any, done: int, step: int, last: int | None, expected: Any) -> None:
    callback = pruning(**arguments)
    callback.history = [{"metrics": {}}] * done
    state = standing(callback, Sizes(), step, last)
    assert (state.total, state.steps_left) == expected


def test_pace_forgets_how_slow_it_once_was() -> None:
    pace = Pace(intervals=2)
    for step, now in [(0, 0.0), (10, 100.0), (20, 110.0)]:
        pace.mark(step, now)
    assert pace.seconds(steps_left=30, step=25, now=115.0) == 30


# --- the bar ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_console() -> Iterator[None]:
    """The bar sets up rich's global console; give it back."""
    yield
    rich.reconfigure()


class Screen(pl.Callback):
    """Notes what the bar shows at the end of each batch."""

    def __init__(self, bar: PruningProgressBar, width: int = 110) -> None:
        self.bar, self.width, self.shots = bar, width, [""]

    def on_train_batch_start(self, *args: Any) -> None:
        assert self.bar.progress is not None
        console = Console(file=io.StringIO(), record=True, width=self.width, force_terminal=True)
        console.print(self.bar.progress.get_renderable())
        self.shots.append(console.export_text())

    on_train_end = on_validation_end = on_train_batch_start


def on_screen(**kwargs: Any) -> PruningProgressBar:
    return PruningProgressBar(console_kwargs={"file": io.StringIO(), "force_terminal": True, "width": 110}, **kwargs)


def shots_of(*callbacks: Any, bar: PruningProgressBar | None = None, **kwargs: Any) -> list[str]:
    bar = bar or on_screen()
    screen = Screen(bar)
    fit([*callbacks, bar, screen], enable_progress_bar=True, **kwargs)
    return screen.shots


def test_bar_shows_prunes_filters_params_and_accuracy() -> None:
    prune = pruning()
    shot = shots_of(prune)[-1]
    row = prune.history[-1]
    sentence, bar = shot.splitlines()[:2]
    assert bar.split()[0] == "Pruning" and " 2/2 " in bar and bar.strip().endswith("0:00:00")
    assert sentence.startswith(
        f"val_acc {row['metrics']['val_acc']:.4g}, 20 of 24 filters (83%), {row['params']:,} of 1,364 params "
    )


def test_bar_counts_on_as_prunes_come() -> None:
    shots = shots_of(pruning(max_prunes=9))
    counts = [line.split()[2] for shot in shots for line in shot.splitlines() if line.startswith("Pruning")]
    assert [count for count, _ in itertools.groupby(counts)] == ["0/2", "1/2", "2/2"]


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({"max_epochs": -1, "max_steps": 10}, ["Epoch 1 10/10"]),
        ({"max_epochs": 2, "max_steps": -1}, ["Epoch 1/1 8/8"]),
    ],
    ids=["steps", "epochs"],
)
def test_training_row(limits: Any, rows: list[str]) -> None:
    lines = [line.split() for line in shots_of(**limits)[-1].splitlines() if line.startswith("Epoch")]
    assert [" ".join([*line[:2], line[3]]) for line in lines] == rows


def test_without_pruning_there_is_no_row_for_it() -> None:
    assert not any("Pruning" in shot for shot in shots_of())


def test_count_of_prunes_is_not_among_the_metrics() -> None:
    assert not any("prune_of" in shot for shot in shots_of(pruning()))


def test_pruning_that_cannot_start_ends() -> None:
    shot = shots_of(pruning(exclude=["network"]))[-1]
    assert " 0/0 " in shot


class TwoSets(Classifier):
    """Validates on two sets."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


def test_several_validation_sets_and_an_evaluation() -> None:
    bar, module, prune = on_screen(), TwoSets(), pruning()
    sets = [loader(16), loader(8)]
    shot = shots_of(prune, bar=bar, module=module, validation=sets)[-1]
    assert shot.startswith(f"val_acc/dataloader_idx_0 {prune.history[-1]['metrics']['val_acc/dataloader_idx_0']:.4g}, ")
    again = on_screen()
    trainer(again, enable_progress_bar=True).validate(module, sets, verbose=False)
    assert again.val_progress_bar.completed == 1


def lines_of(capsys: pytest.CaptureFixture[str], *callbacks: Any, **kwargs: Any) -> list[str]:
    fit([*callbacks, PruningProgressBar()], enable_progress_bar=True, **kwargs)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    return [line for line in out.splitlines() if line]


def test_file_gets_a_line_for_each_prune(capsys: pytest.CaptureFixture[str]) -> None:
    prune = pruning()
    lines = lines_of(capsys, prune)
    accuracies = [f"val_acc {row['metrics']['val_acc']:.4g}" for row in prune.history]
    assert [line.split(",")[0] for line in lines] == [
        f"Pruning: prune {i} of 2 at step {step}: {accuracies[i - 1]}" for i, step in enumerate(STEPS, 1)
    ]


def test_file_gets_a_line_at_the_end_of_an_ordinary_fit(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(capsys, max_epochs=2, max_steps=-1)
    assert line.startswith("epoch 2, step 16")


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    assert lines_of(capsys, pruning()) == []


def test_bar_that_is_off_stays_off(capsys: pytest.CaptureFixture[str]) -> None:
    fit([pruning(), bar := PruningProgressBar(refresh_rate=0)], enable_progress_bar=True)
    assert bar.progress is None
    assert capsys.readouterr().out == ""
