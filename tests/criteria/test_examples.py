"""Criteria that tell examples apart, against what hooks on activations measure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.pruning.prune import prune_
from tests.criteria.measured import (
    READERS,
    Averaged,
    backward,
    build,
    measured,
    per_group,
    relative,
    score,
    watch_inputs,
)


def test_unit_that_no_weight_reads_is_not_scored_by_activation() -> None:
    model, x = Averaged().double(), torch.randn(2, 3, 8, 8).double()
    groups = find_groups(model, x)
    scores = per_group(groups, score(CRITERIA["taylor_activation"](model, groups), model, (x,)))
    assert scores["a"].isfinite().all() and scores["b"].isnan().all()


@pytest.mark.parametrize("name", READERS)
def test_example_score_is_the_mean_square_over_examples(name: str) -> None:
    model, example, groups = build(name)
    criterion = CRITERIA["taylor_examples"](model, groups)
    seen = watch_inputs(model, sorted({layer for group in READERS[name].values() for layer, _, _ in group}))
    actual = score(criterion, model, example)
    each = measured(groups, READERS[name], seen)
    assert relative(actual, (each * len(each)).square().mean(0)) < 1e-10


@pytest.mark.parametrize("name", READERS)
def test_activation_score_is_the_mean_absolute_value_over_examples(name: str) -> None:
    model, example, groups = build(name)
    criterion = CRITERIA["taylor_activation"](model, groups)
    seen = watch_inputs(model, sorted({layer for group in READERS[name].values() for layer, _, _ in group}))
    actual = score(criterion, model, example)
    each = measured(groups, READERS[name], seen)
    assert relative(actual, (each * len(each)).abs().mean(0)) < 1e-10


EXAMPLE_CRITERIA = ["taylor_examples", "taylor_activation"]


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


@pytest.mark.parametrize("name", EXAMPLE_CRITERIA)
def test_micro_batches_add_up_to_one_batch(name: str) -> None:
    model, _, groups = build("sequential")
    x = torch.randn(6, 3, 8, 8).double()
    square(model, x).backward()
    criterion = CRITERIA[name](model, groups)
    square(model, x).backward()
    criterion.update()
    whole = criterion.compute()
    criterion = CRITERIA[name](model, groups)
    for part in x.split(2):
        (square(model, part) / 3).backward()
    criterion.update()
    torch.testing.assert_close(criterion.compute(), whole)


@pytest.mark.parametrize(("count", "step"), [(64, 1), (127, 1), (128, 2), (200, 3)])
def test_of_a_large_minibatch_some_examples_stand_for_all(count: int, step: int) -> None:
    model, _, groups = build("sequential")
    criterion = CRITERIA["taylor_examples"](model, groups)
    seen = watch_inputs(model, ["2", "4"])
    square(model, torch.randn(count, 3, 4, 4).double()).backward()
    criterion.update()
    each = count * measured(groups, READERS["sequential"], seen)
    torch.testing.assert_close(criterion.compute(), each[::step].square().mean(0))


def test_units_that_a_function_reads_are_summed_over_the_minibatch() -> None:
    model, example, groups = build("functional_conv")
    scores = [score(CRITERIA[n](model, groups), model, example) for n in ("taylor_examples", "taylor")]
    assert scores[0].equal(scores[1])


def test_only_some_layers_can_be_watched() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(self.b(F.relu(self.a(x)))), self.c.weight)

    model, x = Mixed().double(), torch.randn(3, 3, 8, 8).double()
    groups = find_groups(model, x)
    watched, whole = (CRITERIA[n](model, groups) for n in ("taylor_examples", "taylor"))
    seen = watch_inputs(model, ["b"])
    square(model, x).backward()
    for criterion in (watched, whole):
        criterion.update()
    each = measured_sum(seen["b"][0])
    torch.testing.assert_close(watched.compute()[:4], 3 * each.square().sum(0))
    torch.testing.assert_close(watched.compute()[4:], 3 * whole.compute()[4:])


def measured_sum(x: Tensor) -> Tensor:
    assert x.grad is not None
    return (x * x.grad).sum((2, 3)).detach()


@pytest.mark.parametrize("name", EXAMPLE_CRITERIA)
def test_discarded_backward_passes_do_not_count(name: str) -> None:
    model, example, groups = build("conv_bn")
    criterion = CRITERIA[name](model, groups)
    backward(model, example, seed=5)
    criterion.discard()
    scores = score(criterion, model, example)
    criterion.close()
    torch.testing.assert_close(scores, score(CRITERIA[name](model, groups), model, example))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("name", EXAMPLE_CRITERIA)
def test_close_removes_the_hooks_also_after_an_exception(name: str) -> None:
    model, _, groups = build("sequential")
    criterion = CRITERIA[name](model, groups)
    assert hooks_of(model) == 2
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.zeros(1, 4, 8, 8).double())
    criterion.close()
    criterion.close()
    assert hooks_of(model) == 0


@pytest.mark.parametrize("name", EXAMPLE_CRITERIA)
def test_evaluation_leaves_no_trace_in_the_scores(name: str) -> None:
    model, example, groups = build("conv_bn")
    criterion = CRITERIA[name](model, groups)
    backward(model, example)
    with torch.no_grad():
        model.eval()(torch.randn(7, 3, 8, 8).double())
    model.train()
    criterion.update()
    criterion.close()
    torch.testing.assert_close(criterion.compute(), score(CRITERIA[name](model, groups), model, example))


def test_hooks_do_not_disturb_a_cut() -> None:
    model, _, groups = build("residual")
    criterion = CRITERIA["taylor_activation"](model, groups)
    after = prune_(model, groups.plan({"stem": [0, 3], "a": [1]}))
    criterion.close()
    assert after is not None and model.a.weight.shape[:2] == (9, 10)


def test_units_that_a_function_reads_are_not_scored_by_activation() -> None:
    model, example, groups = build("functional_conv")
    assert score(CRITERIA["taylor_activation"](model, groups), model, example).isnan().all()
