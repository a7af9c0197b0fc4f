"""Parameters, MACs and filters, measured and predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lightning_taylor_prune import find_groups, measure_cost, measure_latency, prune_, select

NETWORKS: dict[str, Any] = {
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.Conv2d(12, 2, 1)
    ),
    "transposed": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 6, 4), nn.Conv2d(6, 2, 1)),
    "linear": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 2)),
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "attention": lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    model = NETWORKS[name]()
    example = torch.zeros(2, 7, 16) if name == "attention" else torch.zeros(2, 3, 32, 32)
    model(example)
    return model, example


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_count_what_the_flop_counter_counts(name: str) -> None:
    model, example = build(name)
    groups, cost = find_groups(model, example), measure_cost(model, example)
    assert (groups.params, groups.macs, groups.num_filters) == (cost.params, cost.macs, cost.filters)


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_cost_is_the_cost_after_the_cut(name: str) -> None:
    model, example = build(name)
    groups = find_groups(model, example)
    plan = select(groups, torch.rand(groups.num_units), pruning_ratio=0.4)
    predicted = groups.after(plan)
    prune_(model, plan)
    cost = measure_cost(model, example)
    assert (predicted.params, predicted.macs, predicted.num_filters) == (cost.params, cost.macs, cost.filters)


def test_measuring_changes_nothing() -> None:
    model = torchvision.models.resnet18().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure_cost(model, torch.zeros(2, 3, 32, 32))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_latency_is_a_time() -> None:
    assert 0 < measure_latency(nn.Linear(4, 4), torch.zeros(1, 4), repeats=3) < 1
