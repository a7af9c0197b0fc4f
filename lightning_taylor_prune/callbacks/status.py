"""How far pruning has come: pure functions of what the callback and the Trainer know."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer

from lightning_taylor_prune.callbacks.pruning import TaylorPruningCallback
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.report import Progress


def headline(metrics: Mapping[str, float], monitor: str | None = None) -> tuple[str, float] | None:
    """Return the metric to show, with its name: ``monitor``, or else an accuracy, or else the first one.

    Example:
        >>> headline({"val_loss": 0.4, "val_acc": 0.9})
        ('val_acc', 0.9)
    """
    if monitor is not None:
        return (monitor, metrics[monitor]) if monitor in metrics else None
    names = [name for name in metrics if "acc" in name.lower()] or list(metrics)
    return (names[0], metrics[names[0]]) if names else None


def accuracy(metrics: Mapping[str, float], monitor: str | None = None) -> float:
    """Return the accuracy among metrics, or NaN: a loss must not be drawn as an accuracy."""
    shown = headline(metrics, monitor)
    return shown[1] if shown is not None and (monitor is not None or "acc" in shown[0].lower()) else math.nan


def progress_of(
    rows: Sequence[Mapping[str, Any]],
    iterations: Sequence[int],
    losses: Sequence[float],
    monitor: str | None = None,
) -> Progress:
    """Return what the three panels of the progress figure show.

    Args:
        rows: What was before the first prune, then :attr:`TaylorPruningCallback.history`: ``step``, ``metrics`` and
            ``num_prunable_filters`` of each.
        iterations: Optimizer steps at which losses were taken.
        losses: Training loss of one mini-batch each.
        monitor: Name of the accuracy among ``metrics``; by default the first one with "acc" in its name.
    """
    return Progress(
        loss_iterations=iterations,
        losses=losses,
        iterations=[row["step"] for row in rows],
        accuracies=[accuracy(row["metrics"], monitor) for row in rows],
        num_prunable_filters=[row["num_prunable_filters"] for row in rows],
        taken_back=[row["step"] for row in rows if row.get("taken_back")],
    )


@dataclass(frozen=True)
class Sizes:
    """How large a network is now, and how large it was before the first prune; 0 where that is not known yet.

    Attributes:
        filters: Filters of convolutions and units of linear layers now.
        filters_before: Filters of the unpruned network.
        params: Parameters now.
        params_before: Parameters of the unpruned network.
    """

    filters: int = 0
    filters_before: int = 0
    params: int = 0
    params_before: int = 0

    def __str__(self) -> str:
        """Say how much of the network is kept."""
        counts = {"filters": (self.filters, self.filters_before), "params": (self.params, self.params_before)}
        return ", ".join(f"{n:,} of {all_:,} {what} ({n / all_:.0%})" for what, (n, all_) in counts.items() if all_)


def sizes_of(groups: ChannelGroups) -> Sizes:
    """Count filters and parameters, now and before the first prune."""
    before = groups.unpruned()
    return Sizes(groups.num_filters, before.num_filters, groups.params, before.params)


@dataclass(frozen=True)
class PruningStatus:
    """How far pruning has come.

    Attributes:
        done: Prunes so far.
        total: Prunes in all, as far as can be foreseen; ``None`` if it cannot.
        steps_left: Optimizer steps up to the last prune; ``None`` if that cannot be foreseen.
        sizes: How much of the network is kept.
        metric: Name and value of the validation metric after the last prune that was validated.
    """

    done: int
    total: int | None
    steps_left: int | None
    sizes: Sizes = Sizes()
    metric: tuple[str, float] | None = None

    def __str__(self) -> str:
        """Say the network's metric, and how much of the network is kept."""
        metric = f"{self.metric[0]} {self.metric[1]:.4g}" if self.metric else ""
        return ", ".join(part for part in (metric, str(self.sizes)) if part)


def pruning_status(
    pruning: TaylorPruningCallback, sizes: Sizes, step: int, last_step: int | None, monitor: str | None = None
) -> PruningStatus:
    """Return how far a callback has come.

    Args:
        pruning: The callback.
        sizes: How much of its network is kept.
        step: Optimizer steps so far.
        last_step: Optimizer steps in all, if known.
        monitor: Name of the metric to show.
    """
    total, steps_left = _foreseen(pruning, step, last_step)
    measured = [row["metrics"] for row in pruning.history if row["metrics"] and not row.get("taken_back")]
    return PruningStatus(
        pruning.num_prunes, total, steps_left, sizes, headline(measured[-1], monitor) if measured else None
    )


def _foreseen(pruning: TaylorPruningCallback, step: int, last_step: int | None) -> tuple[int | None, int | None]:
    """Return how many prunes there will be, and the optimizer steps until the last one."""
    done, every = pruning.num_prunes, pruning.every_n_steps
    if pruning.stop_reason is not None:
        return done, 0
    after_start = step - pruning.start_step
    passed = max(after_start, 0) // every
    limits = [] if pruning.prunes_left is None else [pruning.prunes_left]
    if last_step is not None:
        limits.append(max(last_step - pruning.start_step, 0) // every - passed)
    if not limits:
        return None, None
    to_do = max(min(limits), 0)
    return done + to_do, (passed + to_do) * every - after_start if to_do else 0


def last_step(trainer: Trainer) -> int | None:
    """Return the optimizer steps that a fit takes in all, if its length is known."""
    # Under manual optimization each optimizer counts by itself, and only the module knows how many take a step.
    automatic = trainer.lightning_module.automatic_optimization
    steps = trainer.estimated_stepping_batches if automatic else trainer.max_steps
    return int(steps) if math.isfinite(steps) and steps > 0 else None


class Pace:
    """Foresees time from the steps of the last few intervals: a pruned network trains faster than it did before.

    Args:
        intervals: How many intervals count.

    Example:
        >>> pace = Pace()
        >>> pace.mark(0, 100.0)
        >>> pace.seconds(steps_left=30, step=10, now=105.0)
        15.0
    """

    def __init__(self, intervals: int = 5) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=intervals)

    def mark(self, step: int, now: float) -> None:
        """Begin an interval at an optimizer step and a time in seconds."""
        self._marks.append((step, now))

    def seconds(self, steps_left: int | None, step: int, now: float) -> float | None:
        """Return how long the remaining steps will take, or ``None`` if that cannot be told yet."""
        if steps_left is None or not self._marks or step <= self._marks[0][0]:
            return 0.0 if steps_left == 0 else None
        first_step, begun = self._marks[0]
        return steps_left * (now - begun) / (step - first_step)


def clock(seconds: float | None) -> str:
    """Write a duration as hours, minutes and seconds.

    Example:
        >>> clock(3725.8), clock(None)
        ('1:02:05', '-:--:--')
    """
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
