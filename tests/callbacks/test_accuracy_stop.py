"""`stop_if`: pruning waits for validations, and what spoils a metric is taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_taylor_prune import TaylorPruningCallback
from tests.lightning_modules import Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


def channels(module: pl.LightningModule) -> int:
    return module.network[3].out_channels


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
    assert callback.groups is not None and callback.groups.num_filters == callback.groups.unpruned().num_filters
    assert [row["taken_back"] for row in callback.history] == [True] and all(map(same, watching.after, watching.held))
