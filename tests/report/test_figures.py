import dataclasses

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.text import Text

from lightning_taylor_prune.report.canvas import DARK, Style, png_bytes
from lightning_taylor_prune.report.figures import (
    filters_figure,
    progress_figure,
    running_mean,
    save_png,
    scores_figure,
    without_common_prefix,
)
from lightning_taylor_prune.report.results import Progress
from lightning_taylor_prune.report.scores import GroupLoss

PROGRESS = Progress(
    loss_iterations=range(1, 31),
    losses=[1 / i for i in range(1, 31)],
    iterations=[0, 10, 20, 30],
    accuracies=[0.99, 0.97, 0.98, 0.96],
    num_prunable_filters=[100, 92, 84, 76],
)
BEFORE = {"net.stem": 16, "net.block.conv1": 16, "net.block.conv2": 32}
AFTER = {"net.stem": 9, "net.block.conv1": 16, "net.block.conv2": 20}


def test_progress_has_three_panels_on_one_axis_of_iterations():
    loss, accuracy, filters = progress_figure(PROGRESS).axes
    assert list(loss.lines[0].get_ydata()) == PROGRESS.losses
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([99, 97, 98, 96])
    assert list(filters.lines[0].get_ydata()) == PROGRESS.num_prunable_filters
    assert loss.get_xlim() == accuracy.get_xlim() == filters.get_xlim()
    assert all(axes.get_ylabel() for axes in (loss, accuracy, filters))
    assert "Iteration" in filters.get_xlabel()


def test_every_prune_is_marked_in_every_panel():
    for axes in progress_figure(PROGRESS).axes:
        marks = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert marks == [10, 20, 30]


def test_filters_figure_has_two_bars_a_layer():
    (axes,) = filters_figure(BEFORE, AFTER).axes
    assert [bar.get_width() for bar in axes.patches] == [16, 16, 32, 9, 16, 20]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["stem", "block.conv1", "block.conv2"]
    assert [text.get_text() for text in axes.texts] == ["9 of 16", "16 of 16", "20 of 32"]


def test_many_layers_are_drawn_as_areas():
    layers = {f"conv{i}": 8 for i in range(41)}
    (axes,) = filters_figure(layers, dict.fromkeys(layers, 3)).axes
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[8] * 41, [3] * 41]


def test_scores_figure_sets_losses_beside_ranks():
    losses = [GroupLoss("net.b", ("net.b", "net.c"), 8, 2, 0.1, 0.6), GroupLoss("net.a", ("net.a",), 8, 8, None, None)]
    left, right = scores_figure(losses).axes
    assert [bar.get_width() for bar in left.patches] == [75, 0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["b +1", "a"]
    rings, discs = [dots.get_offsets() for dots in right.collections[1:]]
    assert rings.tolist()[0] == [10, 0] and discs.tolist()[0] == [60, 0] and np.isnan(rings.data[1, 0])


@pytest.mark.parametrize("width", [3.75, 8.0])
def test_dark_figures_are_dark_up_to_their_ticks(width):
    figure = progress_figure(PROGRESS, Style(DARK, width))
    png_bytes(figure)
    inks = {text.get_color() for text in figure.findobj(Text) if text.get_text()}
    assert inks == {DARK.ink} and figure.get_facecolor() == to_rgba(DARK.paper)


def test_figures_leave_the_settings_of_others_alone():
    before = dict(rcParams)
    progress_figure(PROGRESS, Style(DARK))
    assert dict(rcParams) == before


@pytest.mark.parametrize("figure", [progress_figure(PROGRESS), filters_figure(BEFORE, AFTER)])
def test_png_is_written_and_not_blank(figure, tmp_path):
    save_png(figure, tmp_path / "figure.png")
    pixels = imread(tmp_path / "figure.png")
    assert min(pixels.shape[:2]) > 150
    assert np.std(pixels[..., :3]) > 0.05


def test_running_mean_uses_what_there_is():
    assert running_mean([4, 2, 6, 4], window=2).tolist() == [4, 3, 4, 5]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.b.c", "a.b.d.e"], ["c", "d.e"]),
        (["a.weight", "ab.weight"], ["a.weight", "ab.weight"]),
        (["a.b"], ["b"]),
        (["a", "a.b"], ["a", "a.b"]),
        ([], []),
    ],
)
def test_shared_prefix_goes_by_whole_parts(names, short):
    assert without_common_prefix(names) == short


def test_a_prune_that_was_taken_back_is_marked_and_made_no_lasting_difference():
    _, accuracy, filters = progress_figure(dataclasses.replace(PROGRESS, taken_back=[30])).axes
    assert list(accuracy.lines[1].get_xdata()) == [30] and list(filters.lines[0].get_xdata()) == [0, 10, 20]
