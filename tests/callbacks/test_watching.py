"""What batches after the first show of the network: also in a run that is resumed before the first prune."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback
from tests.callbacks.test_calls import HeadByArgument, Heads, LaterBranch, Step
from tests.lightning_modules import loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Starting from v1.9.0:UserWarning")

JOINS = 10
"""The optimizer step at which another path is seen first: after the checkpoint at step 8, before the prune at 14."""


def head(step: int) -> str:
    """Both heads in turn, once the second one has joined."""
    return "ab"[step >= JOINS and step % 2 == 0]


class LateHeadByArgument(HeadByArgument):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], task=head(self.global_step)), batch[1])


class LateHeadInForward(Heads):
    def forward(self, x: Tensor) -> Tensor:
        return self.heads[head(self.global_step)](self.features(x))


class LateHeadInTheStep(Heads):
    """Calls single layers, so that the step itself is traced."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.heads[head(self.global_step)](self.features(batch[0])), batch[1])


class HeadNoMore(Heads):
    """The other head was seen before the checkpoint, and is called again before the prune."""

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["ab"[self.global_step in (4, JOINS)]](self.features(x))


class Task:
    def __init__(self, name: str) -> None:
        self.name = name


class LateHeadByObject(Heads):
    """Its arguments are no plain data, so that a checkpoint cannot keep them."""

    def forward(self, x: Tensor, task: Task) -> Tensor:
        return self.heads[task.name](self.features(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0], Task(head(self.global_step))), batch[1])


KINDS = [LateHeadByArgument, LateHeadInForward, LateHeadInTheStep, HeadNoMore, LateHeadByObject, LaterBranch]


def run(kind: type[Step], folder: Path, checkpoint: Path | None = None) -> tuple[Step, TaylorPruningCallback]:
    torch.manual_seed(0)
    random.seed(0)
    module, pruning = kind(), TaylorPruningCallback(every_n_steps=14, filters_per_prune=6, max_prunes=1)
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    fitting = trainer(pruning, more_callbacks=[saving], max_epochs=2, enable_checkpointing=True)
    fitting.fit(module, loader(), ckpt_path=checkpoint, weights_only=False)
    return module, pruning


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_path_that_joins_after_a_resume_is_analysed_as_without(kind: type[Step], tmp_path: Path) -> None:
    whole, pruning = run(kind, tmp_path / "whole")
    resumed, again = run(kind, tmp_path / "resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert pruning.history == again.history and pruning.history[0]["removed"] == 6
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_second_fit_goes_on_watching() -> None:
    module, pruning = LateHeadInForward(), TaylorPruningCallback(every_n_steps=14, filters_per_prune=6, max_prunes=1)
    first = trainer(pruning, max_epochs=1)
    first.fit(module, loader())
    first.fit_loop.max_epochs = 2
    first.fit(module, loader())
    assert pruning.groups is not None and [call.module for call in pruning.groups.calls] == ["", ""]
