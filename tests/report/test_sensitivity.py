"""Small charts, one for each group."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from lightning_taylor_prune import Sensitivities
from lightning_taylor_prune.pruning.sensitivity import Sensitivity
from lightning_taylor_prune.report.canvas import DARK, Figure, Style
from lightning_taylor_prune.report.sensitivity import MOST_PANELS, save_sensitivity, sensitivity_figure


def found(groups: int = 3, value: float = 0.5) -> Sensitivities:
    """Return results of groups of which each loses more than the one before."""
    points = [
        Sensitivity(f"features.{g}", ratio, round(10 * ratio), 10, value - ratio * g / groups)
        for g in range(groups)
        for ratio in (0.3, 0.7)
    ]
    return Sensitivities(value, (0.3, 0.7), tuple(points))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if axes.get_visible()]


def test_every_group_has_a_chart() -> None:
    assert titles(sensitivity_figure(found())) == ["0", "1", "2"]


def test_line_begins_with_all_units() -> None:
    line = sensitivity_figure(found()).axes[2].lines[-1]
    assert np.asarray(line.get_xydata())[:2].ravel().tolist() == pytest.approx([0, 0.5, 30, 0.3])


def test_of_many_groups_those_are_drawn_that_change_most() -> None:
    shown = titles(sensitivity_figure(found(MOST_PANELS + 10)))
    assert shown == [str(g) for g in range(10, MOST_PANELS + 10)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_left_out(value: float, tmp_path: Path) -> None:
    point = Sensitivity("conv", 0.5, 5, 10, value)
    save_sensitivity(Sensitivities(0.5, (0.5,), (point,)), tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 0


@pytest.mark.parametrize("style", [Style(), Style(DARK, 3.75)], ids=["wide", "narrow and dark"])
def test_picture_is_drawn(style: Style, tmp_path: Path) -> None:
    assert imread(save_sensitivity(found(), tmp_path / "s.png", style=style))[..., :3].std() > 0.03
