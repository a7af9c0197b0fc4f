"""Copies of the module in other callbacks: averages are pruned with it, teachers are not touched."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_taylor_prune import TaylorPruningCallback
from tests.lightning_modules import Classifier, loader, small_network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class KeepsACopy(pl.Callback):
    """Copies the module when training begins, and mixes it with the module's weights after every step."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.copy = copy.deepcopy(pl_module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.share:
            for own, new in zip(self.copy.parameters(), pl_module.parameters(), strict=True):
                own.lerp_(new, self.share)


def shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters()]


@pytest.mark.parametrize(("share", "is_pruned"), [(0.1, True), (0.0, False)], ids=["average", "teacher"])
def test_only_a_copy_that_follows_the_training_is_pruned(share: float, is_pruned: bool) -> None:
    module, keeping = Classifier(), KeepsACopy(share)
    unpruned = shapes(module)
    trainer(TaylorPruningCallback(every_n_steps=3, max_prunes=2), more_callbacks=[keeping]).fit(module, loader())
    assert shapes(keeping.copy) == (shapes(module) if is_pruned else unpruned)
    assert shapes(module) != unpruned


class Distilled(Classifier):
    """Learns from a scripted teacher that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = torch.jit.script(small_network(seed=1).eval().requires_grad_(False))

    def loss(self, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(batch[0])
        return super().loss(batch) + (self(batch[0]) - wanted).square().mean()


def test_a_module_that_holds_a_scripted_one_is_pruned() -> None:
    module = Distilled()
    before = sum(p.numel() for p in module.network.parameters())
    trainer(TaylorPruningCallback(every_n_steps=3, max_prunes=2)).fit(module, loader())
    assert sum(p.numel() for p in module.network.parameters()) < before
