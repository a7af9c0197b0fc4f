"""The callback that lets the unpruned network teach the pruned one, in an unchanged LightningModule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_taylor_prune.callbacks.taught_calls import TaughtCalls
from lightning_taylor_prune.callbacks.trainer_compat import as_misconfiguration, check_target, gradient_scale
from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.constraints import check_fraction, check_names, check_number
from lightning_taylor_prune.pruning.loading import load_pruned
from lightning_taylor_prune.recovery.distillation import DistillationKind, DistillationLoss
from lightning_taylor_prune.recovery.teacher import Teacher


class Recovery(Callback):
    """Self-distillation: the network as it was before the first prune teaches what is kept of it.

    The loss becomes ``(1 - weight) * loss + weight * distance``, with the distance between the outputs of network and
    teacher for the same inputs. Nothing in the LightningModule changes: the outputs of the network that its
    ``training_step`` calls are caught, and the gradient of the distance is added to theirs in the one backward pass
    that there is, so that DDP, mixed precision and gradient accumulation go on as they do without. What else the
    training step adds to its loss (a penalty on weights, say) keeps its weight.

    Add it while pruning, while retraining, or both. Without ``teacher`` it keeps a copy of the module as the first
    ``fit`` begins; checkpoints hold it, too.

    Args:
        teacher: The network to learn from: a module like the LightningModule or like its network, or the path of a
            checkpoint of it. By default the module itself, as it is when training begins.
        weight: Share of the distance in the loss, in [0, 1].
        kind: ``"kl"`` for classes, ``"mse"`` for anything; see
            :class:`~lightning_taylor_prune.recovery.distillation.DistillationLoss`.
        temperature: The temperature of ``"kl"``.
        features: Names of layers in the network whose features are compared, too, by their
            :func:`~lightning_taylor_prune.recovery.distillation.attention_map`.
        feature_weight: Weight of the sum of these distances (mean squared differences of the maps, times the number of
            positions).
        target: Name of the network that is called in ``training_step``. By default the module itself, or else the
            child that is called.
        output: A function from what the network returns to the tensor that is compared, where that is not a tensor
            and has no ``logits``.
        teacher_device: Where the teacher is kept and run; by default where the network is.
        teacher_dtype: A floating-point type to keep the teacher in, such as ``torch.bfloat16``.

    Attributes:
        teacher: The :class:`~lightning_taylor_prune.recovery.teacher.Teacher`, from the beginning of ``fit`` on.

    Raises:
        MisconfigurationException: An argument cannot be used, or the network's outputs cannot be compared.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_taylor_prune import TaylorPruningCallback
        >>> trainer = Trainer(callbacks=[TaylorPruningCallback(), Recovery(weight=0.9)], logger=False)
    """

    def __init__(
        self,
        teacher: nn.Module | str | Path | None = None,
        weight: float = 0.9,
        kind: DistillationKind = "kl",
        temperature: float = 4.0,
        features: Sequence[str] = (),
        feature_weight: float = 1.0,
        target: str | None = None,
        output: Callable[[Any], Tensor] | None = None,
        teacher_device: Any = None,
        teacher_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with as_misconfiguration():
            self.distance = DistillationLoss(kind, temperature)
            check_fraction("weight", weight, zero=True)
            check_names("features", features)
            check_number("feature_weight", feature_weight, at_least=0)
            _check_teacher(teacher)
        self.weight, self.features, self.feature_weight = weight, tuple(features), feature_weight
        self.target, self.output = target, output
        self.teacher: Teacher | None = None
        self._given, self._kept = teacher, (teacher_device, teacher_dtype)
        self._calls: TaughtCalls | None = None
        self._resumed: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network before a checkpoint is read: it is unpruned as its code builds it."""
        if stage != "fit" or self.teacher is not None:
            return
        with as_misconfiguration():
            check_target(pl_module, self.target)
            self.teacher = self._make_teacher(pl_module)
        self.load_state_dict(self._resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to catch what the network returns."""
        assert self.teacher is not None
        with as_misconfiguration():
            self._calls = TaughtCalls(pl_module, self.teacher.to(pl_module.device), self)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Catch the calls of this batch."""
        if self._calls is not None:
            self._calls.begin()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the gradient of the distance to that of the loss, when it comes through the outputs."""
        if self._calls is None:
            return
        accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        with as_misconfiguration():
            distance = self._calls.teach(1 / gradient_scale(trainer) / accumulated)
        if distance is not None:
            pl_module.log("recovery/distance", distance, on_step=True, on_epoch=False, batch_size=1)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Under manual optimization another forward pass may follow in the same batch."""
        if self._calls is not None and not pl_module.automatic_optimization:
            self._calls.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget what was caught and not used."""
        if self._calls is not None:
            self._calls.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove all hooks from the network."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher in full, or the path that it was read from; nothing of one that was given as a module."""
        if self._given is None:
            return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}
        return {} if isinstance(self._given, nn.Module) else {"path": str(self._given)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the teacher of the run that goes on, unless another one was given."""
        if self._given is None and self.teacher is not None and "teacher" in state_dict:
            self.teacher.load_state_dict(state_dict["teacher"])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs to go on: copies and pickles hold the teacher's weights, not the network."""
        return {**vars(self), "teacher": None, "_calls": None, "_resumed": copy.deepcopy(self.state_dict())}

    def _make_teacher(self, pl_module: LightningModule) -> Teacher:
        if isinstance(self._given, nn.Module):
            return Teacher(self._given, *self._kept)
        try:
            teacher = Teacher.copy_of(pl_module, *self._kept)
        except RuntimeError as error:  # an attribute holds a tensor with a graph
            raise ArgumentError(
                f"{type(pl_module).__name__} cannot be copied ({error}). Give the network to learn from as `teacher=`."
            ) from error
        if self._given is not None:
            load_pruned(self._given, teacher.network)
        return teacher

    def _close(self) -> None:
        if self._calls is not None:
            self._calls.close()
            self._calls = None


def _check_teacher(teacher: object) -> None:
    if teacher is not None and not isinstance(teacher, (nn.Module, str, Path)):
        raise ArgumentError(f"Expected argument `teacher` to be a module or a path, but got {teacher!r}.")
    if isinstance(teacher, (str, Path)) and not Path(teacher).is_file():
        raise MisconfigurationException(f"Expected argument `teacher` to name a file, but there is none at {teacher}.")
