"""Ctrl-C and SIGTERM: finish the step, save a checkpoint, say how to resume."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from recipes.errors import RecipeError
from recipes.folder import WholeCheckpoints

RANKS_AGREE_EVERY = 10  # steps; under DDP all ranks must stop at the same one, and asking costs a message


class Interrupted(RecipeError):
    """A signal stopped a stage.

    Args:
        message: What happened.
        left: Stages still to do, the stopped one first; empty where its state is saved, which says as much.
    """

    def __init__(self, message: str, left: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.left = tuple(left)


class Resumable(ModelCheckpoint):
    """Keeps the state of an unfinished stage in one file: after each epoch, and when a signal asks to stop.

    A signal is answered between two steps, after any validation, so that what is saved is whole. A second one stops
    at once, and the last complete state is kept.

    Args:
        path: Where the state lies, ``*.ckpt``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.path = path
        self.asked: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have checkpoints written whole or not at all, unless the Trainer has a way of its own."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, Lightning's own answer to SIGTERM included."""
        super().on_train_start(trainer, pl_module)
        self._handlers = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked to."""
        asked = self.asked is not None
        if trainer.world_size > 1:
            agree = trainer.global_step % RANKS_AGREE_EVERY == 0
            asked = agree and trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            trainer.save_checkpoint(self.path)
            raise Interrupted(f"stopped by {signal.Signals(self.asked or signal.SIGTERM).name}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        super().on_train_end(trainer, pl_module)
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        super().on_exception(trainer, pl_module, exception)
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self._give_back()
            raise KeyboardInterrupt
        self.asked = number

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
