"""Scores against brute force: the true change of the loss, gates, and what hooks on activations measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.criteria.criterion import CRITERIA, Criterion, register_criterion
from lightning_taylor_prune.criteria.normalize import normalize_scores, unit_macs, warn_unscored
from lightning_taylor_prune.criteria.terms import parameter_slices, signed_sums
from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.prune import prune_
from tests.networks import NETWORKS
from tests.oracles import prepared, randomize_norms_, zero_

Loss = Callable[[nn.Module], Tensor]


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any, ChannelGroups]:
    network = NETWORKS[name]
    return prepared(network.build(), network.example(), dtype)


def loss_of(model: nn.Module, example: Any, seed: int = 0) -> Tensor:
    """A loss that weighs outputs at random and is not linear in them."""
    output = model(*example)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    return (output * weights).mean() + (output.square() * weights.abs()).mean()


def backward(model: nn.Module, example: Any, seed: int = 0, factor: float = 1.0) -> None:
    model.zero_grad()
    (factor * loss_of(model, example, seed)).backward()


def score(criterion: Criterion, model: nn.Module, example: Any, seeds: Sequence[int] = (0,)) -> Tensor:
    """Return the criterion's scores over some minibatches."""
    criterion.discard()
    for seed in seeds:
        backward(model, example, seed)
        criterion.update()
    return criterion.compute()


def per_group(groups: ChannelGroups, scores: Tensor) -> dict[str, Tensor]:
    return dict(zip([g.name for g in groups], scores.split([g.num_channels for g in groups]), strict=True))


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


# --- the true change of the loss ------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Two writers, a normalisation and three readers; the output is linear in the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head, self.map, self.flat = nn.Linear(8, 5), nn.Conv2d(8, 5, 4), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.a(x) + self.norm(self.b(x)))
        pooled = F.max_pool2d(stream, 2)[..., :2, :2]
        return self.head(stream.mean((2, 3))) + self.map(stream).sum((2, 3)) - self.flat(pooled.flatten(1))


class Concatenated(nn.Module):
    """Concatenation with the normalisation after it; the output is linear in every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(10),
            nn.Linear(10, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3)))


@pytest.mark.parametrize("network", [TwoHeads, Concatenated])
def test_signed_sum_is_the_true_change_of_a_linear_loss(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomize_norms_(network()).double().eval()
    x, weights = torch.randn(4, 3, 6, 6).double(), torch.randn(4, 5).double()
    groups = find_groups(model, x)
    loss: Loss = lambda net: (net(x) * weights).sum()  # noqa: E731
    loss(model).backward()
    predicted = -signed_sums(parameter_slices(model, groups, "reader"), groups.num_units)
    torch.testing.assert_close(predicted, changes(model, groups, loss), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def changes(model: nn.Module, groups: ChannelGroups, loss: Loss) -> Tensor:
    """Return by how much the loss rises for every unit that alone is set to zero."""
    before, found = loss(model), []
    for group in groups:
        for unit in range(group.num_channels):
            masked = copy.deepcopy(model)
            zero_(masked, groups.plan({group.name: [unit]}))
            found.append(loss(masked) - before)
    return torch.stack(found)


# --- the reader identity --------------------------------------------------------------------------------------------

# Per network and group: the layers that read it, where in their input its channels start, and how many positions of
# the input each channel fills.
READERS: dict[str, dict[str, list[tuple[str, int, int]]]] = {
    "sequential": {"0": [("2", 0, 1)], "2": [("4", 0, 1)]},
    "conv1d": {"0": [("3", 0, 1)], "3": [("6", 0, 8)]},
    "conv_transpose": {"0": [("2", 0, 1)], "2": [("5", 0, 1)]},
    "flatten_to_linear": {"0": [("5", 0, 4)], "5": [("7", 0, 1)]},
    "residual": {"stem": [("a", 0, 1), ("head.2", 0, 1)], "a": [("b", 0, 1)]},
    "squeeze_excite": {"stem": [("squeeze", 0, 1), ("last", 0, 1)], "squeeze": [("excite", 0, 1)]},
    "dense_concat": {
        "stem": [("a", 0, 1), ("b", 0, 1), ("head.2", 0, 1)],
        "a": [("b", 10, 1), ("head.2", 10, 1)],
        "b": [("head.2", 16, 1)],
    },
    "used_twice": {"stem": [("again", 0, 1), ("last", 0, 1)]},
    "depthwise_separable": {"0": [("5", 0, 1)], "5": [("7.2", 0, 1)]},
    "tied_weights": {"encoder": [("middle", 0, 1), ("decoder", 0, 1), ("last", 0, 1)]},
}


def watch_inputs(model: nn.Module, layers: Sequence[str]) -> dict[str, list[Tensor]]:
    """Have layers read copies of their inputs, which keep their gradients."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            own = args[0].clone()
            own.retain_grad()
            seen[name].append(own)
            return (own,)

        return hook

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(hook_for(name))
    return seen


def measured(
    groups: ChannelGroups, readers: Mapping[str, list[tuple[str, int, int]]], seen: Mapping[str, list[Tensor]]
) -> Tensor:
    """Return activation times gradient for every example and unit, summed over space and over what reads the unit."""
    found = []
    for group in groups:
        total: Any = 0
        for layer, start, width in readers[group.name]:
            for x in seen[layer]:
                products = (x * x.grad).flatten(2).sum(2) if x.dim() > 2 else x * x.grad
                positions = products[:, start : start + group.num_channels * width]
                total = total + positions.reshape(len(x), group.num_channels, width).sum(2)
        found.append(total.detach())
    return torch.cat(found, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", READERS)
def test_signed_sum_is_activation_times_gradient_of_what_reads_the_unit(name: str, dtype: torch.dtype) -> None:
    model, example, groups = build(name, dtype)
    seen = watch_inputs(model, sorted({layer for group in READERS[name].values() for layer, _, _ in group}))
    backward(model, example)
    actual = signed_sums(parameter_slices(model, groups, "reader"), groups.num_units)
    expected = measured(groups, READERS[name], seen).sum(0)
    assert relative(actual, expected) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_weight_that_is_normalised_counts_as_its_removal_does() -> None:
    """Cutting a slice of the direction also changes the norm of what is left."""
    model, example, groups = build("weight_norm")
    model.eval()
    backward(model, example)
    actual = per_group(groups, signed_sums(parameter_slices(model, groups, "reader"), groups.num_units))["2"]
    before, step, expected = loss_of(model, example), 1e-6, []
    direction = model[4].parametrizations.weight.original1
    for unit in range(12):
        with torch.no_grad():
            kept = direction.clone()
            direction[:, unit] *= 1 - step
            expected.append((before - loss_of(model, example)) / step)
            direction.copy_(kept)
    assert relative(actual, torch.stack(expected).detach()) < 1e-4


def test_half_precision_is_summed_in_single() -> None:
    model, example, groups = build("sequential", torch.float32)
    backward(model, example)
    for parameter in model.parameters():
        parameter.data, parameter.grad = parameter.data.bfloat16(), None
        parameter.grad = torch.randn_like(parameter)
    actual = signed_sums(parameter_slices(model, groups, "reader"), groups.num_units)
    wide = copy.deepcopy(model)
    for parameter, original in zip(wide.parameters(), model.parameters(), strict=True):
        parameter.data, parameter.grad = original.data.double(), None
        parameter.grad = original.grad.double()
    expected = signed_sums(parameter_slices(wide, groups, "reader"), groups.num_units)
    assert actual.dtype == torch.float32 and relative(actual, expected) < 1e-5


# --- gates and normalisation ----------------------------------------------------------------------------------------


def test_gate_score_is_activation_times_gradient_after_normalisation() -> None:
    model, example, groups = build("conv_bn")
    outputs: list[Tensor] = []
    for name in ("1", "4"):
        model.get_submodule(name).register_forward_hook(lambda m, a, y: (y.retain_grad(), outputs.append(y))[0])
    actual = score(CRITERIA["taylor_gate"](model, groups), model, example)
    expected = torch.cat([(y * y.grad).sum((0, 2, 3)) for y in outputs]).square().detach()
    assert relative(actual, expected) < 1e-10


def test_gate_score_equals_reader_score_where_relu_follows() -> None:
    model, example, groups = build("conv_bn")
    gate, reader = (score(CRITERIA[n](model, groups), model, example) for n in ("taylor_gate", "taylor"))
    assert relative(gate, reader) < 1e-8


def test_gate_score_falls_back_on_readers() -> None:
    model, example, groups = build("norm_without_affine")
    gate, reader = (score(CRITERIA[n](model, groups), model, example) for n in ("taylor_gate", "taylor"))
    assert gate[:10].equal(reader[:10]) and relative(gate[10:], reader[10:]) < 1e-8


def test_filters_before_batch_norm_cancel_but_do_not_score_zero() -> None:
    model, example, groups = build("conv_bn")
    criterion = CRITERIA["taylor"](model, groups)
    scores = score(criterion, model, example)
    writers = parameter_slices(model, groups, "writer")
    joint = signed_sums(writers, groups.num_units)
    single = torch.zeros(groups.num_units + 1, dtype=torch.float64)
    for term in writers:
        single.index_add_(0, term.units, term.per_position((term.parameter * term.parameter.grad).detach().abs()))
    assert (joint.abs() < 1e-3 * single[:-1]).all() and (scores.sqrt() > 1e-2 * single[:-1]).any()


# --- coupled units --------------------------------------------------------------------------------------------------


def test_coupled_unit_is_summed_before_it_is_squared() -> None:
    model, example, groups = build("residual")
    gate = torch.ones(2, 12, dtype=torch.float64, requires_grad=True)  # one row per reader of the stream
    model.a.register_forward_pre_hook(lambda m, args: (args[0] * gate[0].view(-1, 1, 1),))
    model.head[2].register_forward_pre_hook(lambda m, args: (args[0] * gate[1],))
    actual = per_group(groups, score(CRITERIA["taylor"](model, groups), model, example))["stem"]
    together, apart = gate.grad.sum(0).square(), gate.grad.square().sum(0)
    assert relative(actual, together) < 1e-10 < 0.1 < relative(apart, together)


def test_weight_score_squares_weight_by_weight() -> None:
    model, example, groups = build("residual")
    actual = per_group(groups, score(CRITERIA["taylor_weight"](model, groups), model, example))["stem"]
    expected = sum((w * w.grad).square().sum((1, 2, 3)) for w in (model.stem.weight, model.b.weight)).detach()
    assert relative(actual, expected) < 1e-10


class Averaged(nn.Module):
    """No weight reads what ``b`` writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(1, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x))).amax(1, keepdim=True))


@pytest.mark.parametrize(("name", "factor"), [("taylor", 1), ("taylor_examples", 2)])
def test_unit_that_no_weight_reads_is_judged_by_what_writes_it(name: str, factor: int) -> None:
    model, x = Averaged().double(), torch.randn(2, 3, 8, 8).double()
    groups = find_groups(model, x)
    actual = per_group(groups, score(CRITERIA[name](model, groups), model, (x,)))["b"]
    expected = (model.b.weight * model.b.weight.grad).sum((1, 2, 3)).square().detach()
    torch.testing.assert_close(actual, factor * expected)


def test_unit_that_no_weight_reads_is_not_scored_by_activation() -> None:
    model, x = Averaged().double(), torch.randn(2, 3, 8, 8).double()
    groups = find_groups(model, x)
    scores = per_group(groups, score(CRITERIA["taylor_activation"](model, groups), model, (x,)))
    assert scores["a"].isfinite().all() and scores["b"].isnan().all()


# --- minibatches ----------------------------------------------------------------------------------------------------

GRADIENT_CRITERIA = ["taylor", "taylor_examples", "taylor_gate", "taylor_weight", "taylor_activation"]


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


# --- parameters that do not take part -------------------------------------------------------------------------------


def test_frozen_reader_leaves_its_units_without_score() -> None:
    model, example, groups = build("residual")
    model.a.requires_grad_(False)
    scores = per_group(groups, score(CRITERIA["taylor"](model, groups), model, example))
    assert scores["stem"].isnan().all() and scores["a"].isfinite().all()


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


def test_groups_without_scores_are_named() -> None:
    _, _, groups = build("sequential")
    with pytest.warns(PruningWarning, match=r"1 groups have no score.*: 2$"):
        warn_unscored(torch.tensor([1.0] * 10 + [torch.nan] * 14), groups)


# --- activations ----------------------------------------------------------------------------------------------------


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


# --- baselines ------------------------------------------------------------------------------------------------------


def test_magnitude_is_the_norm_of_all_writers() -> None:
    model, _, groups = build("residual")
    actual = per_group(groups, CRITERIA["magnitude"](model, groups).compute())["stem"]
    torch.testing.assert_close(
        actual, torch.cat([model.stem.weight, model.b.weight], 1).flatten(1).norm(dim=1).detach()
    )


def test_random_follows_the_seed() -> None:
    model, _, groups = build("residual")
    state = torch.get_rng_state()
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(CRITERIA["random"](model, groups).compute())
    torch.set_rng_state(state)
    assert orders[0].equal(orders[1]) and not orders[0].equal(orders[2])


# --- the registry ---------------------------------------------------------------------------------------------------


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


# --- comparing groups -----------------------------------------------------------------------------------------------


@cache
def sequential_groups() -> ChannelGroups:
    return build("sequential")[2]


scores_of_24_units = st.lists(st.floats(1e-6, 1e6), min_size=24, max_size=24).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
normalizations = st.sampled_from(["mean", "l2", "max"])


@given(scores_of_24_units, normalizations, st.floats(1e-3, 1e3))
def test_normalized_scores_do_not_depend_on_a_groups_scale(scores: Tensor, how: str, factor: float) -> None:
    scaled = torch.cat([scores[:10] * factor, scores[10:]])
    groups = sequential_groups()
    torch.testing.assert_close(normalize_scores(scaled, groups, how), normalize_scores(scores, groups, how))


@given(scores_of_24_units, normalizations)
def test_normalization_keeps_the_order_within_a_group(scores: Tensor, how: str) -> None:
    normalized = per_group(sequential_groups(), normalize_scores(scores, sequential_groups(), how))
    for name, part in per_group(sequential_groups(), scores).items():
        assert (normalized[name][part.argsort()].diff() >= 0).all()


@given(scores_of_24_units, normalizations, st.integers(0, 23), st.sampled_from([torch.nan, torch.inf]))
def test_units_without_finite_score_do_not_touch_the_others(scores: Tensor, how: str, unit: int, bad: float) -> None:
    groups, others = sequential_groups(), torch.arange(24) != unit
    spoilt = torch.where(others, scores, bad)
    normalized = normalize_scores(spoilt, groups, how)
    assert normalized[others].isfinite().all() and not normalized[unit].isfinite()


@pytest.mark.parametrize("how", ["none", "mean", "l2", "max"])
def test_zero_scores_stay_zero(how: str) -> None:
    assert normalize_scores(torch.zeros(24), sequential_groups(), how).eq(0).all()


def test_unknown_normalization_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="must be one of none, mean, l2, max, but got 'sum'"):
        normalize_scores(torch.zeros(24), sequential_groups(), "sum")


def test_macs_are_taken_off_in_proportion() -> None:
    groups = sequential_groups()
    for number, group in enumerate(groups):
        left = groups.after(groups.plan({group.name: [2]})).macs
        assert unit_macs(groups)[group.first_unit] == groups.macs - left, number
    shares = unit_macs(groups) / groups.macs
    torch.testing.assert_close(normalize_scores(torch.ones(24).double(), groups, "none", 0.5), 1 - 0.5 * shares)


# --- which criterion predicts best ----------------------------------------------------------------------------------


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
