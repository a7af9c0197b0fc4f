"""What the callback asks of a Trainer and its module, beyond their hooks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn

from lightning_taylor_prune.errors import ArgumentError, PruningError, PruningWarning
from lightning_taylor_prune.tracing.progress import reporting

_SCHEDULES: WeakKeyDictionary[Trainer, tuple[Any, Any]] = WeakKeyDictionary()
"""Trainers' own validation schedules while a request is made; two callbacks may make one for the same batch."""


class ValidationRequest:
    """Asks the Trainer to validate at the end of this batch, in its own regular place and order."""

    def make(self, trainer: Trainer) -> None:
        """Make this the batch at which the Trainer validates, if it can validate at all."""
        if not trainer.enable_validation:
            return
        _SCHEDULES.setdefault(trainer, (trainer.val_check_batch, trainer.check_val_every_n_epoch))
        trainer.check_val_every_n_epoch = None
        trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def withdraw(self, trainer: Trainer) -> None:
        """Restore the Trainer's schedule."""
        if (schedule := _SCHEDULES.pop(trainer, None)) is not None:
            trainer.val_check_batch, trainer.check_val_every_n_epoch = schedule


def is_validation_due(trainer: Trainer) -> bool:
    """Whether the Trainer validates at the end of this batch, asked while the batch ends."""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher
    return trainer.enable_validation and fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher)


def validate_now(trainer: Trainer, batch: Any = None) -> None:
    """Run the validation that was due when a checkpoint was written: a Trainer that resumes passes over it.

    Args:
        trainer: The Trainer, between two batches.
        batch: The batch that has begun; ``None`` if none has.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first, loop.restarting = connector._first_loop_iter, False
    trainer.validating = True
    loop.run()
    trainer.training, connector._first_loop_iter = True, None
    if batch is not None:
        connector.on_batch_start(batch)
    connector._first_loop_iter = first


@contextlib.contextmanager
def as_misconfiguration() -> Iterator[None]:
    """Raise errors about arguments as Lightning does."""
    try:
        yield
    except PruningError as error:
        raise MisconfigurationException(str(error)) from error


@contextlib.contextmanager
def warnings_of_first_rank() -> Iterator[None]:
    """Let rank 0 alone warn of what all ranks find."""
    with warnings.catch_warnings():
        if getattr(rank_zero_only, "rank", 0) != 0:
            warnings.simplefilter("ignore", PruningWarning)
        yield


def check_target(pl_module: LightningModule, target: str | None) -> None:
    """Check that the target is a submodule.

    Raises:
        ArgumentError: It is not.
    """
    if target is not None and target not in dict(pl_module.named_modules(remove_duplicate=False)):
        names = ", ".join(name for name, _ in pl_module.named_children())
        raise ArgumentError(
            f"Expected argument `target` to name a submodule of {type(pl_module).__name__}, but got {target!r}. "
            f"Its children are: {names}."
        )


def check_launcher(trainer: Trainer) -> None:
    """Refuse to train in child processes whose smaller weights the main process could not take back."""
    if type(getattr(trainer.strategy, "launcher", None)).__name__ == "_MultiProcessingLauncher":
        raise MisconfigurationException(
            "Expected a module that can load pruned weights, as this strategy trains in child processes. Call "
            "`lightning_taylor_prune.make_loadable(module)` before `trainer.fit`, or use `strategy='ddp'`."
        )


def gradient_scale(trainer: Trainer) -> float:
    """Return what undoes fp16 loss scaling."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 / scaler.get_scale() if scaler is not None else 1.0


def window_correction(trainer: Trainer) -> float:
    """Return what makes up for a last accumulation window that holds fewer batches than it is divided by."""
    accumulated = trainer.accumulate_grad_batches
    window = (trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1) % accumulated + 1
    return accumulated / window


def parameters_of_step(trainer: Trainer, pl_module: nn.Module, optimizer: Any) -> set[int]:
    """Return identities of the parameters whose gradients are complete when an optimizer is about to step.

    Those that no optimizer of the Trainer has belong to one that the module keeps for itself, of which no hook tells.
    """
    known = {id(p) for each in trainer.optimizers for group in each.param_groups for p in group["params"]}
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return own | {id(p) for p in pl_module.parameters()} - known


@contextlib.contextmanager
def analysing(pl_module: nn.Module) -> Iterator[None]:
    """Run an analysis: what takes long is said on rank 0 as Lightning says things, and nothing is logged of it."""
    with logging_off(pl_module), reporting(rank_zero_info):
        yield


@contextlib.contextmanager
def logging_off(pl_module: nn.Module) -> Iterator[None]:
    """Keep `self.log` calls in a traced forward from reaching the Trainer with tensors that hold no numbers."""
    names = ("log", "log_dict")
    try:
        for name in names:
            vars(pl_module)[name] = lambda *args, **kwargs: None
        yield
    finally:
        for name in names:
            vars(pl_module).pop(name, None)


def own_attributes(callback: Callback) -> dict[str, Any]:
    """Return a callback's attributes but for the module's methods, which Lightning hangs on it while it trains."""
    return {name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")}
