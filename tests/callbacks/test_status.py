import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from lightning_taylor_prune import TaylorPruningCallback, find_groups, prune_, select
from lightning_taylor_prune.callbacks.status import (
    Pace,
    Sizes,
    clock,
    headline,
    last_step,
    progress_of,
    pruning_status,
    sizes_of,
)
from tests.lightning_modules import Adversarial, Classifier, loader, small_network, trainer

METRICS = {"val_loss": 0.5, "val_acc": 0.75, "val_acc_top5": 0.9}


@pytest.mark.parametrize(
    ("metrics", "monitor", "shown"),
    [
        (METRICS, None, ("val_acc", 0.75)),
        (METRICS, "val_acc_top5", ("val_acc_top5", 0.9)),
        (METRICS, "f1", None),
        ({"val_loss": 0.5}, None, ("val_loss", 0.5)),
        ({}, None, None),
    ],
    ids=["accuracy-first", "asked-for", "asked-for-but-absent", "no-accuracy", "nothing"],
)
def test_headline(metrics, monitor, shown):
    assert headline(metrics, monitor) == shown


def test_progress_takes_no_loss_for_an_accuracy():
    rows = [
        {"step": 0, "metrics": {}, "num_prunable_filters": 24},
        {"step": 5, "metrics": {"val_loss": 0.5}, "num_prunable_filters": 20},
        {"step": 10, "metrics": METRICS, "num_prunable_filters": 16},
    ]
    progress = progress_of(rows, [1, 2], [0.9, 0.8])
    assert list(progress.accuracies) == pytest.approx([math.nan, math.nan, 0.75], nan_ok=True)
    assert (list(progress.iterations), list(progress.num_prunable_filters)) == ([0, 5, 10], [24, 20, 16])
    assert (list(progress.loss_iterations), list(progress.losses)) == ([1, 2], [0.9, 0.8])


def pruned(done, **settings):
    """A callback after some prunes."""
    callback = TaylorPruningCallback(**{"every_n_steps": 10, "max_prunes": 5, **settings})
    rows = [{"metrics": {"val_acc": i / 10}} for i in range(done)]
    callback.load_state_dict({"history": rows, "intervals": 0, "stop_reason": None})
    return callback


@pytest.mark.parametrize(
    ("callback", "step", "last", "expected"),
    [
        (pruned(0), 0, None, (0, 5, 50)),
        (pruned(2), 23, None, (2, 5, 27)),
        (pruned(2), 23, 45, (2, 4, 17)),
        (pruned(0, start_step=100), 20, None, (0, 5, 130)),
        (pruned(3, max_prunes=None), 30, 100, (3, 10, 70)),
        (pruned(3, max_prunes=None), 30, None, (3, None, None)),
        (pruned(1), 30, None, (1, 5, 40)),
        (pruned(5), 57, None, (5, 5, 0)),
    ],
    ids=["start", "between", "ends-early", "starts-late", "no-limit", "endless", "one-passed-over", "done"],
)
def test_prunes_and_steps_foreseen(callback, step, last, expected):
    now = pruning_status(callback, Sizes(), step, last)
    assert (now.done, now.total, now.steps_left) == expected


def test_prune_whose_share_was_smaller_than_a_unit_counts_as_done():
    callback = pruned(2, stop_at={"params": 0.5})
    callback.load_state_dict({**callback.state_dict(), "attempts": 3})
    now = pruning_status(callback, Sizes(), 30, None)
    assert (now.done, now.total, now.steps_left) == (2, 4, 20)


def test_pruning_that_stopped_has_no_steps_to_go():
    callback = pruned(2)
    callback.stop_reason = "the target would be overshot"
    now = pruning_status(callback, Sizes(), 23, None)
    assert (now.total, now.steps_left) == (2, 0)


def test_metric_is_that_of_the_last_validated_prune():
    callback = pruned(3)
    callback.history.append({"metrics": {}})
    assert pruning_status(callback, Sizes(), 40, None).metric == ("val_acc", 0.2)


def test_sizes_before_and_after_a_prune():
    network, images = small_network(), torch.randn(2, 1, 8, 8)
    params_before = sum(p.numel() for p in network.parameters())
    groups = find_groups(network, images)
    groups = prune_(network, select(groups, torch.rand(groups.num_units), pruning_ratio=0.25))
    filters = sum(m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)) + 4
    assert sizes_of(groups) == Sizes(filters, 28, sum(p.numel() for p in network.parameters()), params_before)


def test_words_for_what_is_kept():
    now = pruning_status(pruned(3), Sizes(750, 1000, 121_300, 271_700), 30, None)
    assert str(now) == "val_acc 0.2, 750 of 1,000 filters (75%), 121,300 of 271,700 params (45%)"


def test_words_while_nothing_is_known():
    assert str(pruning_status(pruned(0), Sizes(), 0, None)) == ""


@pytest.mark.parametrize(
    ("module", "settings", "expected"),
    [
        (Classifier, {"max_epochs": 3}, 24),
        (Classifier, {"max_epochs": 3, "accumulate_grad_batches": 3}, 9),
        (Classifier, {"max_epochs": -1, "max_steps": 5}, 5),
        (Classifier, {"max_epochs": 3, "max_steps": 5}, 5),
        (Adversarial, {"max_epochs": 1}, None),
    ],
    ids=["epochs", "accumulated", "steps", "whichever-first", "manual"],
)
def test_last_step_of_a_fit(module, settings, expected):
    found = []
    ask = LambdaCallback(on_train_start=lambda trainer, pl_module: found.append(last_step(trainer)))
    trainer(ask, **settings).fit(module(), loader())
    assert found == [expected]


def test_endless_fit_has_no_last_step():
    endless = SimpleNamespace(
        lightning_module=SimpleNamespace(automatic_optimization=True), estimated_stepping_batches=math.inf
    )
    assert last_step(endless) is None


def test_pace_forgets_what_was_long_ago():
    pace = Pace(intervals=2)
    for step, now in ((0, 0.0), (10, 100.0), (20, 110.0)):  # the first ten steps took ten times as long
        pace.mark(step, now)
    assert pace.seconds(steps_left=30, step=30, now=120.0) == 30.0


@pytest.mark.parametrize(
    ("steps_left", "step", "expected"),
    [(None, 10, None), (30, 0, None), (0, 0, 0.0)],
    ids=["unforeseeable", "nothing-measured", "nothing-left"],
)
def test_pace_says_what_it_does_not_know(steps_left, step, expected):
    pace = Pace()
    pace.mark(0, 0.0)
    assert pace.seconds(steps_left, step, now=5.0) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--:--"), (0.9, "0:00:00"), (90000, "1 day, 1:00:00")], ids=["unknown", "0", "days"]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
