"""What all criteria share: minibatches, frozen parameters, the registry; and which criterion predicts best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.criteria.criterion import CRITERIA, Criterion, register_criterion
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.criteria.measured import GRADIENT_CRITERIA, Averaged, Loss, backward, build, changes, per_group, score


@pytest.mark.parametrize(("name", "factor"), [("taylor", 1), ("taylor_examples", 2)])
def test_unit_that_no_weight_reads_is_judged_by_what_writes_it(name: str, factor: int) -> None:
    model, x = Averaged().double(), torch.randn(2, 3, 8, 8).double()
    groups = find_groups(model, x)
    actual = per_group(groups, score(CRITERIA[name](model, groups), model, (x,)))["b"]
    expected = (model.b.weight * model.b.weight.grad).sum((1, 2, 3)).square().detach()
    torch.testing.assert_close(actual, factor * expected)


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_scores_are_averaged_over_minibatches(name: str) -> None:
    model, example, groups = build("conv_bn")
    each = [score(CRITERIA[name](model, groups), model, example, [seed]) for seed in range(3)]
    together = score(CRITERIA[name](model, groups), model, example, range(3))
    torch.testing.assert_close(together, torch.stack(each).mean(0))


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_opposite_minibatches_do_not_cancel(name: str) -> None:
    model, example, groups = build("conv_bn")
    criterion = CRITERIA[name](model, groups)
    for sign in (1, -1):
        backward(model, example, factor=sign)
        criterion.update()
    torch.testing.assert_close(criterion.compute(), score(CRITERIA[name](model, groups), model, example))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_minibatch_without_finite_gradients_is_left_out_and_counted(name: str, poison: float) -> None:
    model, example, groups = build("conv_bn")
    criterion, clean = (CRITERIA[name](model, groups) for _ in range(2))
    for factor in (1.0, poison, 1.0):
        backward(model, example, factor=factor)
        criterion.update()
    torch.testing.assert_close(criterion.compute(), score(clean, model, example))
    assert (criterion.skipped, clean.skipped, criterion.ready) == (1, 0, True)


def test_not_ready_before_the_first_finite_minibatch() -> None:
    model, example, groups = build("conv_bn")
    criterion = CRITERIA["taylor"](model, groups)
    backward(model, example, factor=torch.nan)
    criterion.update()
    assert not criterion.ready and criterion.compute().isnan().all()


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_scale_undoes_loss_scaling(name: str) -> None:
    model, example, groups = build("residual")
    scaled, plain = (CRITERIA[name](model, groups) for _ in range(2))
    backward(model, example, factor=1024)
    scaled.update(1 / 1024)
    plain_scores = score(plain, model, example)
    torch.testing.assert_close(scaled.compute(), plain_scores, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_saved_scores_go_on_bit_for_bit(name: str) -> None:
    model, example, groups = build("residual")
    criterion, resumed = (CRITERIA[name](model, groups) for _ in range(2))
    score(criterion, model, example, [0, 1])
    state = criterion.state_dict()
    uninterrupted = score(criterion, model, example, [2, 3])
    resumed.load_state_dict(state)
    assert score(resumed, model, example, [2, 3]).equal(uninterrupted)


@pytest.mark.parametrize("name", GRADIENT_CRITERIA)
def test_freezing_a_reader_does_not_change_scores(name: str) -> None:
    model, example, groups = build("residual")
    trained = score(CRITERIA[name](model, groups), model, example)
    model.b.requires_grad_(False)
    frozen = per_group(groups, score(CRITERIA[name](model, groups), model, example))["a"]
    torch.testing.assert_close(frozen, per_group(groups, trained)["a"])


def test_frozen_weight_that_a_function_reads_leaves_its_units_without_score() -> None:
    model, example, groups = build("functional_conv")
    model.requires_grad_(False)
    assert score(CRITERIA["taylor"](model, groups), model, (example[0].requires_grad_(),)).isnan().all()


@pytest.mark.parametrize("name", CRITERIA)
def test_network_without_units_has_no_scores(name: str) -> None:
    model, x = nn.Linear(5, 3), torch.randn(2, 5)
    criterion = CRITERIA[name](model, find_groups(model, x))
    model(x).sum().backward()
    criterion.update()
    assert criterion.compute().shape == (0,)


def test_stale_gradient_of_a_frozen_parameter_does_not_count() -> None:
    model, example, groups = build("sequential")
    backward(model, example)
    model[4].requires_grad_(False)  # its gradient stays where it is
    criterion = CRITERIA["taylor"](model, groups)
    criterion.update()
    assert per_group(groups, criterion.compute())["2"].isnan().all()


def test_only_the_named_parameters_count() -> None:
    model, example, groups = build("sequential")
    criterion = CRITERIA["taylor"](model, groups)
    for seed, layer in ((0, 2), (1, 4), (2, 4)):
        backward(model, example, seed)
        criterion.update(parameters={id(model[layer].weight)})
    first = score(CRITERIA["taylor"](model, groups), model, example, [0])
    others = score(CRITERIA["taylor"](model, groups), model, example, [1, 2])
    torch.testing.assert_close(criterion.compute(), torch.cat([first[:10], others[10:]]))


def test_minibatch_of_other_parameters_is_none() -> None:
    model, example, groups = build("sequential")
    criterion = CRITERIA["taylor"](model, groups)
    backward(model, example)
    criterion.update(parameters=set())
    assert (criterion.steps, criterion.skipped, criterion.ready) == (0, 0, False)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(CRITERIA)
    yield
    CRITERIA.clear()
    CRITERIA.update(before)


def test_own_criterion_can_be_registered(registry: None) -> None:
    @register_criterion("ones")
    class Ones(Criterion):
        def minibatch(self, scale: float | Tensor) -> Tensor:
            return torch.ones(self.num_units)

    model, example, groups = build("sequential")
    assert score(CRITERIA["ones"](model, groups), model, example).eq(1).all()


def test_taken_name_is_refused(registry: None) -> None:
    with pytest.raises(ValueError, match="`taylor` already: Taylor"):
        register_criterion("taylor")(type("Other", (Criterion,), {}))


def digits_network() -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((1, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Train until the learning rate is zero, so that running statistics have settled."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * len(x) // 50)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, ChannelGroups, list[tuple[Tensor, Tensor]], Tensor]:
    """A trained network, its groups, minibatches, and the true change of the loss for every unit."""
    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(raw.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, order = digits_network(), torch.randperm(len(x))
        x, y = x[order], y[order]
        train(model, x[:1500], y[:1500], epochs=6)
    groups = find_groups(model, x[:2])
    held_out: Loss = lambda net: F.cross_entropy(net(x[:1000]), y[:1000])  # noqa: E731
    true = changes(model.eval(), groups, held_out)
    batches = list(zip(x[:1500].split(32), y[:1500].split(32), strict=True))
    return model.train(), groups, batches, true


def rank_correlation(name: str, digits: Any) -> float:
    """Return Spearman's correlation over all units between the scores and the true change of the loss."""
    model, groups, batches, true = digits
    criterion = CRITERIA[name](model, groups)
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        criterion.update()
    criterion.close()
    return float(spearmanr(np.asarray(criterion.compute()), np.asarray(true)).statistic)


@pytest.mark.parametrize(
    ("better", "worse", "margin"),
    [
        ("taylor", "magnitude", 0.1),
        ("taylor", "random", 0.4),
        ("taylor_examples", "magnitude", 0.25),
        ("taylor_examples", "taylor", 0.05),
        ("taylor_activation", "magnitude", 0.2),
    ],
)
def test_rank_correlation_with_the_change_of_the_loss(better: str, worse: str, margin: float, digits: Any) -> None:
    assert rank_correlation(better, digits) > rank_correlation(worse, digits) + margin
