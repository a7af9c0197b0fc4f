"""Copies of the module that other callbacks keep: those that follow its training are pruned with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def copies_of_module(trainer: Trainer, pl_module: LightningModule) -> list[nn.Module]:
    """Return every copy of the module that some callback keeps, whether it follows the training or not."""
    return [*_averages(trainer), *_others(trainer, pl_module)]


class FollowingCopies:
    """Tells copies that follow the training (moving averages) from others (the teacher of a distillation).

    An average that torch or Lightning keeps is known as one; any other copy follows the training if its values have
    changed since the training began.
    """

    def __init__(self) -> None:
        self._values: dict[int, Tensor] = {}

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the values of the copies as training begins."""
        self._values = {id(copy): _sums(copy) for copy in _others(trainer, pl_module)}

    def find(self, trainer: Trainer, pl_module: LightningModule) -> list[nn.Module]:
        """Return the copies that follow the training; one that was made since then counts as one."""
        others = _others(trainer, pl_module)
        return [*_averages(trainer), *(copy for copy in others if self._has_changed(copy))]

    def _has_changed(self, copy: nn.Module) -> bool:
        before = self._values.get(id(copy))
        return before is None or not torch.equal(before, _sums(copy))


def _averages(trainer: Trainer) -> Iterator[nn.Module]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for value in vars(callback).values():
            if isinstance(value, AveragedModel):
                yield value.module
        if any(cls.__name__ == "StochasticWeightAveraging" for cls in type(callback).__mro__):
            average = callback._average_model
            if isinstance(average, nn.Module) and not isinstance(average, AveragedModel):
                yield average


def _others(trainer: Trainer, pl_module: LightningModule) -> list[nn.Module]:
    """Return attributes of callbacks that are of the module's class and no average that is known as one."""
    known = {id(pl_module), *(id(average) for average in _averages(trainer))}
    values = (value for callback in trainer.callbacks for value in vars(callback).values())  # type: ignore[attr-defined]
    return [value for value in values if type(value) is type(pl_module) and id(value) not in known]


@torch.no_grad()
def _sums(copy: nn.Module) -> Tensor:
    """Return the sum of every parameter, on the CPU: it changes where values do."""
    return torch.tensor([float(parameter.double().sum()) for parameter in copy.parameters()], dtype=torch.float64)
