"""Bytes of tensors: of those that a network stores, and of those that are alive at once while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_taylor_prune import find_groups, prune_, select


class LiveBytes(TorchDispatchMode):
    """Adds up, after every operator that really runs, the storages that exist, but for those that are given."""

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        own = [*model.parameters(), *model.buffers()]
        self._stored = {tensor.untyped_storage()._cdata for tensor in own}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._note(inputs)
        self.peak = 0

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._stored:
            self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def measured(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), LiveBytes(model, x) as live:
        model(x)
    return live.peak


class Views(nn.Module):
    """A skip that is held long, views, operators in place, a result that nothing reads, and one in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x).relu_()
        skip = x.flatten(2)
        x = F.avg_pool2d(self.narrow(x), 2)
        skip.sum()
        del skip
        x = x.transpose(1, 2).transpose(1, 2).half()
        x = x.mul_(2).float().mean((2, 3))
        return self.last(x)


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


def doubles() -> nn.Module:
    return flat().double()


def example(make: Any) -> Tensor:
    return torch.randn(2, 3, 10, 10, dtype=torch.float64 if make is doubles else torch.float32)


@pytest.mark.parametrize("make", [flat, doubles, Views], ids=lambda make: make.__name__)
def test_activation_memory_is_what_a_run_holds_at_once(make: Any) -> None:
    model, x = make().eval(), example(make)
    assert find_groups(model, x).activation_memory == measured(model, x)


@pytest.mark.parametrize("make", [flat, Views], ids=lambda make: make.__name__)
def test_predicted_activation_memory_is_that_after_the_cut(make: Any) -> None:
    model, x = make().eval(), example(make)
    groups = find_groups(model, x)
    plan = select(groups, torch.arange(groups.num_units), pruning_ratio=0.5)
    predicted = groups.after(plan).activation_memory
    prune_(model, plan)
    assert predicted == measured(model, x) < groups.activation_memory


def test_memory_counts_every_tensor_once_in_its_dtype() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 2).double())
    model[2].weight = model[0].weight
    model[3].forward = lambda x: F.linear(x.double(), model[3].weight, model[3].bias)
    linear, norm, last = 4 * (36 + 6 + 6), 4 * 4 * 6 + 8, 8 * (12 + 2)
    assert find_groups(model, torch.zeros(3, 6)).memory == linear + norm + last


def test_memory_after_a_cut_is_that_of_the_cut_network() -> None:
    model, x = flat(), torch.zeros(2, 3, 10, 10)
    groups = find_groups(model, x)
    plan = select(groups, torch.rand(groups.num_units), pruning_ratio=0.5)
    prune_(model, plan)
    tensors = [*model.parameters(), *model.buffers()]
    assert groups.after(plan).memory == sum(t.numel() * t.element_size() for t in tensors)


def test_largest_submodule_counts_where_only_these_are_traced() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = flat(), nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.large(x)
            return self.small(F.pad(x[x.abs().sum((1, 2, 3)).round().long() >= 0], (2, 2, 2, 2)))

    model = Dynamic().eval()
    groups = find_groups(model, torch.randn(2, 3, 10, 10))
    assert groups.activation_memory >= 4 * 2 * 64 * 8 * 8 * 2
