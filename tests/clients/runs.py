"""Runs of clients: without the callback, with it, and resumed; and what is measured of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, loading_pruned, prune_
from lightning_taylor_prune.tracing.call import Call
from tests.clients.training import EPOCHS, STEPS_PER_EPOCH, Client, Training
from tests.oracles import mask_readers_, random_units

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
    "log_every_n_steps": 1,
    "limit_train_batches": STEPS_PER_EPOCH,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
}


class Timed(TaylorPruningCallback):
    """Notes the seconds of the analysis."""

    seconds = 0.0

    def _begin(self, pl_module: Any, calls: Sequence[Call] | None = None) -> None:
        start = time.perf_counter()
        super()._begin(pl_module, calls)
        self.seconds += time.perf_counter() - start


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has ended.

    Attributes:
        module: What was trained.
        callback: What pruned it.
        mid, last: Checkpoints, after the first epoch and after the last.
    """

    module: nn.Module
    callback: Timed
    mid: Path
    last: Path


def built(client: Client) -> Training:
    """Build a client, the same each time."""
    torch.manual_seed(0)
    return client.build()


def fit(training: Training, callbacks: Sequence[Any] = (), resume: Path | None = None, epochs: int = EPOCHS) -> None:
    """Train for some epochs; random numbers depend on the step alone, so that a resumed run draws the same."""
    library = training.lightning

    class Draws(library.Callback):  # type: ignore[name-defined, misc]
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            torch.manual_seed(trainer.global_step)

    saves = any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks)
    options = {**QUIET, "max_epochs": epochs, "enable_checkpointing": saves, **training.trainer}
    trainer = library.Trainer(**options, callbacks=[Draws(), *callbacks])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer.fit(training.module, training.batches, ckpt_path=resume, weights_only=False)


def run(client: Client, folder: Path, resume: Path | None = None) -> Run:
    """Train a client with three prunes, or go on where a checkpoint stands."""
    training = built(client)
    callback = Timed(every_n_steps=2, filters_per_prune=4, max_prunes=3)
    saving = training.lightning.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fit(training, [callback, saving], resume)
    return Run(training.module, callback, folder / "epoch=0.ckpt", folder / f"epoch={EPOCHS - 1}.ckpt")


def reloaded(client: Client, path: Path) -> Training:
    """Build a client and load a pruned checkpoint."""
    training = built(client)
    with loading_pruned():
        state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
        training.module.load_state_dict(state)
    return training


def loss(training: Training) -> Tensor:
    """Return the loss of the first batch, in evaluation mode and with fixed random numbers."""
    return _evaluated(Step(training.module.eval()), next(iter(training.batches)))


class Step(nn.Module):
    """A training step as a network, so that it can be exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        output = self.module.training_step(batch, 0)
        return output if isinstance(output, Tensor) else output["loss"]


def _evaluated(step: Callable[[Any], Tensor], batch: Any) -> Tensor:
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing is logged without a Trainer
        torch.manual_seed(0)
        return step(batch)


def can_be_exported(training: Training) -> bool:
    """Whether `torch.export` makes a program of the step, in evaluation mode, that has the same loss."""
    step, batch = Step(training.module.eval()), next(iter(training.batches))
    expected = loss(training)
    try:
        with torch.no_grad():
            program = torch.export.export(step, (batch,), strict=False).module()
    except Exception:  # whatever torch.export cannot do, or the library
        return False
    return torch.allclose(_evaluated(program, batch), expected, rtol=1e-3)


def masked_error(client: Client, ran: Run) -> float:
    """Return by how much the loss differs, relatively, between a further cut of exact groups and masks."""
    groups = ran.callback.groups
    assert groups is not None, ran.callback.stop_reason
    plan = groups.plan({name: chosen for name, chosen in random_units(groups).items() if groups[name].exact})
    masked, pruned = reloaded(client, ran.last), reloaded(client, ran.last)
    mask_readers_(masked.module, plan)
    prune_(pruned.module, plan)
    expected, actual = loss(masked), loss(pruned)
    return float((actual - expected).abs() / expected.abs().clamp(min=1e-6))


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules hold the same values, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], Tensor))
