"""Figures of single classes: accuracy before and after, confusion matrices and their difference.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_taylor_prune.report import words
from lightning_taylor_prune.report.canvas import (
    Axes,
    Colormap,
    Figure,
    LinearSegmentedColormap,
    MaxNLocator,
    Normalize,
    PowerNorm,
    Style,
    rc_context,
    shorten,
    tidy,
)
from lightning_taylor_prune.report.classes import ClassChange, Floats, Matrices

SMALLEST_CELL = 0.23
"""Inches that a cell needs to hold its number."""


def accuracy_figure(changes: Sequence[ClassChange], style: Style | None = None) -> Figure:
    """Draw the accuracy of each class before and after, in the order given."""
    style = style or Style()
    with rc_context(style.rc):
        figure = style.figure(1.4 + 0.29 * len(changes))
        axes = figure.subplots()
        rows = np.arange(len(changes))
        before, after = [100 * c.before for c in changes], [100 * c.after for c in changes]
        axes.hlines(rows, before, after, color=style.palette.rule, linewidth=2, zorder=1)
        ring: dict[str, Any] = {"facecolor": style.palette.paper, "edgecolor": style.palette.after, "linewidth": 1.6}
        axes.scatter(before, rows, s=44, zorder=3, label="before pruning", **ring)
        axes.scatter(after, rows, s=44, zorder=2, color=style.palette.accent, marker="D", label="after pruning")
        _write_changes(axes, changes)
        axes.set_yticks(rows, [shorten(c.name, 18 if style.narrow else 36) for c in changes])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("Test examples of the class recognised (%)")
        axes.grid(axis="x", color=style.palette.rule, alpha=0.25)
        tidy(axes, style)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=2)
        figure.suptitle("Accuracy per class, worst drop on top")
    return figure


def _write_changes(axes: Axes, changes: Sequence[ClassChange]) -> None:
    """Write each change, in percentage points, at the right edge."""
    for row, change in enumerate(changes):
        axes.annotate(
            words.signed(change.points),
            (1.01, row),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def confusion_figure(matrices: Matrices, style: Style | None = None) -> Figure:
    """Draw the confusion matrices of both networks on one scale, side by side (one below the other if narrow)."""
    style = style or Style()
    norm = PowerNorm(0.5, 0, 100)  # a mistake of 2 % is seen beside 90 % on the diagonal
    shades = LinearSegmentedColormap.from_list("shades", [style.palette.paper, style.palette.after])
    with rc_context(style.rc):
        figure = style.figure(2 * style.width + 0.6 if style.narrow else style.width / 2 + 1.1, square=True)
        panels = figure.subplots(*((2, 1) if style.narrow else (1, 2)), sharey=not style.narrow)
        for axes, matrix, which in zip(panels, (matrices.before, matrices.after), ("Before", "After"), strict=True):
            image = _draw_matrix(axes, 100 * matrix, matrices, style, norm, shades)
            axes.set_title(f"{which} pruning")
        panels[0].set_ylabel("True class")
        _add_scale(figure, image, panels, style, "Share of the true class's examples (%)", [0, 1, 5, 20, 50, 100])
    return figure


def difference_figure(matrices: Matrices, style: Style | None = None) -> Figure:
    """Draw by how many percentage points the confusion matrices differ: after minus before, 0 in the middle."""
    style = style or Style()
    points = 100 * (matrices.after - matrices.before)
    limit = float(np.nanmax(np.abs(points), initial=0.0)) or 1.0
    palette = style.palette
    colours = [palette.after, palette.paper, palette.accent]
    with rc_context(style.rc):
        width = min(style.width, 5.6)
        figure = Style(palette, width, style.dpi).figure(width + 0.9, square=True)
        axes = figure.subplots()
        shades = LinearSegmentedColormap.from_list("difference", colours)
        image = _draw_matrix(axes, points, matrices, style, Normalize(-limit, limit), shades, signed=True)
        axes.set_title("After minus before")
        axes.set_ylabel("True class")
        _add_scale(figure, image, [axes], style, "Change (percentage points)")
    return figure


def _draw_matrix(
    axes: Axes,
    values: Floats,
    matrices: Matrices,
    style: Style,
    norm: Normalize,
    shades: Colormap,
    signed: bool = False,
) -> Any:
    """Draw one matrix with its classes; with numbers where they fit."""
    image = axes.imshow(
        values, cmap=shades.with_extremes(bad=style.palette.rule), norm=norm, aspect="equal", interpolation="nearest"
    )
    letters = 10 if style.narrow or len(matrices.columns) > 12 else 14
    size = 8.5 if len(matrices.columns) < (4 if style.narrow else 13) else 6.5
    names: dict[str, Any] = {"fontsize": size}
    upright = 0 if len(matrices.columns) < 4 else 90
    axes.set_xticks(range(values.shape[1]), [shorten(n, letters) for n in matrices.columns], rotation=upright, **names)
    axes.set_yticks(range(values.shape[0]), [shorten(n, letters) for n in matrices.rows], **names)
    axes.set_xlabel("Predicted class")
    axes.spines[:].set_visible(False)
    tidy(axes, style)
    axes.tick_params(length=0)
    room = (style.width - 1.2 if style.narrow else style.width / 2 - 0.6) / values.shape[1]
    if room >= SMALLEST_CELL:
        _write_numbers(axes, values, norm, style, signed, size=min(6.5 * room / SMALLEST_CELL, 11.0))
    return image


def _write_numbers(axes: Axes, values: Floats, norm: Normalize, style: Style, signed: bool, size: float) -> None:
    """Write rounded numbers into the cells, in ink or paper, whichever is read better; none where it rounds to 0."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value) or round(abs(value)) == 0:
            continue
        depth = float(norm(value))
        strong = abs(2 * depth - 1) > 0.62 if signed else depth > 0.62
        text = words.signed(value, 0) if signed else words.number(value)
        colour = style.palette.paper if strong else style.palette.ink
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _add_scale(
    figure: Figure, image: Any, panels: Any, style: Style, label: str, ticks: Sequence[float] | None = None
) -> None:
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.8, aspect=36, pad=0.02, ticks=ticks)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=style.palette.ink)
