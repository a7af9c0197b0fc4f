"""Measure a metric of a network over some data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune.errors import ArgumentError

if TYPE_CHECKING:
    from torchmetrics import Metric as TorchMetric

    Metric = Callable[[Any, Any], Tensor | float] | TorchMetric
else:
    Metric = Any


@torch.no_grad()
def evaluate(model: nn.Module, data: Iterable[Any], metric: Metric) -> float:
    """Return a metric over all data; the network is set to evaluation mode.

    Args:
        model: The network.
        data: Pairs of inputs (a tensor, a tuple of positional or a dict of keyword arguments) and targets; tensors are
            moved to the network's device. A loader that shuffles by torch's random generator draws the same order
            every time.
        metric: A function of outputs and targets, whose mean over all examples counts, or a ``torchmetrics.Metric``.

    Raises:
        ArgumentError: There is no data, it is not in pairs, or the metric gives no number.
    """
    tensor = next(iter(model.parameters()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    model.eval()
    total = _Total(metric, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in data:
            inputs, targets = _moved(_pair(batch), device)
            total.add(_outputs(model, inputs), targets)
    return total.value()


def _outputs(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ArgumentError(
            f"Expected argument `data` to give pairs of inputs and targets, but got a {type(batch).__name__}"
            + (f" of {len(batch)}." if hasattr(batch, "__len__") else ".")
        )
    return batch[0], batch[1]


def _moved(pair: tuple[Any, Any], device: torch.device) -> tuple[Any, Any]:
    return cast(tuple[Any, Any], tree_map_only(Tensor, lambda tensor: tensor.to(device), pair))


class _Total:
    """Adds up a metric over batches."""

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self._own: Any = cast(Any, metric).clone().to(device) if hasattr(metric, "compute") else None
        if self._own is not None:
            self._own.reset()
        self._metric, self._sum, self._examples = metric, 0.0, 0

    def add(self, outputs: Any, targets: Any) -> None:
        examples = _examples(targets)
        self._examples += examples
        if self._own is not None:
            self._own.update(outputs, targets)
        else:
            self._sum += examples * _number(self._metric(outputs, targets))

    def value(self) -> float:
        if not self._examples:
            raise ArgumentError("Expected argument `data` to give at least one batch of examples, but got none.")
        return self._sum / self._examples if self._own is None else _number(self._own.compute())


def _examples(targets: Any) -> int:
    return len(targets) if not isinstance(targets, Tensor) or targets.dim() else 1


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    if isinstance(value, (int, float)):
        return float(value)
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ArgumentError(f"Expected argument `metric` to give one number, but got {what}.")
