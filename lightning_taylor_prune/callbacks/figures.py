"""The report's figures while training, for every logger that takes them."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_taylor_prune.callbacks.loggers import log_figure
from lightning_taylor_prune.callbacks.loss_curve import LossCurve
from lightning_taylor_prune.callbacks.pruning import TaylorPruningCallback
from lightning_taylor_prune.callbacks.status import progress_of
from lightning_taylor_prune.callbacks.trainer_compat import own_attributes
from lightning_taylor_prune.report import Progress


def prunings_of(trainer: Trainer) -> list[TaylorPruningCallback]:
    """Return the pruning callbacks of a Trainer."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, TaylorPruningCallback)]


class PruningFigures(Callback):
    """Draws the progress of pruning after each prune, and sends the figures to the Trainer's loggers.

    ``prune/progress`` shows loss, accuracy and prunable filters over iterations, ``prune/filters_per_layer`` the
    filters of every layer before and now. A prune is drawn at the first batch after its validation. With several
    pruning callbacks the name of each one's target is added. Needs matplotlib.

    Losses are those of the Trainer's :class:`~lightning_taylor_prune.callbacks.LossCurve`, if it has one.

    Args:
        every_n_prunes: Draw one prune in so many, and the last one. Drawing takes about a second of CPU time.
        monitor: Name of the validation accuracy; by default the first metric with "acc" in its name.

    Attributes:
        curve: The losses.
        metrics_before: Validation metrics of the unpruned network, for the first point of the progress. Set it, or
            give the Trainer ``num_sanity_val_steps=-1``: then what that validation finds is taken.

    Raises:
        MisconfigurationException: ``every_n_prunes`` is less than 1.

    Example:
        >>> figures = PruningFigures(every_n_prunes=5)
        >>> callbacks = [TaylorPruningCallback(), figures]  # for the Trainer
    """

    def __init__(self, every_n_prunes: int = 1, monitor: str | None = None) -> None:
        super().__init__()
        if every_n_prunes < 1:
            raise MisconfigurationException(f"Expected `every_n_prunes` to be at least 1, got {every_n_prunes}")
        self.every_n_prunes = every_n_prunes
        self.monitor = monitor
        self.curve = LossCurve()
        self.metrics_before: dict[str, float] = {}
        self._own_curve = True
        self._drawn: dict[str, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the Trainer's curve of losses, or else keep one."""
        if stage != "fit":
            return
        curves = [callback for callback in trainer.callbacks if isinstance(callback, LossCurve)]  # type: ignore[attr-defined]
        self._own_curve = not curves
        self.curve = curves[0] if curves else self.curve
        if self._own_curve:
            self.curve.setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what a whole validation before training finds."""
        whole = trainer.sanity_checking and trainer.num_sanity_val_steps == float("inf")
        if whole and not self.metrics_before and not any(pruning.history for pruning in prunings_of(trainer)):
            self.metrics_before = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw a prune of the batch before: whatever order callbacks have, it is validated by now."""
        self._draw_new(trainer, self.every_n_prunes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss."""
        if self._own_curve:
            self.curve.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last prune."""
        self._draw_new(trainer, 1)
        if self._own_curve:
            self.curve.on_train_end(trainer, pl_module)

    def progress(self, pruning: TaylorPruningCallback) -> Progress:
        """Return how pruning went, as the report takes it.

        Raises:
            ValueError: The callback has not seen a batch yet.
        """
        if pruning.groups is None:
            raise ValueError("Expected a callback that has seen at least one batch")
        before = {
            "step": 0,
            "metrics": self.metrics_before,
            "num_prunable_filters": pruning.groups.unpruned().num_prunable_filters,
        }
        return progress_of([before, *pruning.history], self.curve.iterations, self.curve.losses, self.monitor)

    def state_dict(self) -> dict[str, Any]:
        """Return what is drawn already, and the losses where no other callback keeps them."""
        state = {"drawn": dict(self._drawn), "metrics_before": dict(self.metrics_before)}
        return {**state, "curve": self.curve.state_dict()} if self._own_curve else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the figures of a checkpoint."""
        self._drawn, self.metrics_before = dict(state_dict["drawn"]), dict(state_dict["metrics_before"])
        if self._own_curve and "curve" in state_dict:
            self.curve.load_state_dict(state_dict["curve"])

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the module's methods: copies and pickles hold no network."""
        return own_attributes(self)

    def _draw_new(self, trainer: Trainer, at_least: int) -> None:
        """Draw where there are new prunes, in sufficient number."""
        if not trainer.is_global_zero or not trainer.loggers:
            return
        prunings = prunings_of(trainer)
        for pruning in prunings:
            taken_back = sum(bool(row.get("taken_back")) for row in pruning.history)  # drawn anew, too
            count, drawn = len(pruning.history) + taken_back, self._drawn.get(pruning.state_key, 0)
            new = count - drawn if count >= drawn else count  # fewer: the callback has begun anew
            if new >= at_least and pruning.groups is not None:
                self._drawn[pruning.state_key] = count
                self._draw(
                    trainer, pruning, f"/{pruning.target or pruning.settings.criterion}" if len(prunings) > 1 else ""
                )

    def _draw(self, trainer: Trainer, pruning: TaylorPruningCallback, suffix: str) -> None:
        from lightning_taylor_prune.report.figures import filters_figure, progress_figure  # matplotlib: slow to import

        step = pruning.history[-1]["step"]
        figures = {
            f"prune/progress{suffix}": progress_figure(self.progress(pruning)),
            f"prune/filters_per_layer{suffix}": filters_figure(pruning.filters_before, pruning.filters_after),
        }
        for logger in trainer.loggers:
            for name, figure in figures.items():
                log_figure(logger, name, figure, step)
