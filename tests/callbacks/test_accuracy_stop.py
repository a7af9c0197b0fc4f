"""`stop_if`: pruning waits for validations, and what spoils a metric is taken back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_taylor_prune import TaylorPruningCallback
from tests.lightning_modules import Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class Scripted(Classifier):
    """Logs an accuracy that follows from its size, or from the step, so that a test knows which prune spoils it."""

    def __init__(self, accuracy: Callable[[Scripted], float], **kwargs: Any) -> None:
        super().__init__(small_network(width=8), **kwargs)
        self.accuracy = accuracy

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", self.accuracy(self))
        self.log("val_loss", 1 - self.accuracy(self))


def spoiled_below(params: int) -> Callable[[Scripted], float]:
    return lambda module: 0.9 if sum(p.numel() for p in module.parameters()) >= params else 0.5


class Watching(pl.Callback):
    """Notes the network that held in a validation last, bit for bit, and the one that training went on with."""

    def __init__(self, pruning: TaylorPruningCallback) -> None:
        self.pruning = pruning
        self.held: Any = None
        self.after: Any = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.after is None and trainer.callback_metrics["val_acc"] > 0.8:
            self.held = state_of(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.pruning.stop_reason is not None and self.after is None:
            self.after = state_of(trainer, pl_module)


def state_of(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[dict[str, Tensor], dict[str, Any]]:
    names = {id(p): name for name, p in module.named_parameters()}
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    state = trainer.optimizers[0].state
    return tensors, {
        f"{names[id(p)]}.{key}": value.clone()
        for p, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pruning(stop_if: Any, **arguments: Any) -> TaylorPruningCallback:
    return TaylorPruningCallback(
        **{"every_n_steps": 3, "filters_per_prune": 2, "max_prunes": 6, "stop_if": stop_if, **arguments}
    )


DROP = {"val_acc": {"drop": 0.02}}


@pytest.mark.parametrize("optimizer_state", ["reset", "slice"])
@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.AdamW(p, 1e-2)], ids=["SGD", "AdamW"])
def test_the_last_network_that_held_comes_back(optimizer: Any, optimizer_state: str) -> None:
    callback = pruning(DROP, optimizer_state=optimizer_state)
    watching, module = Watching(callback), Scripted(spoiled_below(900), optimizer=optimizer)
    trainer(callback, more_callbacks=[watching], max_epochs=4).fit(module, loader(), loader())
    taken = [row["taken_back"] for row in callback.history]
    assert len(taken) > 1 and taken.index(True) == len(taken) - 1 and all(map(same, watching.after, watching.held))


def test_the_unpruned_network_comes_back_if_the_first_prune_spoils_it() -> None:
    callback = pruning(DROP)
    watching, module = Watching(callback), Scripted(spoiled_below(1340))
    trainer(callback, more_callbacks=[watching], max_epochs=2).fit(module, loader(), loader())
    assert callback.filters_after == callback.filters_before == callback.groups.filters
    assert [row["taken_back"] for row in callback.history] == [True] and all(map(same, watching.after, watching.held))


class SavesEverywhere(pl.Callback):
    """Writes a checkpoint at the end of every batch, validation and epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def _save(self, trainer: pl.Trainer, when: str) -> None:
        if not trainer.sanity_checking:
            self.files.append(self.folder / f"{len(self.files):02}-{trainer.global_step}-{when}.ckpt")
            trainer.save_checkpoint(self.files[-1])

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer, "epoch")


def equal_batches(count: int = 4) -> DataLoader:
    """Batches that are all the same: a Trainer that resumes within an epoch begins the epoch's data anew."""
    images, labels = next(iter(loader()))
    return DataLoader(TensorDataset(images.repeat(count, 1, 1, 1), labels.repeat(count)), len(images))


def outcome(callback: TaylorPruningCallback, fitting: pl.Trainer, module: pl.LightningModule) -> Any:
    history = [{**row, "metrics": None} for row in callback.history]
    return history, callback.stop_reason, state_of(fitting, module)


def is_same(a: Any, b: Any) -> bool:
    return a[:2] == b[:2] and all(map(same, a[2], b[2]))


RUNS: dict[str, dict[str, Any]] = {
    "after each prune": {"stop_if": {"val_acc": {"drop": 0.02, "patience": 1}}},
    "with patience": {"stop_if": {"val_acc": {"drop": 0.02, "patience": 2}}, "optimizer_state": "slice"},
    "ordinary validations": {"stop_if": {"val_loss": {"above": 0.2}}, "validate_after_prune": False},
    "last prune": {"stop_if": {"val_acc": {"drop": 0.02}}, "max_prunes": 2, "start_step": 1},
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_resumed_from_any_checkpoint_ends_as_if_it_had_not_been_stopped(run: str, tmp_path: Path) -> None:
    def fit(*more: pl.Callback, resume: Path | None = None) -> Any:
        callback = pruning(every_n_steps=2, **RUNS[run])
        module = Scripted(spoiled_below(1000), optimizer=lambda p: torch.optim.Adam(p, 1e-2))
        fitting = trainer(callback, more_callbacks=list(more), max_epochs=3)
        fitting.fit(module, equal_batches(3), loader(8), ckpt_path=resume, weights_only=True)
        return outcome(callback, fitting, module)

    saving = SavesEverywhere(tmp_path)
    whole = fit(saving)
    others = [file.name for file in saving.files if not is_same(fit(resume=file), whole)]
    assert (whole[0][-1]["taken_back"], others) == (True, [])
