"""What a client is: a library's network in a LightningModule, with a few batches of made data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS_PER_EPOCH = 3
EPOCHS = 3

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Training:
    """A module to train, and what it is trained on.

    Attributes:
        module: The LightningModule: the library's own where it has one.
        batches: A data loader, or a data module, of ``STEPS_PER_EPOCH`` batches or more.
        lightning: The package whose Trainer the library uses: ``lightning.pytorch`` or ``pytorch_lightning``.
        trainer: Further arguments of the Trainer.
    """

    module: pl.LightningModule
    batches: Any
    lightning: Any = pl
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """One row of the table.

    Attributes:
        library: The module to import.
        package: The distribution, for its version.
        build: Builds the training; the same each time.
        remark: Why more than a fifth of the parameters is locked, and what to do, where that is so.
    """

    library: str
    package: str
    build: Callable[[], Training]
    remark: str = ""


class Wrapped(pl.LightningModule):
    """An ordinary module around a network.

    Args:
        network: The network.
        loss: Takes the network and a batch.
    """

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self.network, batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def batches(*made: Any) -> DataLoader[Any]:
    """Return a loader whose batches are these."""
    return DataLoader(_Batches(made), batch_size=None)


class _Batches(torch.utils.data.Dataset[Any]):
    def __init__(self, made: Sequence[Any]) -> None:
        self._made = made

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: int) -> Any:
        return self._made[index]


def repeated(make: Callable[[], Any]) -> DataLoader[Any]:
    """Return a loader of ``STEPS_PER_EPOCH`` batches, each made anew."""
    return batches(*(make() for _ in range(STEPS_PER_EPOCH)))


def wrapped(network: nn.Module, loss: Loss, batch: Callable[[], Any]) -> Training:
    """Return an ordinary training of a network."""
    return Training(Wrapped(network.train(), loss), repeated(batch))
