"""What is logged of a prune, and read of the validation after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_taylor_prune.groups.groups import ChannelGroups

_LOGGED = (
    "removed",
    "filters",
    "num_prunable_filters",
    "params",
    "macs",
    "score_threshold",
    "skipped_minibatches",
    "count",
)


def log_prune(
    trainer: Trainer,
    pl_module: LightningModule,
    row: Mapping[str, Any],
    filters: Mapping[str, int],
    max_prunes: int | None,
) -> None:
    """Send a prune to the progress bar, to what other callbacks monitor, and to the loggers.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        row: The row of the history.
        filters: Filters of every layer now.
        max_prunes: Number of prunes in all, for the progress bar.
    """
    logged = {f"prune/{name}": float(row[name]) for name in _LOGGED}
    for name, value in logged.items():
        if math.isfinite(value):
            pl_module.log(name, value, on_step=True, on_epoch=False, logger=False)
    bar = f"prune_of_{max_prunes}" if max_prunes is not None else "prune"
    pl_module.log(bar, float(row["count"]), on_step=True, on_epoch=False, prog_bar=True, logger=False)
    layers = {f"prune/filters_per_layer/{name}": float(n) for name, n in filters.items()}
    log_rows(trainer, {**logged, **layers})


def log_taken_back(trainer: Trainer, groups: ChannelGroups, batch_size: int, prunes: int) -> None:
    """Send the sizes of a network that came back to the loggers.

    Args:
        trainer: The Trainer.
        groups: The groups of the network.
        batch_size: Examples in a call, for MACs per example.
        prunes: How many prunes were taken back.
    """
    sizes = {
        "taken_back": prunes,
        "filters": groups.num_filters,
        "prunable_filters": groups.num_prunable_filters,
        "params": groups.params,
        "macs": groups.macs // batch_size,
        **{f"filters_per_layer/{name}": n for name, n in groups.filters.items()},
    }
    log_rows(trainer, {f"prune/{name}": float(size) for name, size in sizes.items()})


def log_rows(trainer: Trainer, row: Mapping[str, float]) -> None:
    """Write to the loggers at once: `self.log` only writes at the Trainer's next logging step."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(dict(row), step=step)


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """Return what the validation that ends now found on all its data sets, without what training has logged."""
    results = trainer._results
    assert results is not None
    names = [results._forked_name(metric, False)[0] for metric in results.values() if not metric.has_reset]
    found = trainer.callback_metrics
    return {name: float(found[name]) for name in names if name in found}
