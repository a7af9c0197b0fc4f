"""The training loss of every mini-batch, kept without making a GPU wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_taylor_prune.callbacks.trainer_compat import own_attributes

READ_AT_ONCE = 256  # losses that wait on their device for one common copy


class LossCurve(Callback):
    """Keeps the training loss of every mini-batch, or of every second, fourth, ... one of a very long training.

    Losses are kept on their device and read many at a time, so that training never waits for one. Rank 0 keeps what
    it sees itself. The curve is saved in checkpoints and continued after a resume.

    Args:
        max_points: Points to keep at most. Whenever there are more, every second one is dropped, and only half as
            many are taken from then on.

    Attributes:
        every: A loss is kept of one in so many mini-batches.

    Raises:
        MisconfigurationException: ``max_points`` is less than 2.

    Example:
        >>> curve = LossCurve()
        >>> curve.iterations, curve.losses
        ([], [])
    """

    def __init__(self, max_points: int = 10_000) -> None:
        super().__init__()
        if max_points < 2:
            raise MisconfigurationException(f"Expected `max_points` to be at least 2, got {max_points}")
        self.max_points = max_points
        self.every, self._seen = 1, 0
        self._module: LightningModule | None = None
        self._losses: list[float] = []
        self._iterations: list[int] = []
        self._waiting: list[tuple[Tensor, int]] = []

    @property
    def iterations(self) -> list[int]:
        """Optimizer steps taken by the end of each mini-batch."""
        return list(self._iterations)

    @property
    def losses(self) -> list[float]:
        """Loss of each mini-batch, not divided for accumulation."""
        self._read()
        return list(self._losses)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew with another module."""
        if stage == "fit" and self._module is not pl_module:
            self._forget()
            self._module = pl_module

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss without reading it."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not trainer.is_global_zero or not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        if self._seen % self.every == 0:
            # Lightning hands out the loss as it went backward: divided by the batches that are accumulated.
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._waiting.append((loss.detach().clone().reshape(()), share))  # memory that CUDA graphs write again
            self._iterations.append(trainer.global_step)
            if len(self._waiting) >= READ_AT_ONCE:
                self._read()
            if len(self._iterations) > self.max_points:
                self._thin()
        self._seen += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read, and release, the tensors on the device."""
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return the curve as plain data."""
        return {"losses": self.losses, "iterations": self.iterations, "every": self.every, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curve of a checkpoint."""
        self._waiting = []
        self._losses, self._iterations = list(state_dict["losses"]), list(state_dict["iterations"])
        self.every, self._seen = state_dict["every"], state_dict["seen"]

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the module and what waits on its device: copies and pickles hold no network."""
        return {**own_attributes(self), "_losses": self.losses, "_waiting": [], "_module": None}

    def _forget(self) -> None:
        self.every, self._seen = 1, 0
        self._losses, self._iterations, self._waiting = [], [], []

    def _read(self) -> None:
        """Copy what waits on the device, all at once."""
        if self._waiting:
            losses, shares = zip(*self._waiting, strict=True)
            values = torch.stack(losses).tolist()
            self._losses.extend(loss * share for loss, share in zip(values, shares, strict=True))
            self._waiting = []

    def _thin(self) -> None:
        self._read()
        self._losses, self._iterations = self._losses[::2], self._iterations[::2]
        self.every *= 2
