"""Distances between a network and its teacher."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_taylor_prune import DistillationLoss
from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.recovery import attention_distance, attention_map


def by_hand(output: Tensor, teacher: Tensor, temperature: float) -> float:
    """Hinton's loss, term by term."""
    total = 0.0
    for own, taught in zip(output.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in taught]
        q = [math.exp(value / temperature) for value in own]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(output) * temperature**2


def test_kl_is_the_sum_of_its_terms() -> None:
    torch.manual_seed(0)
    output, teacher = torch.randn(2, 5, 3)
    loss = DistillationLoss(temperature=2.5)(output, teacher)
    assert loss.item() == pytest.approx(by_hand(output, teacher, 2.5), rel=1e-5)


def test_classes_of_a_segmentation_lie_on_axis_1() -> None:
    torch.manual_seed(0)
    output, teacher = torch.randn(2, 2, 5, 4, 4)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (output, teacher)]
    torch.testing.assert_close(DistillationLoss()(output, teacher), DistillationLoss()(*rows))


def test_kl_tends_to_the_squared_difference_of_centred_logits_as_the_temperature_rises() -> None:
    torch.manual_seed(0)
    output, teacher = torch.randn(2, 6, 10)
    centred = (output - output.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * 10)  # Hinton et al. 2015, section 2.1
    torch.testing.assert_close(DistillationLoss(temperature=200.0)(output, teacher), limit, rtol=1e-2, atol=0)


def test_attention_does_not_depend_on_how_many_equal_channels_there_are() -> None:
    features = torch.rand(2, 1, 4, 4).expand(2, 8, 4, 4)
    torch.testing.assert_close(attention_map(features), attention_map(features[:, :3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DistillationLoss("l1"), "`kind` to be one of kl, mse"),
        (lambda: DistillationLoss(temperature=0.0), "`temperature` to be above 0"),
        (lambda: DistillationLoss()(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (lambda: attention_distance(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2)), "same positions"),
    ],
    ids=["kind", "temperature", "shapes", "positions"],
)
def test_what_cannot_be_compared_is_refused(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
