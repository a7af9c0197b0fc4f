"""A progress bar that knows of pruning."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    CustomBarColumn,
    CustomProgress,
    CustomTimeColumn,
    ProcessingSpeedColumn,
    RichProgressBarTheme,
)

from lightning_taylor_prune.callbacks.figures import prunings_of
from lightning_taylor_prune.callbacks.pruning import TaylorPruningCallback
from lightning_taylor_prune.callbacks.status import (
    Pace,
    PruningStatus,
    Sizes,
    clock,
    last_step,
    pruning_status,
    sizes_of,
)
from lightning_taylor_prune.errors import missing_package
from lightning_taylor_prune.groups.groups import ChannelGroups

try:
    from rich.console import RenderableType
    from rich.progress import Task, TaskID
    from rich.text import Text
except ImportError as error:
    raise missing_package("The progress bar needs", "rich", "rich") from error

SECONDS_BETWEEN_LINES = 10.0  # in a file, where a bar would be escape codes

SECONDS_LEFT = "seconds_left"  # a field that only pruning rows have


class PruningProgressBar(RichProgressBar):
    """Lightning's rich progress bar with a row for pruning: prune k of n, remaining time, metric and sizes.

    It is an ordinary bar where nothing is pruned. A training that ends after a number of steps shows these instead of
    the batches of its epochs. Where there is no terminal (a file, a pipe) it writes a line per prune, or one every ten
    seconds at the end of an epoch where nothing is pruned. Only rank 0 writes.

    Args:
        refresh_rate: Refreshes per second; 0 turns the bar off.
        leave: Keep the bar of each epoch on the screen.
        theme: Styles.
        console_kwargs: Arguments for rich's ``Console``.
        monitor: Name of the validation metric to show; by default an accuracy if there is one, else the first metric.

    Example:
        >>> PruningProgressBar(refresh_rate=5, monitor="val_acc").monitor
        'val_acc'
    """

    def __init__(
        self,
        refresh_rate: int = 10,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
        monitor: str | None = None,
    ) -> None:
        super().__init__(refresh_rate, leave, theme or RichProgressBarTheme(), console_kwargs)
        self.monitor = monitor
        self._rows: list[_PruningRow] = []
        self._last_step: int | None = None
        self._wrote_at = 0.0

    # --- what the parent class asks for ---------------------------------------------------------------------------

    @property
    def total_train_batches(self) -> int | float:
        """The length of the training row: steps if they end the training, else the batches of an epoch."""
        return self.trainer.max_steps if self._by_steps else super().total_train_batches

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return columns that know what a pruning row shows instead of rich's own estimates."""
        known = {CustomTimeColumn: _TimeColumn, ProcessingSpeedColumn: _SpeedColumn}
        columns = super().configure_columns(trainer)
        if self._console is not None:  # room for the metrics
            for column in columns:
                if isinstance(column, CustomBarColumn):
                    column.bar_width = min(max((self._console.width - 40) // 3, 10), 40)
        return [known[type(c)](c.style) if type(c) in known else c for c in columns]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the module's metrics, without the count of prunes, which has its own row."""
        metrics = super().get_metrics(trainer, pl_module)
        counts = {row.name_of_count for row in self._rows}
        return {name: value for name, value in metrics.items() if name not in counts}

    def _get_train_description(self, current_epoch: int) -> str:
        if (self.trainer.max_epochs or 0) > 0:
            return super()._get_train_description(current_epoch)
        return f"{f'Epoch {current_epoch}':{len(self.validation_description)}}"

    def _init_progress(self, trainer: Trainer) -> None:
        before = self.progress
        super()._init_progress(trainer)
        if self.progress is None or self.progress is before:
            return
        for row in self._rows:
            row.task = None
        if not self._is_screen:
            self.progress.live.transient = True  # else rich writes the last bar at the end
        # Sentences would make a column too wide: they stand above the table.
        table = self.progress.get_renderables
        self.progress.get_renderables = lambda: [*self._sentences(), *table()]  # type: ignore[method-assign]
        self._show()

    def _update(self, progress_bar_id: TaskID | None, current: int, *args: bool, **kwargs: bool) -> None:
        # Lightning 2.6.0 has no `hard`.
        if self._by_steps and progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, *args, **kwargs)

    # --- hooks ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row for each pruning callback."""
        super().on_train_start(trainer, pl_module)
        if self.is_disabled:
            return
        self._last_step, self._wrote_at = last_step(trainer), time.monotonic()
        prunings = prunings_of(trainer)
        names = [f"Pruning {p.target or ''}".strip() if len(prunings) > 1 else "Pruning" for p in prunings]
        self._rows = [
            _PruningRow(name, pruning, trainer.global_step) for name, pruning in zip(names, prunings, strict=True)
        ]
        self._show()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a row, but not anew for each epoch if the row is that of steps."""
        if self._by_steps and self.progress is not None and self.train_progress_bar_id is not None and not self._leave:
            self.progress.update(
                self.train_progress_bar_id, description=self._get_train_description(trainer.current_epoch)
            )
            return
        super().on_train_epoch_start(trainer, pl_module)
        self._update(self.train_progress_bar_id, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show what the validation after a prune found."""
        self._follow()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far pruning has come."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._show()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line where there is no screen, now and then."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._rows and time.monotonic() - self._wrote_at >= SECONDS_BETWEEN_LINES:
            self._write_epoch(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show where pruning ended."""
        super().on_train_end(trainer, pl_module)
        self._follow()
        if not self._rows:
            self._write_epoch(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit."""
        super().teardown(trainer, pl_module, stage)
        self._rows = []

    # --- shell ----------------------------------------------------------------------------------------------------

    @property
    def _by_steps(self) -> bool:
        """Whether steps end the training, not epochs."""
        trainer = self.trainer
        return trainer.state.fn == "fit" and trainer.max_epochs == -1 and (trainer.max_steps or 0) > 0

    @property
    def _is_screen(self) -> bool:
        assert self.progress is not None
        console = self.progress.console
        return console.is_interactive or console.is_jupyter

    def _show(self) -> None:
        """Show how far each callback has come."""
        if self.progress is not None and not self._progress_stopped:
            for row in self._rows:
                row.show(self.progress, row.status(self.trainer.global_step, self._last_step, self.monitor))
            self.refresh()

    def _follow(self) -> None:
        """Show each row, and where there is no screen write a line for each prune that is new, validated by now."""
        self._show()
        for row in self._rows:
            if (line := row.news(self.trainer.global_step, self._last_step, self.monitor)) is not None:
                self._write(line)

    def _sentences(self) -> list[Text]:
        """Return what each row says of its network."""
        rows = [row for row in self._rows if row.sentence]
        prefix = len(rows) > 1
        return [Text(f"{row.name}: {row.sentence}" if prefix else row.sentence, self.theme.metrics) for row in rows]

    def _write_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self.get_metrics(trainer, pl_module).items()
        texts = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics)
        self._wrote_at = time.monotonic()
        self._write(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {', '.join(texts)}".removesuffix(": "))

    def _write(self, line: str) -> None:
        if self.progress is not None and self.is_enabled and not self._is_screen:
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _PruningRow:
    """The row of one pruning callback."""

    def __init__(self, name: str, pruning: TaylorPruningCallback, step: int) -> None:
        self.name = name
        self.task: TaskID | None = None
        self.sentence = ""
        self._pruning = pruning
        self._known_groups: ChannelGroups | None = None
        self._sizes = Sizes()
        self._told = self._seen = len(pruning.history)
        self._pace = Pace()
        self._pace.mark(step, time.monotonic())

    @property
    def name_of_count(self) -> str:
        """The name under which the callback gives the bar its count of prunes."""
        return "prune" if self._pruning.max_prunes is None else f"prune_of_{self._pruning.max_prunes}"

    def status(self, step: int, last_step: int | None, monitor: str | None) -> tuple[PruningStatus, float | None]:
        """Return how far the callback has come, and how many seconds remain."""
        groups = self._pruning.groups
        if groups is not None and groups is not self._known_groups:  # sizes take a while to count
            self._known_groups, self._sizes = groups, sizes_of(groups)
        now, state = time.monotonic(), pruning_status(self._pruning, self._sizes, step, last_step, monitor)
        if state.done > self._seen:
            self._seen = state.done
            self._pace.mark(step, now)
        return state, self._pace.seconds(state.steps_left, step, now)

    def show(self, progress: CustomProgress, status: tuple[PruningStatus, float | None]) -> None:
        """Show a status in the row."""
        state, seconds = status
        total = math.inf if state.total is None else state.total
        if self.task is None:
            self.task = progress.add_task(f"{self.name:10}", total=total)
        self.sentence = str(state)
        fields: dict[str, Any] = {SECONDS_LEFT: seconds}
        progress.update(self.task, completed=state.done, total=total, **fields)

    def news(self, step: int, last_step: int | None, monitor: str | None) -> str | None:
        """Return a line about the last prune, once."""
        state, seconds = self.status(step, last_step, monitor)
        if state.done <= self._told:
            return None
        self._told = state.done
        of = "" if state.total is None else f" of {state.total}"
        remaining = "" if seconds is None else f", {clock(seconds)} left"
        return f"{self.name}: prune {state.done}{of} at step {self._pruning.history[-1]['step']}: {state}{remaining}"


class _TimeColumn(CustomTimeColumn):
    """Elapsed and remaining time; in a pruning row the latter is what the bar foresees."""

    def render(self, task: Task) -> Text:
        if SECONDS_LEFT not in task.fields:
            return super().render(task)
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{clock(elapsed)} • {clock(task.fields[SECONDS_LEFT])}", style=self.style)


class _SpeedColumn(ProcessingSpeedColumn):
    """Steps per second; nothing in a pruning row."""

    def render(self, task: Task) -> RenderableType:
        return Text() if SECONDS_LEFT in task.fields else super().render(task)
