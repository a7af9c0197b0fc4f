"""What batches after the first show of the network: also in a run that is resumed before the first prune."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.errors import PruningWarning
from tests.callbacks.test_calls import HeadByArgument, Heads, LaterBranch, Step, block
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


class Joins(Step):
    """Something joins the loss only after the first prunes."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = self.a(batch[0])
        g = self.b(h)
        loss = F.cross_entropy(self.fc(g.mean((2, 3))), batch[1])
        return loss if self.global_step < JOINS else loss + self.joining(h, g).square().mean()

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        raise NotImplementedError


class LateHead(Joins):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 10))

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return self.late(g.mean((2, 3)))


class LateShortcut(Joins):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(16, 12, 1)

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return g + self.late(h)


class LateDepthwise(Joins):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(12, 12, 3, groups=12)

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return self.late(g)


class LateOnEveryPlace(Joins):
    """Reads all places of an image in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(16 * 64, 10)

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return self.late(h.flatten(1))


class LateOnBoth(Joins):
    """Reads the channels of two results in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(28, 10, 1)
        self.c = block(12, 15)
        self.fc = nn.Linear(15, 10)

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return self.late(torch.cat([h, g], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        h = self.a(batch[0])
        g = self.b(h)
        loss = F.cross_entropy(self.fc(self.c(g).mean((2, 3))), batch[1])
        return loss if self.global_step < JOINS else loss + self.joining(h, g).square().mean()


class LateOnOneOfTwo(LateOnBoth):
    """Has the shapes of another head that runs, and reads something else."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = block(16, 14), block(14, 16)
        self.late, self.fc = nn.Linear(16, 10), nn.Linear(16, 10)  # type: ignore[assignment]

    def joining(self, h: Tensor, g: Tensor) -> Tensor:
        return self.late(h.mean((2, 3)))


class InValidationOnly(Step):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(16 * 64, 10)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("late", self.late(self.a(batch[0]).flatten(1)).mean())


LATE = [LateHead, LateShortcut, LateDepthwise, LateOnEveryPlace, LateOnBoth, LateOnOneOfTwo, InValidationOnly]


@pytest.mark.filterwarnings("ignore:Some channels are locked", "ignore:The network does other things")
@pytest.mark.parametrize("kind", LATE, ids=lambda kind: kind.__name__)
def test_what_joins_after_the_first_prune_ends_no_training(kind: type[Step]) -> None:
    module, pruning = kind(), TaylorPruningCallback(every_n_steps=4, filters_per_prune=3, max_prunes=4)
    trainer(pruning, max_epochs=3).fit(module, loader(), loader() if kind is InValidationOnly else None)
    assert len(pruning.history) == 4 and not pruning.pruner.refused


def test_channels_that_join_late_are_pruned_with_the_others() -> None:
    module = LateHead()
    pruning = TaylorPruningCallback(every_n_steps=4, filters_per_prune=6, max_prunes=5)
    with pytest.warns(PruningWarning, match="does other things than when it was analysed first"):
        trainer(pruning, max_epochs=3).fit(module, loader())
    assert "late.0" in {group.name for group in pruning.groups} and module.late[0].out_features < 7
