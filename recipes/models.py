"""Networks for small images, those of torchvision, and a LightningModule that trains any image classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
import torchvision
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from recipes.errors import RecipeError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 projection where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, in_channels, h, w]`` to ``[batch, out_channels, h / stride, w / stride]``."""
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Residual network for small images, after section 4.2 of He et al. 2015, with projection shortcuts.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        depth: Weighted layers along the longest path: 2 + 2 x blocks per stage x stages.
        widths: Filters of each stage; every stage but the first halves height and width.
    """

    def __init__(
        self, in_channels: int, num_classes: int, depth: int = 20, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        period = 2 * len(widths)  # weighted layers that one more block in every stage adds
        blocks, rest = divmod(depth - 2, period)
        if rest or blocks < 1:
            raise ValueError(f"Expected argument `depth` to be 2 + a multiple of {period}, got {depth}")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stage_names = [f"layer{number + 1}" for number in range(len(widths))]
        for name, before, width in zip(self.stage_names, [widths[0], *widths], widths, strict=False):
            self.add_module(name, stage(before, width, blocks, stride=1 if name == "layer1" else 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[-1], num_classes)
        self.apply(init_he)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Chain residual blocks; the first one changes width and size."""
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, stride=1) for _ in range(blocks - 1)))


def init_he(module: nn.Module) -> None:
    """Initialise a convolution after He et al. 2015; other modules do not change."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class VGG(nn.Module):
    """VGG for small images, after Simonyan and Zisserman 2014, with batch normalisation and one linear layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        stages: Filters of each 3x3 convolution, stage by stage; every stage ends by halving height and width.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        stages: Sequence[Sequence[int]] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for widths in stages:
            for width in widths:
                convolution = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(in_channels, num_classes)
        self.apply(init_he)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[batch, in_channels, h, w]`` to logits ``[batch, num_classes]``."""
        logits: Tensor = self.linear(self.pool(self.features(x)).flatten(1))
        return logits


def torchvision_model(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """Build a classifier of torchvision, untrained, with as many outputs as there are classes.

    Args:
        name: Its name in ``torchvision.models.list_models()``.
        in_channels: Channels of the images, which must be 3.
        num_classes: Number of classes.

    Raises:
        RecipeError: There is no such model, or the images are not in colour.
    """
    if in_channels != 3:
        raise RecipeError(f"torchvision's {name} takes images of 3 channels, but `data` has {in_channels}")
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    except ValueError as error:
        raise RecipeError(f"Expected `model.name` to be one of torchvision.models.list_models(), got {name}") from error
    return model


class ImageClassifier(L.LightningModule):
    """Trains and tests a network that maps images to logits; knows nothing of pruning.

    Args:
        network: Maps ``[batch, channels, h, w]`` to ``[batch, num_classes]``.
        num_classes: Number of classes.
        optimizer: Makes the optimizer from the parameters. Not needed for testing.
        scheduler: Makes a learning rate scheduler, stepped once an epoch, from the optimizer.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross entropy of a mini-batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and accuracy on held-out images."""
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Log the accuracy on test images; returns their logits."""
        images, labels = batch
        logits: Tensor = self(images)
        self.test_acc(logits, labels)
        self.log("test_acc", self.test_acc)
        return logits

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, if one is asked for, its scheduler."""
        if self.make_optimizer is None:
            return None
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]
