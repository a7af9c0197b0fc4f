"""Clients that learn without labels, as the examples of lightly write them: a student and a slow copy of it."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from torch import Tensor, nn

from tests.clients.training import Client, Training, repeated


def backbone() -> nn.Sequential:
    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


def lightly(part: str) -> Any:
    return importlib.import_module(f"lightly.{part}")


def views() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)


class BYOL(pl.LightningModule):
    """With prediction head, and momentum copies of backbone and projection head."""

    def __init__(self) -> None:
        super().__init__()
        heads, utils = lightly("models.modules"), lightly("models.utils")
        self.backbone = backbone()
        self.projection_head = heads.BYOLProjectionHead(512, 64, 16)
        self.prediction_head = heads.BYOLPredictionHead(16, 64, 16)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        utils.deactivate_requires_grad(self.backbone_momentum)
        utils.deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = lightly("loss").NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update = lightly("models.utils").update_momentum
        update(self.backbone, self.backbone_momentum, m=0.9)
        update(self.projection_head, self.projection_head_momentum, m=0.9)
        first, second = batch
        return 0.5 * (
            self.criterion(self.forward(first), self.forward_momentum(second))
            + self.criterion(self.forward(second), self.forward_momentum(first))
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class MoCo(pl.LightningModule):
    """With a memory bank of negatives inside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = lightly("models.modules").MoCoProjectionHead(512, 64, 16)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        for momentum in (self.backbone_momentum, self.projection_head_momentum):
            lightly("models.utils").deactivate_requires_grad(momentum)
        self.criterion = lightly("loss").NTXentLoss(memory_bank_size=(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update = lightly("models.utils").update_momentum
        update(self.backbone, self.backbone_momentum, m=0.9)
        update(self.projection_head, self.projection_head_momentum, m=0.9)
        query = self.forward(batch[0])
        key = self.projection_head_momentum(self.backbone_momentum(batch[1]).flatten(start_dim=1)).detach()
        return self.criterion(query, key)

    configure_optimizers = BYOL.configure_optimizers


class DINO(pl.LightningModule):
    """Student and teacher with a centred loss."""

    def __init__(self) -> None:
        super().__init__()
        head = lightly("models.modules").DINOProjectionHead
        self.student_backbone = backbone()
        self.student_head = head(512, 64, 16, 32, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        self.teacher_head = head(512, 64, 16, 32)
        for teacher in (self.teacher_backbone, self.teacher_head):
            lightly("models.utils").deactivate_requires_grad(teacher)
        self.criterion = lightly("loss").DINOLoss(output_dim=32, warmup_teacher_temp_epochs=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.student_head(self.student_backbone(x).flatten(start_dim=1))

    def forward_teacher(self, x: Tensor) -> Tensor:
        return self.teacher_head(self.teacher_backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update = lightly("models.utils").update_momentum
        update(self.student_backbone, self.teacher_backbone, m=0.9)
        update(self.student_head, self.teacher_head, m=0.9)
        teacher = [self.forward_teacher(view) for view in batch]
        student = [self.forward(view) for view in batch]
        return self.criterion(teacher, student, epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        self.student_head.cancel_last_layer_gradients(current_epoch=self.current_epoch)

    configure_optimizers = BYOL.configure_optimizers


def training(kind: type[pl.LightningModule]) -> Training:
    return Training(kind(), repeated(views))


CLIENTS = {
    "lightly/byol": Client("lightly.models", "lightly", lambda: training(BYOL)),
    "lightly/moco": Client("lightly.models", "lightly", lambda: training(MoCo)),
    "lightly/dino": Client("lightly.models", "lightly", lambda: training(DINO)),
}
