"""Where pruning stands goes through copies, pickles and checkpoints, whatever other callbacks do."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.callbacks import LossCurve, PruningFigures
from tests.lightning_modules import Classifier, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


def pruning(**arguments: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(**{"every_n_steps": 3, "filters_per_prune": 2, "max_prunes": 2, **arguments})


def through_torch(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"pickle": lambda v: pickle.loads(pickle.dumps(v)), "deepcopy": copy.deepcopy, "torch.save": through_torch}


@pytest.mark.parametrize("criterion", ["taylor", "taylor_examples"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_knows_what_the_callback_did(how: str, criterion: str) -> None:
    callback = pruning(criterion=criterion)
    trainer(callback).fit(Classifier(), loader())
    twin = COPIES[how](callback)
    assert (twin.history, twin.filters_before, twin.filters_after, twin.stop_reason) == (
        callback.history,
        callback.filters_before,
        callback.filters_after,
        callback.stop_reason,
    )


class CopiesEverything(pl.Callback):
    """Copies all callbacks at every hook, as libraries that save them with their models do."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        pickle.dumps(others)
        copy.deepcopy(others)

    on_after_backward = on_before_optimizer_step = on_train_batch_end = on_train_batch_start


def test_it_can_be_copied_at_any_time() -> None:
    callback, curve = pruning(), LossCurve()
    trainer(callback, more_callbacks=[curve, PruningFigures(), CopiesEverything()]).fit(Classifier(), loader())
    assert len(callback.history) == 2


class SavesTheModule(pl.Callback):
    """Saves the module whole while it trains, as some libraries do."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.saved = through_torch(pl_module)

    on_train_batch_end = on_train_batch_start


@pytest.mark.parametrize("criterion", ["taylor", "taylor_examples"])
def test_the_module_can_be_saved_whole_at_any_time(criterion: str) -> None:
    module, saving = Classifier(), SavesTheModule()
    trainer(pruning(criterion=criterion), more_callbacks=[saving]).fit(module, loader())
    x = next(iter(loader()))[0]
    assert torch.equal(saving.saved.eval()(x), module.eval()(x))


def test_a_copy_prunes_another_module_as_the_callback_would() -> None:
    first, second = pruning(), copy.deepcopy(pruning())
    for callback in (first, second):
        trainer(callback).fit(Classifier(), loader())
    assert second.history == first.history


@pytest.mark.parametrize("finished", [True, False], ids=["after the last prune", "between prunes"])
def test_a_resumed_run_knows_the_filters_before_and_after(finished: bool, tmp_path: Path) -> None:
    def run(resume: str | None, epochs: int) -> TaylorPruningCallback:
        callback = pruning(max_prunes=2 if finished else None)
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fitting = trainer(callback, more_callbacks=[saving], max_epochs=epochs, enable_checkpointing=True)
        fitting.fit(Classifier(), loader(), ckpt_path=resume)
        return callback

    whole = run(None, 2)
    resumed = run(str(tmp_path / "epoch=0.ckpt"), 2)
    assert (resumed.filters_before, resumed.filters_after) == (whole.filters_before, whole.filters_after)


AVERAGES = {
    "EMA": lambda: EMAWeightAveraging(decay=0.5),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
}


@pytest.mark.parametrize("listed_first", [True, False], ids=["average listed first", "pruning listed first"])
@pytest.mark.parametrize("name", AVERAGES)
def test_a_run_with_averaged_weights_resumes(name: str, listed_first: bool, tmp_path: Path) -> None:
    def run(resume: str | None, epochs: int) -> tuple[pl.LightningModule, TaylorPruningCallback]:
        module, callback = Classifier(), pruning(max_prunes=None)
        callbacks = [AVERAGES[name](), callback] if listed_first else [callback, AVERAGES[name]()]
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fitting = trainer(more_callbacks=[*callbacks, saving], max_epochs=epochs, enable_checkpointing=True)
        fitting.fit(module, loader(), ckpt_path=resume)
        return module, callback

    whole, _ = run(None, 4)
    resumed, callback = run(str(tmp_path / "epoch=1.ckpt"), 4)
    assert callback.history and all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
