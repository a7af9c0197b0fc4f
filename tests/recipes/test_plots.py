import numpy as np
import pytest
from matplotlib.image import imread

from recipes.plots import (
    Progress,
    filters_figure,
    progress_figure,
    running_mean,
    save_png,
    without_common_prefix,
)

PROGRESS = Progress(
    loss_iterations=range(1, 31),
    losses=[1 / i for i in range(1, 31)],
    iterations=[0, 10, 20, 30],
    accuracies=[0.99, 0.97, 0.98, 0.96],
    prunable_filters=[100, 92, 84, 76],
)
BEFORE = {"net.stem": 16, "net.block.conv1": 16, "net.block.conv2": 32}
AFTER = {"net.stem": 9, "net.block.conv1": 16, "net.block.conv2": 20}


def test_progress_has_three_panels_on_one_axis_of_iterations():
    loss, accuracy, filters = progress_figure(PROGRESS).axes
    assert list(loss.lines[0].get_ydata()) == PROGRESS.losses
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([99, 97, 98, 96])
    assert list(filters.lines[0].get_ydata()) == PROGRESS.prunable_filters
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
