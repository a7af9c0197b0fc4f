"""Figures of single classes show the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_taylor_prune.report.canvas import LIGHT, Style, png_bytes
from lightning_taylor_prune.report.class_figures import accuracy_figure, confusion_figure, difference_figure
from lightning_taylor_prune.report.classes import ClassChange, Matrices

NAMES = ("cat", "dog")
BOTH = Matrices(NAMES, NAMES, np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.2, 0.8]]))
EMPTY = Matrices(NAMES, NAMES, np.array([[1.0, 0.0], [np.nan, np.nan]]), np.array([[1.0, 0.0], [np.nan, np.nan]]))
PHONE = Style(LIGHT, 3.75)


@pytest.mark.parametrize("style", [Style(), PHONE], ids=["wide", "phone"])
def test_both_matrices_are_on_one_scale(style: Style) -> None:
    before, after, _ = confusion_figure(BOTH, style).axes
    assert np.allclose(before.images[0].get_array(), 100 * BOTH.before)
    assert np.allclose(after.images[0].get_array(), 100 * BOTH.after)
    assert before.images[0].get_clim() == after.images[0].get_clim() == (0, 100)


def test_difference_is_centred_at_zero() -> None:
    axes, _ = difference_figure(BOTH).axes
    assert np.allclose(axes.images[0].get_array(), [[-30, 30], [0, 0]])
    assert axes.images[0].get_clim() == pytest.approx((-30, 30))


def test_cells_hold_rounded_numbers_and_zeros_stay_empty() -> None:
    axes, _ = difference_figure(BOTH).axes
    assert [text.get_text() for text in axes.texts] == ["\N{MINUS SIGN}30", "+30"]


@pytest.mark.parametrize("draw", [confusion_figure, difference_figure])
def test_class_without_examples_is_drawn_without_numbers(draw) -> None:  # type: ignore[no-untyped-def]
    figure = draw(EMPTY)
    png_bytes(figure)
    assert not any("nan" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_cells_too_small_for_numbers_hold_none() -> None:
    names = tuple(f"class {i}" for i in range(40))
    many = Matrices(names, names, np.eye(40), np.eye(40))
    assert not confusion_figure(many, PHONE).axes[0].texts


def test_accuracy_is_drawn_before_and_after() -> None:
    (axes,) = accuracy_figure([ClassChange("cat", 10, 0.9, 0.6), ClassChange("dog", 10, 0.5, 0.7)]).axes
    before, after = (dots.get_offsets().tolist() for dots in axes.collections[1:])
    assert np.allclose(before, [[90, 0], [50, 1]]) and np.allclose(after, [[60, 0], [70, 1]])


def test_accuracy_is_labelled_with_classes_and_changes() -> None:
    (axes,) = accuracy_figure([ClassChange("cat", 10, 0.9, 0.6), ClassChange("dog", 10, 0.5, 0.7)]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert [text.get_text() for text in axes.texts] == ["\N{MINUS SIGN}30.0", "+20.0"]
