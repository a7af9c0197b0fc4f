"""Copies of the network that callbacks or the module keep: those that follow its training are pruned with it."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_taylor_prune.callbacks.masks import layers_of_masks
from lightning_taylor_prune.errors import ArgumentError, PruningWarning
from lightning_taylor_prune.modules.likeness import ALIKE, correlation, named_as_average, sums
from lightning_taylor_prune.pruning.beside import copy_named
from lightning_taylor_prune.pruning.holders import Copy, Holders
from lightning_taylor_prune.pruning.twins import TwinWatch


def copies_of_module(trainer: Trainer, pl_module: LightningModule, sizes: bool = True) -> list[Copy]:
    """Return every copy of the module, or of a part of it, that can be run, whether it follows the training or not.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        sizes: Whether only those count that have the module's present sizes.
    """
    found = Holders(pl_module, sizes).copies(_roots(trainer, pl_module))
    return [copy for copy in found if copy.module is not None]


class FollowingCopies:
    """Tells copies that follow the training (moving averages) from others (the teacher of a distillation).

    An average that torch or Lightning keeps, or whose name says so, is known as one, and so is what the user names.
    Any other copy follows the training if its values have changed since the training began although no gradient
    reaches it. Dictionaries and lists of tensors, one for each parameter, always do: nothing else can be done with
    them than to use them beside the parameters.

    Args:
        named: What the user names: copies, or functions (of the module, or of nothing) that return one.

    Attributes:
        twins: The same for copies inside the module; ``None`` before training begins.
    """

    def __init__(self, named: Sequence[Any] = ()) -> None:
        self._named = tuple(named)
        self.twins: TwinWatch | None = None
        self._sums: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the values of the copies as training begins."""
        self.twins = TwinWatch(pl_module)
        found = copies_of_module(trainer, pl_module)
        self._sums = WeakKeyDictionary({copy.holder: sums(copy.holder.parameters()) for copy in found})

    def find(self, trainer: Trainer, pl_module: LightningModule) -> list[object]:
        """Return the copies that follow the training; one that was made since then does if its values are alike.

        Modules of the network itself that the user names are returned as they are, see :meth:`Pruner.prune`.
        """
        holders, averages = Holders(pl_module), {id(module) for module in _averages(trainer)}
        own = {id(module) for module in pl_module.modules()}
        values = list(self._values(pl_module))
        inside = [value for value in values if id(value) in own]
        several = [_named(holders, value) for value in values if id(value) not in own]
        named = [copy for copy in several if copy is not None]
        layers = dict(layers_of_masks(trainer, pl_module))
        named += layers.values()
        known = {*layers, *(id(copy.holder) for copy in named)}
        found = [copy for copy in holders.copies(_roots(trainer, pl_module)) if id(copy.holder) not in known]
        return [*inside, *named, *(c for c in found if id(c.holder) in averages or self._follows(c, pl_module))]

    def _values(self, pl_module: LightningModule) -> Iterator[object]:
        for value in self._named:
            if isinstance(value, nn.Module) or not callable(value):
                yield value
            else:
                yield value(pl_module) if inspect.signature(value).parameters else value()

    def _follows(self, copy: Copy, pl_module: LightningModule) -> bool:
        module = copy.module
        if module is None:
            return True
        if any(parameter.grad is not None for parameter in module.parameters()):
            return False
        alike = correlation(pl_module.get_submodule(copy.prefix).parameters(), module.parameters()) > ALIKE
        before, now = self._sums.get(module), sums(module.parameters())
        if before is None or before.equal(now):
            return alike and (before is None or named_as_average(copy.owners))
        return alike or not any(parameter.requires_grad for parameter in module.parameters())

    def __deepcopy__(self, memo: dict[int, Any]) -> FollowingCopies:
        """Return one for another callback: it names the same objects."""
        return FollowingCopies(self._named)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what a pickle holds: of what the user names, what can be pickled."""
        return FollowingCopies, (tuple(value for value in self._named if _can_be_pickled(value)),)


def check_copies(copies: object) -> Sequence[Any]:
    """Check the argument `copies` of the callback.

    Raises:
        ArgumentError: It is no list of modules, dictionaries, lists or functions.
    """
    kinds = (nn.Module, dict, list, Callable)
    if isinstance(copies, (list, tuple)) and all(isinstance(value, kinds) for value in copies):  # type: ignore[arg-type]
        return copies
    raise ArgumentError(
        "Expected argument `copies` to be a list of modules, dictionaries from names to tensors, lists of tensors, or "
        f"functions that return one of these, but got {copies!r}."
    )


def _can_be_pickled(value: object) -> bool:
    """Whether a value goes into a pickle: functions that stand in other functions do not."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _named(holders: Holders, value: object) -> Copy | None:
    """Return what a user says is a copy; if it is none, say so and go on: training does not depend on it."""
    try:
        return copy_named(holders, value)
    except ArgumentError as error:
        warnings.warn(f"Not pruned with the network: {error}", PruningWarning, stacklevel=2)
        return None


def _roots(trainer: Trainer, pl_module: LightningModule) -> list[object]:
    return [pl_module, *trainer.callbacks]  # type: ignore[attr-defined]


def _averages(trainer: Trainer) -> Iterator[nn.Module]:
    """Yield the averages that torch's or Lightning's classes keep, before their first update as well."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for value in vars(callback).values():
            if isinstance(value, AveragedModel):
                yield value.module
        if any(cls.__name__ == "StochasticWeightAveraging" for cls in type(callback).__mro__):
            average = callback._average_model
            if isinstance(average, nn.Module) and not isinstance(average, AveragedModel):
                yield average
