"""A metric over data: how the network is called, and what counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.pruning.evaluation import evaluate


class Sum(nn.Module):
    """Adds its arguments."""

    def forward(self, a: Tensor, b: Tensor | float = 0.0) -> Tensor:
        return a + b


@pytest.mark.parametrize(
    "inputs",
    [
        torch.tensor([5.0]),
        (torch.tensor([2.0]), torch.tensor([3.0])),
        {"b": torch.tensor([1.0]), "a": torch.tensor([4.0])},
    ],
    ids=["tensor", "positional", "keywords"],
)
def test_network_is_called_as_the_data_says(inputs: Any) -> None:
    assert evaluate(Sum(), [(inputs, torch.tensor([0]))], lambda outputs, targets: outputs.mean()) == 5


def test_mean_is_over_examples_not_batches() -> None:
    data = [(torch.tensor([1.0, 1.0, 1.0]), torch.zeros(3)), (torch.tensor([5.0]), torch.zeros(1))]
    assert evaluate(Sum(), data, lambda outputs, targets: outputs.mean()) == 2


def test_network_is_in_evaluation_mode_and_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(1.0))
    data = [(torch.ones(2, 3), torch.zeros(2))]
    assert evaluate(model, data, lambda outputs, targets: float(not outputs.requires_grad and outputs.any())) == 1


def test_metric_with_a_state_is_not_changed() -> None:
    from torchmetrics import MeanMetric

    class Outputs(MeanMetric):
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            super().update(outputs)

    metric = Outputs()
    metric.update(torch.tensor(7.0), torch.tensor(0))
    assert evaluate(Sum(), [(torch.tensor([1.0, 3.0]), torch.zeros(2))], metric) == 2 and metric.compute() == 7
