import json
import logging
import math
import re
import struct

import pytest
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.callbacks import LossCurve, PruningFigures, end_run, log_figure
from tests.lightning_modules import Classifier, TwoStage, loader, trainer

FIGURES = ["prune/filters_per_layer", "prune/progress"]


def pruning(**settings):
    """Prunes after steps 2, 4 and 6 of 8."""
    return TaylorPruningCallback(**{"every_n_steps": 2, "filters_per_prune": 2, "max_prunes": 3, **settings})


def fit(logger, *callbacks, module=None, validate=True, **settings):
    """Train a small network for one epoch of 8 steps, with pruning."""
    callbacks = callbacks or (pruning(), PruningFigures())
    data = [loader(), loader(16, seed=1)] if validate else [loader()]
    trainer(more_callbacks=list(callbacks), logger=logger, **settings).fit(module or Classifier(), *data)
    return callbacks


class Album(Logger):
    """A logger of a user's own."""

    name = version = None

    def __init__(self):
        super().__init__()
        self.figures = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class Register(Album):
    """Another one, that takes no figures."""


@log_figure.register(Album)
def _(logger, name, figure, step):
    logger.figures.append((name, step, figure))


@log_figure.register(Register)
def _(logger, name, figure, step):
    log_figure.dispatch(Logger)(logger, name, figure, step)


# --- what each logger receives --------------------------------------------------------------------------------------


def test_tensorboard_receives_scalars_and_figures_at_each_prune(tmp_path):
    fit(TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), {"images": 0, "scalars": 0}).Reload()
    assert sorted(events.Tags()["images"]) == FIGURES
    assert [[event.step for event in events.Images(name)] for name in FIGURES] == [[2, 4, 6]] * 2
    assert [event.value for event in events.Scalars("prune/filters")] == [26, 24, 22]


def test_tensorboard_figures_are_as_large_as_drawn(tmp_path):
    fit(TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path), {"images": 0}).Reload()
    assert {(image.width, image.height) for image in events.Images("prune/progress")} == {(800, 800)}


def test_mlflow_receives_scalars_and_figures_at_each_prune(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(save_dir=str(tmp_path))
    fit(logger)
    client = MlflowClient(tmp_path.as_uri())
    assert [point.value for point in client.get_metric_history(logger.run_id, "prune/filters")] == [26, 24, 22]
    files = [file.path for file in client.list_artifacts(logger.run_id, "images") if file.path.endswith(".png")]
    found = {name: [] for name in FIGURES}
    for name, step in re.findall(r"images/(.+?)[+%]step[+%](\d+)[+%]", "\n".join(files)):
        found[re.sub("[~#]", "/", name)].append(int(step))
    assert {name: sorted(steps) for name, steps in found.items()} == {name: [2, 4, 6] for name in FIGURES}


def test_wandb_receives_scalars_and_figures_at_each_prune(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    fit(logger)
    end_run(logger)
    wandb.teardown()  # its process writes the last records when it ends
    rows = history(tmp_path)
    assert [row["prune/filters"] for row in rows if "prune/filters" in row] == [26, 24, 22]
    for name in FIGURES:
        steps = [row["trainer/global_step"] for row in rows if f"{name}/filenames" in row]
        assert steps == [2, 4, 6]
    assert len(list(tmp_path.rglob("media/images/prune/progress_*.png"))) == 3


def history(folder):
    """What an offline run of Weights & Biases logged, row by row."""
    (file,) = {path.resolve() for path in folder.rglob("*.wandb")}
    rows = []
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def records(log, header=7, block=2**15):
    """Records of a file in LevelDB's log format: in each block pieces with a head of checksum, length and type."""
    place, parts = header, b""
    while place + 7 <= len(log):
        if block - place % block < 7:  # too little for a head: padding
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def test_each_fit_has_a_run_of_its_own_at_wandb(tmp_path):
    for stage in ("prune", "retrain"):
        logger = WandbLogger(save_dir=tmp_path / stage, offline=True)
        logger.log_metrics({"loss": 1.0})
        end_run(logger)
    assert len({file.name for file in tmp_path.rglob("*.wandb")}) == 2


def test_csv_is_passed_over_in_silence(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(CSVLogger(tmp_path, name="", version=""))
    assert "prune/filters" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "figure" not in caplog.text


def test_unknown_logger_is_passed_over_with_one_line(caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(Register())
    assert [message for message in caplog.messages if "log_figure.register" in message] == [
        "Register gets no figures, as nothing is known of how it takes them. Register a function for it: "
        "`lightning_taylor_prune.callbacks.log_figure.register`."
    ]


def test_every_logger_receives_the_same_figure():
    first, second = Album(), Album()
    fit([first, second])
    assert [id(figure) for *_, figure in first.figures] == [id(figure) for *_, figure in second.figures]


# --- when, and what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "steps"), [(1, [2, 4, 6]), (2, [4, 6]), (5, [6])], ids=["each", "second", "fifth"])
def test_one_prune_in_so_many_and_the_last_is_drawn(every, steps):
    album = Album()
    fit(album, pruning(), PruningFigures(every_n_prunes=every))
    assert [step for name, step, _ in album.figures if name == "prune/progress"] == steps


@pytest.mark.parametrize("first", ["pruning", "figures"])
def test_figures_show_the_accuracy_after_the_last_prune_whatever_the_order_of_callbacks(first, monkeypatch):
    drawn = []
    figures, callback = PruningFigures(), pruning()
    monkeypatch.setattr(figures, "_draw", lambda *args: drawn.append(figures.progress(callback)))
    fit(Album(), *((callback, figures) if first == "pruning" else (figures, callback)))
    assert len(drawn) == 3
    for progress in drawn:
        assert all(math.isfinite(accuracy) for accuracy in progress.accuracies[1:])


def test_progress_is_that_of_the_history():
    callback, figures = fit(Album())
    progress = figures.progress(callback)
    assert list(progress.iterations) == [0, 2, 4, 6]
    assert list(progress.num_prunable_filters) == [24, 22, 20, 18]
    assert list(progress.accuracies[1:]) == [row["metrics"]["val_acc"] for row in callback.history]
    assert list(progress.loss_iterations) == list(range(1, 9))


def test_whole_validation_before_training_is_the_first_point():
    callback, figures = fit(Album(), num_sanity_val_steps=-1)
    assert 0 <= figures.progress(callback).accuracies[0] <= 1


def test_part_of_the_validation_set_is_no_point():
    callback, figures = fit(Album(), num_sanity_val_steps=1)
    assert math.isnan(figures.progress(callback).accuracies[0])


def test_losses_are_those_of_the_trainers_curve():
    curve = LossCurve()
    _, figures, _ = fit(Album(), pruning(), PruningFigures(), curve)
    assert figures.curve is curve
    assert len(curve.losses) == 8


def test_progress_before_any_batch_is_refused():
    with pytest.raises(ValueError, match="has not|seen"):
        PruningFigures().progress(pruning())


@pytest.mark.parametrize("more", [[], [pruning(start_step=100)]], ids=["no-pruning", "no-prune"])
def test_nothing_is_drawn_where_nothing_is_pruned(more):
    album = Album()
    fit(album, *more, PruningFigures())
    assert album.figures == []


def test_module_without_validation_is_drawn():
    album = Album()
    fit(album, validate=False)
    assert len(album.figures) == 6


def test_figures_need_no_logger():
    callback, figures = fit(False)
    assert len(figures.progress(callback).losses) == 8


def test_other_ranks_draw_nothing(monkeypatch):
    album, figures = Album(), PruningFigures()
    monkeypatch.setattr("lightning.pytorch.Trainer.is_global_zero", False)
    fit(album, pruning(), figures)
    assert album.figures == []
    assert figures.curve.losses == []


def test_two_prunings_are_told_apart():
    album = Album()
    fit(album, pruning(target="network"), pruning(target="head"), PruningFigures(), module=TwoStage())
    assert {name for name, *_ in album.figures} == {
        f"{name}/{target}" for name in FIGURES for target in ("network", "head")
    }


def test_second_module_is_drawn_anew():
    album, callbacks = Album(), (pruning(), PruningFigures())
    for _ in range(2):
        fit(album, *callbacks)
    assert [step for name, step, _ in album.figures if name == "prune/progress"] == [2, 4, 6] * 2


def test_resume_draws_what_is_new_with_the_whole_curve(tmp_path):
    _, whole = fit(Album())
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="five")
    fit(Album(), pruning(), PruningFigures(), checkpoint, enable_checkpointing=True)
    album, callback, figures = Album(), pruning(), PruningFigures()
    resumed = trainer(more_callbacks=[callback, figures], logger=album)
    resumed.fit(Classifier(), loader(), loader(16, seed=1), ckpt_path=tmp_path / "five.ckpt")
    assert [step for name, step, _ in album.figures if name == "prune/progress"] == [6]
    assert list(figures.progress(callback).iterations) == [0, 2, 4, 6]
    assert figures.curve.iterations == whole.curve.iterations


def test_impossible_interval_is_refused():
    with pytest.raises(MisconfigurationException, match="every_n_prunes.*got 0"):
        PruningFigures(every_n_prunes=0)
