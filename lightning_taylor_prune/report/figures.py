"""How the pruning went, and what became of every layer: plain data in, a matplotlib Figure out.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_taylor_prune.report.canvas import (
    Axes,
    Figure,
    MaxNLocator,
    StrMethodFormatter,
    Style,
    rc_context,
    save_png,
    shorten,
    tidy,
)
from lightning_taylor_prune.report.results import Progress
from lightning_taylor_prune.report.scores import GroupLoss

__all__ = ["Style", "filters_figure", "progress_figure", "save_png", "scores_figure"]

MOST_BARS = 40
"""Layers up to which each gets bars and a name."""


def progress_figure(progress: Progress, style: Style | None = None) -> Figure:
    """Draw mini-batch loss, validation accuracy and prunable filters over iterations, prunes marked."""
    style = style or Style()
    with rc_context(style.rc):
        figure = style.figure(6.8 if style.narrow else 8.0)
        panels = figure.subplots(3, 1, sharex=True)
        for axes, draw in zip(panels, (_draw_losses, _draw_accuracies, _draw_filters), strict=True):
            draw(axes, progress, style)
            for iteration in progress.iterations[1:]:
                axes.axvline(iteration, color=style.palette.rule, linewidth=0.6, alpha=0.6, zorder=0)
        panels[-1].set_xlabel("Iteration (optimizer step)")
        panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=5 if style.narrow else 9, integer=True))
        panels[-1].margins(x=0.015)
        back = f", {len(progress.taken_back)} of them taken back" if progress.taken_back else ""
        figure.suptitle(f"Pruning progress: {len(progress.iterations) - 1} prunes, each at a grey line{back}")
    return figure


def running_mean(values: Sequence[float], window: int) -> npt.NDArray[np.float64]:
    """Return the mean of each value and up to ``window - 1`` before it, same length."""
    total = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=float)]))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - window, 0)
    means: npt.NDArray[np.float64] = (total[stop] - total[start]) / (stop - start)
    return means


def _draw_losses(axes: Axes, progress: Progress, style: Style) -> None:
    """Draw each mini-batch's loss, and a running mean that shows the trend."""
    x, losses = progress.loss_iterations, progress.losses
    axes.plot(x, losses, color=style.palette.before, linewidth=0.8, label="each mini-batch")
    axes.plot(x, running_mean(losses, 10), color=style.palette.after, linewidth=1.6, label="mean of the last 10")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, borderaxespad=0)
    axes.set_ylim(bottom=0)
    tidy(axes, style, "Mini-batch loss\n(cross entropy)")


def _draw_accuracies(axes: Axes, progress: Progress, style: Style) -> None:
    """Draw the validation accuracy before the first prune and after each."""
    percent = [100 * value for value in progress.accuracies]
    axes.plot(progress.iterations, percent, color=style.palette.accent, marker="o", markersize=4, linewidth=1.2)
    back = [(x, y) for x, y in zip(progress.iterations, percent, strict=True) if x in progress.taken_back]
    if back:
        axes.plot(*zip(*back, strict=True), "x", color=style.palette.accent, markersize=9, label="taken back")
        axes.legend(loc="lower left")
    tidy(axes, style, "Validation accuracy\nafter each prune (%)")


def _draw_filters(axes: Axes, progress: Progress, style: Style) -> None:
    """Draw how many filters can still be pruned; prunes that were taken back made no lasting difference."""
    counts = zip(progress.iterations, progress.num_prunable_filters, strict=True)
    lasting = [(x, y) for x, y in counts if x not in progress.taken_back]
    axes.step(*zip(*lasting, strict=True), where="post", color=style.palette.after, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    tidy(axes, style, "Prunable filters\n(count)")


def without_common_prefix(names: Sequence[str]) -> list[str]:
    """Drop the leading dotted part that all names share."""
    parts = [name.split(".") for name in names]
    while len({first for first, *_ in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [rest for _, *rest in parts]
    return [".".join(part) for part in parts]


def filters_figure(before: Mapping[str, int], after: Mapping[str, int], style: Style | None = None) -> Figure:
    """Draw the filters of each layer before and after pruning: pairs of bars, or areas where layers are many."""
    style = style or Style()
    with rc_context(style.rc):
        few = len(before) <= MOST_BARS
        figure = style.figure(1.3 + 0.27 * len(before) if few else (3.6 if style.narrow else 4.2))
        axes = figure.subplots()
        (_draw_bars if few else _draw_areas)(axes, before, after, style)
        figure.suptitle(f"Filters per layer: {sum(before.values()):,} before, {sum(after.values()):,} after")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw_bars(axes: Axes, before: Mapping[str, int], after: Mapping[str, int], style: Style) -> None:
    names = [shorten(name, 20 if style.narrow else 50) for name in without_common_prefix(list(before))]
    kept = [after[name] for name in before]
    rows = np.arange(len(names))
    axes.barh(rows, list(before.values()), height=0.8, color=style.palette.before, label="before pruning")
    axes.barh(rows, kept, height=0.45, color=style.palette.after, label="after pruning")
    for row, (count, total) in enumerate(zip(kept, before.values(), strict=True)):
        at: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{count} of {total}", (total, row), **at)
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.24 if style.narrow else 0.1)
    axes.set_xlabel("Filters (count)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.spines["left"].set_visible(False)
    tidy(axes, style)
    axes.tick_params(axis="y", length=0)


def _draw_areas(axes: Axes, before: Mapping[str, int], after: Mapping[str, int], style: Style) -> None:
    edges = np.arange(len(before) + 1) + 0.5
    kept = [after[name] for name in before]
    axes.stairs(list(before.values()), edges, fill=True, color=style.palette.before, label="before pruning")
    axes.stairs(kept, edges, fill=True, color=style.palette.after, label="after pruning")
    axes.margins(x=0.01)
    axes.set_xlabel(f"Layer, from the input (1) to the output ({len(before)})")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    tidy(axes, style, "Filters (count)")


def scores_figure(losses: Sequence[GroupLoss], style: Style | None = None) -> Figure:
    """Draw how much each group of filters lost, and how its scores ranked at the first and the last prune."""
    style = style or Style()
    with rc_context(style.rc):
        figure = style.figure(1.6 + 0.27 * len(losses))
        left, right = figure.subplots(1, 2, sharey=True)
        rows = np.arange(len(losses))
        left.barh(rows, [100 * loss.fraction for loss in losses], height=0.6, color=style.palette.after)
        _draw_ranks(right, losses, style)
        left.set_yticks(rows, _group_names(losses, 17 if style.narrow else 45), fontsize=8)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlim(0, 100)
        left.set_xlabel("Lost (%)" if style.narrow else "Units lost\n(% of the layer)")
        right.set_xlabel("Rank (%)" if style.narrow else "Rank of its median unit\n(% of all units that score lower)")
        for axes in (left, right):
            tidy(axes, style)
            axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=2)
        figure.suptitle("What each layer lost, and how its scores ranked")
    return figure


def _group_names(losses: Sequence[GroupLoss], letters: int) -> list[str]:
    """Return short names; ``+2`` says that two more layers are coupled to this one."""
    names = without_common_prefix([loss.name for loss in losses])
    coupled = [f" +{len(loss.layers) - 1}" if len(loss.layers) > 1 else "" for loss in losses]
    return [f"{shorten(name, letters - len(more))}{more}" for name, more in zip(names, coupled, strict=True)]


def _draw_ranks(axes: Axes, losses: Sequence[GroupLoss], style: Style) -> None:
    """Draw a hollow ring at the first prune and a disc at the last, joined."""
    rows = np.arange(len(losses))
    first, last = ([100 * (np.nan if x is None else x) for x in xs] for xs in _ranks(losses))
    axes.hlines(rows, first, last, color=style.palette.rule, linewidth=1.2, zorder=1)
    ring: dict[str, Any] = {"facecolor": style.palette.paper, "edgecolor": style.palette.accent, "linewidth": 1.5}
    axes.scatter(first, rows, s=34, zorder=2, label="at the first prune", **ring)
    axes.scatter(last, rows, s=34, zorder=3, color=style.palette.accent, label="at the last prune")
    axes.set_xlim(-4, 104)
    axes.grid(axis="y", color=style.palette.rule, alpha=0.25)
    axes.set_axisbelow(True)


def _ranks(losses: Sequence[GroupLoss]) -> tuple[list[float | None], list[float | None]]:
    return [loss.first_rank for loss in losses], [loss.last_rank for loss in losses]
