"""What `stop_if` says, and when a validation has held it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.accuracy_stop import Standing, metric_limits

WRONG: dict[str, tuple[Any, str]] = {
    "no dict": ("val_acc", "to be a dict from a validation metric"),
    "empty": ({}, "to be a dict from a validation metric"),
    "a number": ({"val_acc": 0.02}, "{'drop': 0.02}"),
    "unknown key": ({"val_acc": {"fall": 0.02}}, "keys among drop, class_drop, below, above, mode, patience"),
    "no limit": ({"val_acc": {"patience": 2}}, "to say one of drop"),
    "no limit but null": ({"val_acc": {"drop": None}}, "to say one of drop"),
    "drop of zero": ({"val_acc": {"drop": 0}}, "above 0, but got 0"),
    "negative drop": ({"val_acc": {"drop": -0.1}}, "above 0, but got -0.1"),
    "NaN": ({"val_acc": {"drop": math.nan}}, "above 0, but got nan"),
    "a bool": ({"val_acc": {"drop": True}}, "above 0, but got True"),
    "text": ({"val_acc": {"drop": "2 %"}}, "above 0, but got '2 %'"),
    "drop above 1": ({"val_acc": {"drop": 2}}, "at most 1"),
    "class drop above 1": ({"val_recall_*": {"class_drop": 2}}, "at most 1"),
    "class drop of one metric": ({"val_acc": {"class_drop": 0.1}}, "a pattern such as 'val_acc_*'"),
    "both drops": ({"val_acc_*": {"class_drop": 0.1, "drop": 0.1}}, "`drop` or `class_drop`"),
    "bound is text": ({"val_acc": {"below": "high"}}, "a finite number, but got 'high'"),
    "both bounds": ({"val_acc": {"below": 0.8, "above": 0.9}}, "`below` (larger is better) or `above`"),
    "wrong mode": ({"val_acc": {"drop": 0.1, "mode": "up"}}, "'max' or 'min', but got 'up'"),
    "mode against the bound": ({"val_loss": {"below": 0.5, "mode": "min"}}, "to have mode 'max'"),
    "a loss without mode": ({"val_loss": {"drop": 0.1}}, "to say mode 'min'"),
    "no patience": ({"val_acc": {"drop": 0.1, "patience": 0}}, "at least 1, but got 0"),
    "half a validation": ({"val_acc": {"drop": 0.1, "patience": 1.5}}, "at least 1, but got 1.5"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused_in_one_line(wrong: str) -> None:
    stop_if, words = WRONG[wrong]
    with pytest.raises(ArgumentError) as caught:
        metric_limits(stop_if)
    assert words in str(caught.value) and "\n" not in str(caught.value)


BEFORE = {"acc": 0.9, "loss": 0.3, "acc_cat": 0.8, "acc_dog": 0.7}

HELD: dict[str, tuple[Any, dict[str, float], bool]] = {
    "exactly the drop": ({"acc": {"drop": 0.02}}, {"acc": 0.88}, True),
    "more than the drop": ({"acc": {"drop": 0.02}}, {"acc": 0.879}, False),
    "NaN": ({"acc": {"drop": 0.02}}, {"acc": math.nan}, False),
    "infinite loss": ({"loss": {"drop": 0.1, "mode": "min"}}, {"loss": math.inf}, False),
    "a loss within its drop": ({"loss": {"drop": 0.1, "mode": "min"}}, {"loss": 0.39}, True),
    "a loss beyond its drop": ({"loss": {"drop": 0.1, "mode": "min"}}, {"loss": 0.41}, False),
    "a loss that fell": ({"loss": {"drop": 0.1, "mode": "min"}}, {"loss": 0.01}, True),
    "at the bound": ({"acc": {"below": 0.85}}, {"acc": 0.85}, True),
    "below": ({"acc": {"below": 0.85}}, {"acc": 0.84}, False),
    "above": ({"loss": {"above": 0.5}}, {"loss": 0.6}, False),
    "one of two": ({"acc": {"drop": 0.1}, "loss": {"above": 0.5}}, {"acc": 0.9, "loss": 0.6}, False),
    "drop and bound": ({"acc": {"drop": 0.1, "below": 0.89}}, {"acc": 0.88}, False),
    "worst class": ({"acc_*": {"class_drop": 0.1}}, {"acc": 0.9, "acc_cat": 0.8, "acc_dog": 0.5}, False),
    "every class": ({"acc_*": {"class_drop": 0.1}}, {"acc": 0.1, "acc_cat": 0.75, "acc_dog": 0.65}, True),
    "metric missing": ({"acc": {"drop": 0.1}}, {"loss": 0.1}, False),
}


@pytest.mark.parametrize("case", HELD)
def test_a_validation_holds_or_misses_the_limits(case: str) -> None:
    stop_if, values, held = HELD[case]
    limits = metric_limits(stop_if)
    unpruned = Standing().after(limits, BEFORE, pruned=False)
    assert unpruned.held and unpruned.after_prune().after(limits, values, pruned=True).held is held


def test_the_class_that_lost_most_is_named() -> None:
    limits = metric_limits({"acc_*": {"class_drop": 0.1}})
    standing = Standing().after(limits, BEFORE, pruned=False).after(limits, {"acc_cat": 0.6, "acc_dog": 0.3}, True)
    assert standing.breach == "acc_dog is 0.3, and must not be more than 0.1 worse than the unpruned network's 0.7"


@pytest.mark.parametrize(
    ("values", "is_over"),
    [((0.5, 0.5), False), ((0.5, 0.9, 0.5, 0.5), False), ((0.5, 0.5, 0.5), True), ((0.5, None, 0.5, 0.5), True)],
    ids=["two of three", "recovered between", "three in a row", "one did not tell"],
)
def test_patience_counts_validations_in_a_row(values: tuple[float | None, ...], is_over: bool) -> None:
    limits = metric_limits({"acc": {"drop": 0.02, "patience": 3}})
    standing = Standing().after(limits, BEFORE, pruned=False).after_prune()
    for value in values:
        standing = standing.after(limits, {} if value is None else {"acc": value}, pruned=True)
    assert standing.is_over(limits) is is_over


def test_the_unpruned_network_is_the_one_of_the_last_validation_before_the_first_prune() -> None:
    limits = metric_limits({"acc": {"drop": 0.02}})
    standing = Standing()
    for value in (0.5, 0.9, 0.8):
        standing = standing.after(limits, {"acc": value}, pruned=False)
    assert standing.before == {"acc": 0.8}


def test_an_unpruned_network_below_the_bound_does_not_hold_it_yet() -> None:
    limits = metric_limits({"acc": {"below": 0.85}})
    assert not Standing().after(limits, {"acc": 0.5}, pruned=False).held
