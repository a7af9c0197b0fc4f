"""The two plots of the worked example: progress of the pruning, and filters per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: tells apart under every common colour blindness.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#9A9A9A"
LIGHT_BLUE = "#A6CEE3"
INK = "#333333"


@dataclass(frozen=True)
class Progress:
    """How a pruning run went.

    Attributes:
        loss_iterations: Iterations at which the training losses were taken.
        losses: Training loss of one mini-batch each.
        iterations: Iterations at which accuracy and filters were taken: 0, then one per prune.
        accuracies: Validation accuracy at these iterations, 0 to 1.
        prunable_filters: Filters that could still be pruned at these iterations.
    """

    loss_iterations: Sequence[int]
    losses: Sequence[float]
    iterations: Sequence[int]
    accuracies: Sequence[float]
    prunable_filters: Sequence[int]


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Return the mean of each value and up to ``window - 1`` before it, same length."""
    total = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=float)]))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    return (total[stop] - total[start]) / (stop - start)


def tidy(axes: Axes, ylabel: str) -> None:
    """Leave an axes its two labelled spines."""
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def draw_losses(axes: Axes, progress: Progress) -> None:
    """Draw each mini-batch's loss, and a running mean that shows the trend."""
    x, losses = progress.loss_iterations, progress.losses
    axes.plot(x, losses, color=LIGHT_BLUE, linewidth=0.8, label="each mini-batch")
    axes.plot(x, running_mean(losses, 10), color=BLUE, linewidth=1.6, label="mean of the last 10")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, borderaxespad=0)
    axes.set_ylim(bottom=0)
    tidy(axes, "Mini-batch loss\n(cross entropy)")


def draw_accuracies(axes: Axes, progress: Progress) -> None:
    """Draw the validation accuracy before the first prune and after each."""
    percent = [100 * value for value in progress.accuracies]
    axes.plot(progress.iterations, percent, color=ORANGE, marker="o", markersize=4, linewidth=1.2)
    tidy(axes, "Validation accuracy\nafter each prune (%)")


def draw_filters(axes: Axes, progress: Progress) -> None:
    """Draw how many filters can still be pruned."""
    axes.step(progress.iterations, progress.prunable_filters, where="post", color=BLUE, linewidth=1.6)
    axes.set_ylim(bottom=0)
    tidy(axes, "Prunable filters\n(count)")


def progress_figure(progress: Progress) -> Figure:
    """Draw mini-batch loss, validation accuracy and prunable filters over iterations, prunes marked."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for axes, draw in zip(panels, (draw_losses, draw_accuracies, draw_filters), strict=True):
        draw(axes, progress)
        for iteration in progress.iterations[1:]:
            axes.axvline(iteration, color=GREY, linewidth=0.6, alpha=0.5, zorder=0)
    panels[-1].set_xlabel("Iteration (optimizer step)")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].margins(x=0.015)
    figure.suptitle(f"Pruning progress: {len(progress.iterations) - 1} prunes, each at a grey line")
    return figure


def without_common_prefix(names: Sequence[str]) -> list[str]:
    """Drop the leading dotted part that all names share."""
    parts = [name.split(".") for name in names]
    while len({first for first, *_ in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [rest for _, *rest in parts]
    return [".".join(part) for part in parts]


def filters_figure(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Draw the filters of each layer before and after pruning as pairs of bars."""
    names = list(before)
    kept = [after[name] for name in names]
    rows = np.arange(len(names))
    figure = Figure(figsize=(8, 1.3 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows, list(before.values()), height=0.8, color=LIGHT_BLUE, label="before pruning")
    axes.barh(rows, kept, height=0.45, color=BLUE, label="after pruning")
    for row, name, count in zip(rows, names, kept, strict=True):
        axes.annotate(
            f"{count} of {before[name]}",
            (before[name], row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(rows, without_common_prefix(names), fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel("Filters (count)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(f"Filters per layer: {sum(before.values()):,} before, {sum(kept):,} after")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, needing no display."""
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
