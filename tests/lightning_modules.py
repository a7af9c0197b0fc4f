"""Tiny LightningModules: ordinary ones, as users write them, without a word about pruning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def small_network(width: int = 8, seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch normalisation, and a classifier of 4 classes for images of 8 x 8."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 4),
    )


def smooth_network(seed: int = 0) -> nn.Sequential:
    """Without batch statistics, so that a big batch and its parts have the same gradient."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, 4),
    )


def loader(examples: int = 64, batch_size: int = 8, seed: int = 0, **kwargs: Any) -> DataLoader:
    """Random images whose class is where they are brightest."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(examples, 1, 8, 8, generator=generator)
    labels = torch.stack([images[:, 0, i::2, j::2].mean((1, 2)) for i in (0, 1) for j in (0, 1)], 1).argmax(1)
    return DataLoader(TensorDataset(images, labels), batch_size, **kwargs)


class Classifier(pl.LightningModule):
    """Calls its network by its own `forward`."""

    def __init__(self, network: nn.Module | None = None, lr: float = 0.05, optimizer: Any = None) -> None:
        super().__init__()
        self.network = network if network is not None else small_network()
        self.lr = lr
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.to(next(self.parameters()).dtype))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        if self.optimizer is not None:
            return self.optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class ChildClassifier(Classifier):
    """Has no `forward` of its own: the training step calls a child, and a loss module."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = nn.CrossEntropyLoss()

    forward = pl.LightningModule.forward

    def loss(self, batch: Any) -> Tensor:
        return self.criterion(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class TwoStage(Classifier):
    """The training step calls two children one after the other and takes the features in between."""

    def __init__(self) -> None:
        super().__init__(network=small_network()[:6])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))

    def loss(self, batch: Any) -> Tensor:
        features = self.network(batch[0])
        return F.cross_entropy(self.head(features), batch[1]) + 1e-3 * features[:, :16].square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class Adversarial(pl.LightningModule):
    """Generator and discriminator with manual optimization; without `toggle` the other one's gradients stay around."""

    def __init__(self, toggle: bool = False) -> None:
        super().__init__()
        self.toggle = toggle
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 64))
        self.discriminator = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(72, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real = batch[0].flatten(1)
        first, second = self.optimizers()
        noise = torch.randn(len(real), 4, generator=torch.Generator().manual_seed(batch_idx))
        self.step(
            second, lambda: self.discriminator(self.generator(noise).detach()).mean() - self.discriminator(real).mean()
        )
        self.step(first, lambda: -self.discriminator(self.generator(noise)).mean())

    def step(self, optimizer: Any, loss: Any) -> None:
        if self.toggle:
            self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss())
        optimizer.step()
        if self.toggle:
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), 1e-3),
            torch.optim.SGD(self.discriminator.parameters(), 1e-2, momentum=0.9),
        )


ACCELERATOR = "cpu"
"""Where :func:`trainer` trains; the GPU suite sets it."""


def trainer(callback: Any = None, **kwargs: Any) -> pl.Trainer:
    """A quiet Trainer."""
    callbacks = [callback] if callback is not None else []
    defaults: dict[str, Any] = {
        "accelerator": ACCELERATOR,
        "devices": 1,
        "callbacks": callbacks + kwargs.pop("more_callbacks", []),
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "logger": False,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    return pl.Trainer(**{**defaults, **kwargs})
