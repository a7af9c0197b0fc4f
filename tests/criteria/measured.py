"""What criteria are tested with: losses, brute force, and hooks that measure activation times gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune.criteria.criterion import Criterion
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.networks import NETWORKS
from tests.oracles import prepared, zero_

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


class Averaged(nn.Module):
    """No weight reads what ``b`` writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(1, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(x))).amax(1, keepdim=True))


GRADIENT_CRITERIA = ["taylor", "taylor_examples", "taylor_gate", "taylor_weight", "taylor_activation"]
