"""Draw how sensitive each group is: small line charts of equal scale, one for each group.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lightning_taylor_prune.pruning.sensitivity import Sensitivities, Sensitivity
from lightning_taylor_prune.report.canvas import (
    Axes,
    Figure,
    MaxNLocator,
    Style,
    rc_context,
    save_png,
    shorten,
)
from lightning_taylor_prune.report.figures import without_common_prefix

__all__ = ["save_sensitivity", "sensitivity_figure"]

MOST_PANELS = 48
"""Groups that get a chart of their own; of more, those are drawn whose metric changes most."""

_PANEL_HEIGHT = 1.25  # inches


def save_sensitivity(
    found: Sensitivities, path: Path | str, metric: str = "Metric", style: Style | None = None
) -> Path:
    """Draw :func:`sensitivity_figure` as PNG; returns the path."""
    path = Path(path)
    save_png(sensitivity_figure(found, metric, style), path)
    return path


def sensitivity_figure(found: Sensitivities, metric: str = "Metric", style: Style | None = None) -> Figure:
    """Draw the metric of every group over the share of its units that is removed, before all others in grey.

    Args:
        found: What was measured.
        metric: What the metric is called.
        style: How the figure looks.
    """
    style = style or Style()
    curves = found.by_group()
    drawn = _drawn(curves, found.baseline)
    columns = min(len(drawn), 2 if style.narrow else 4)
    rows = math.ceil(len(drawn) / columns)
    with rc_context(style.rc):
        figure = style.figure(1.1 + _PANEL_HEIGHT * rows)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        names = dict(zip(drawn, without_common_prefix(drawn), strict=True))
        for axes, name in zip(panels.flat, drawn, strict=False):
            _draw(axes, curves, name, found.baseline, style)
            axes.set_title(shorten(names[name], 20 if style.narrow else 24), fontsize=8, loc="left", pad=3)
        for axes in panels.flat[len(drawn) :]:
            axes.set_visible(False)
        figure.supxlabel("Removed units of the group (%)", fontsize=style.rc["font.size"])
        figure.supylabel(metric, fontsize=style.rc["font.size"])
        figure.suptitle(_title(metric, len(drawn), len(curves)))
    return figure


def _title(metric: str, drawn: int, groups: int) -> str:
    some = "" if drawn == groups else f"; the {drawn} of {groups} groups that change it most"
    return f"{metric} when one group alone loses units\n(dashed: with all; grey: other groups{some})"


def _drawn(curves: dict[str, tuple[Sensitivity, ...]], baseline: float) -> list[str]:
    """Return the groups to draw, in the order of execution."""
    changes = {name: max(abs(_finite(p.value, baseline) - baseline) for p in points) for name, points in curves.items()}
    most = set(sorted(changes, key=lambda name: -changes[name])[:MOST_PANELS])
    return [name for name in curves if name in most]


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _draw(axes: Axes, curves: dict[str, tuple[Sensitivity, ...]], name: str, baseline: float, style: Style) -> None:
    palette = style.palette
    for other, points in curves.items():
        if other != name:
            axes.plot(*_line(points, baseline), color=palette.rule, linewidth=0.5, alpha=0.35, zorder=1)
    axes.axhline(baseline, color=palette.accent, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
    axes.plot(*_line(curves[name], baseline), color=palette.after, linewidth=1.8, marker="o", markersize=3, zorder=3)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.tick_params(colors=palette.ink, labelsize=7)


def _line(points: Sequence[Sensitivity], baseline: float) -> tuple[list[float], list[float]]:
    """Return the shares that were really removed, in per cent, and the metric; the whole network first."""
    ordered = sorted(points, key=lambda point: point.removed)
    shares = [100 * point.removed / point.units for point in ordered]
    return [0.0, *shares], [baseline, *(point.value for point in ordered)]
