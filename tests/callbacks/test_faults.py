"""An exception at any point of a prune: all of it is done or nothing, and the checkpoint of the exception goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.callbacks import resume as resume_code
from lightning_taylor_prune.callbacks import steps as callback_code
from lightning_taylor_prune.callbacks.strategies import Rewrap
from lightning_taylor_prune.callbacks.trainer_compat import ValidationRequest
from lightning_taylor_prune.criteria.taylor import Taylor
from lightning_taylor_prune.pruning import bookkeeping, prune, pruner
from lightning_taylor_prune.pruning.move import Move
from lightning_taylor_prune.pruning.optimizers import OptimizerSwap
from lightning_taylor_prune.pruning.transaction import Assignment
from tests.lightning_modules import Classifier, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

BEFORE_THE_END: dict[str, tuple[Any, str]] = {
    "choice": (pruner, "choose"),
    "new tensors": (prune, "_smaller"),
    "attributes": (prune, "_updates"),
    "tensors": (Move, "items_of_modules"),
    "optimizer": (OptimizerSwap, "commit"),
    "wrapper": (Rewrap, "commit"),
    "history": (bookkeeping, "history_row"),
    "criterion": (Taylor, "__init__"),
    "intervals": (Assignment, "commit"),
    "bookkeeping": (bookkeeping.Bookkeeping, "commit"),
}
"""What a failure of takes the whole cut back."""

AFTER_THE_END: dict[str, tuple[Any, str]] = {
    "compiled code": (prune, "forget_compiled"),
    "outcome": (pruner, "PruneOutcome"),
    "log": (callback_code, "log_prune"),
    "logger": (CSVLogger, "log_metrics"),
    "validation": (ValidationRequest, "make"),
    "stop": (resume_code.ResumablePruning, "_stop_after"),
}
"""What comes after the cut, and finds it done."""


class Faulty:
    """Fails once in a prune, before or after it has done what the original does.

    Args:
        original: The function.
        armed: Whether to fail now.
        error: What to raise.
        late: Do it first.
    """

    def __init__(self, original: Callable[..., Any], armed: Callable[[], bool], error: type[BaseException], late: bool):
        self.original, self.armed, self.error, self.late = original, armed, error, late
        self.has_failed = False

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., Any]:
        return self if owner is None else lambda *args, **kwargs: self(owner, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fails = not self.has_failed and self.armed()
        result = self.original(*args, **kwargs) if self.late or not fails else None
        if fails:
            self.has_failed = True
            raise self.error("injected")
        return result


class FailsAfterwards(pl.Callback):
    """Fails once the first prune is done, as a user's callback may."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("injected")


def run(
    folder: Path, resume: bool, *others: pl.Callback, callback: TaylorPruningCallback | None = None
) -> tuple[pl.LightningModule, TaylorPruningCallback]:
    """Train for 12 steps with a prune every 2 of them; a failure leaves a checkpoint."""
    callback = callback or TaylorPruningCallback(every_n_steps=2, filters_per_prune=1, validate_after_prune=True)
    module = Classifier(optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2))
    path = str(folder / "on_exception.ckpt") if resume else None
    logger = CSVLogger(folder, "resumed" if resume else "first")
    more = [callback, *others, OnExceptionCheckpoint(folder)]
    fitting = trainer(more_callbacks=more, max_steps=12, max_epochs=2, enable_checkpointing=True, logger=logger)
    fitting.checkpoint_callback.save_last = False
    try:
        fitting.fit(module, loader(), loader(seed=1), ckpt_path=path)
    except (RuntimeError, SystemExit) as error:
        if "injected" not in str(error) and not isinstance(error, SystemExit):
            raise
    return module, callback


def interrupted(
    place: tuple[Any, str], error: type[BaseException], late: bool, folder: Path, patch: pytest.MonkeyPatch
) -> TaylorPruningCallback:
    """Fail in the second prune, at step 4; return the callback as the failure leaves it."""
    callback = TaylorPruningCallback(every_n_steps=2, filters_per_prune=1)
    pruning = [False]
    whole = callback._prune

    def observed(fitting: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pruning[0] = fitting.global_step == 4
        whole(fitting, pl_module)
        pruning[0] = False

    callback._prune = observed  # type: ignore[method-assign]
    owner, name = place
    faulty = Faulty(getattr(owner, name), lambda: pruning[0], error, late)
    patch.setattr(owner, name, faulty)
    run(folder, False, callback=callback)
    assert faulty.has_failed
    patch.undo()
    return callback


FAILURES = pytest.mark.parametrize(
    ("error", "late"), [(RuntimeError, False), (KeyboardInterrupt, True)], ids=["error before it", "interrupt after it"]
)


@FAILURES
@pytest.mark.parametrize("place", BEFORE_THE_END)
def test_failure_within_a_cut_takes_all_of_it_back_and_the_run_goes_on(
    place: str, error: type[BaseException], late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = interrupted(BEFORE_THE_END[place], error, late, tmp_path, monkeypatch)
    module, resumed = run(tmp_path, True)
    assert len(callback.history) == 1 and [row["step"] for row in resumed.history] == [2, 5, 6, 8, 10, 12]
    assert sum(p.numel() for p in module.parameters()) == resumed.history[-1]["params"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pl.LightningModule:
    """What a run becomes that fails after the prune is done, and goes on."""
    folder = tmp_path_factory.mktemp("expected")
    run(folder, False, FailsAfterwards())
    return run(folder, True)[0]


@FAILURES
@pytest.mark.parametrize("place", AFTER_THE_END)
def test_failure_after_a_cut_finds_it_noted_and_the_run_goes_on_as_from_there(
    place: str,
    error: type[BaseException],
    late: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: pl.LightningModule,
) -> None:
    interrupted(AFTER_THE_END[place], error, late, tmp_path, monkeypatch)
    module, resumed = run(tmp_path, True)
    assert [row["step"] for row in resumed.history] == [2, 4, 6, 8, 10, 12]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
