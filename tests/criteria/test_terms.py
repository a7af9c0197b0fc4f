"""Signed sums of weight times gradient against brute force: they are the change of the loss if a unit were removed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.criteria.criterion import CRITERIA
from lightning_taylor_prune.criteria.terms import parameter_slices, signed_sums
from lightning_taylor_prune.groups.find import find_groups
from tests.criteria.measured import (
    READERS,
    Loss,
    backward,
    build,
    changes,
    measured,
    relative,
    score,
    watch_inputs,
)
from tests.oracles import randomize_norms_


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", READERS)
def test_signed_sum_is_activation_times_gradient_of_what_reads_the_unit(name: str, dtype: torch.dtype) -> None:
    model, example, groups = build(name, dtype)
    seen = watch_inputs(model, sorted({layer for group in READERS[name].values() for layer, _, _ in group}))
    backward(model, example)
    actual = signed_sums(parameter_slices(model, groups, "reader"), groups.num_units)
    expected = measured(groups, READERS[name], seen).sum(0)
    assert relative(actual, expected) < (1e-10 if dtype == torch.float64 else 1e-5)


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
