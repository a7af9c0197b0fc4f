"""Parameters, MACs and filters, measured and predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from lightning_taylor_prune import find_groups, measure_cost, measure_latency, prune_, select
from lightning_taylor_prune.cost import filters_per_layer

NETWORKS: dict[str, Any] = {
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=4, bias=False), nn.Conv2d(12, 2, 1)
    ),
    "transposed": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ConvTranspose2d(8, 6, 4), nn.Conv2d(6, 2, 1)),
    "linear": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 2)),
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "attention": lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 6), nn.ReLU(), nn.Linear(6, 2)),
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


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(10, 6), nn.LSTM(6, 8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.words(x))[0]


@pytest.mark.parametrize(
    ("model", "example", "filters"),
    [
        (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(2, 8), {"0": 6, "2": 2}),
        (Recurrent(), torch.zeros(2, 3, dtype=torch.long), {"words": 6, "layers": 4 * 4 * 8}),
    ],
    ids=["linear", "recurrent"],
)
def test_units_that_are_no_convolutions_filters_count(
    model: nn.Module, example: torch.Tensor, filters: dict[str, int]
) -> None:
    groups = find_groups(model, example)
    assert groups.filters == filters_per_layer(model) == filters


def test_linear_units_can_be_pruned() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    assert find_groups(model, torch.zeros(2, 8)).num_prunable_filters == 6


def test_measuring_changes_nothing() -> None:
    model = torchvision.models.resnet18().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure_cost(model, torch.zeros(2, 3, 32, 32))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_latency_is_a_time() -> None:
    assert 0 < measure_latency(nn.Linear(4, 4), torch.zeros(1, 4), repeats=3) < 1
