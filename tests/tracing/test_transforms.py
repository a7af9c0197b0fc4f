"""Networks that take gradients, or use `vmap` and other transforms of functions, in their own `forward`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.tracing.capture import CallRecorder
from tests.networks import conv
from tests.oracles import masked_error, prepared, random_units

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

Forward = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """Three layers that its `forward` uses in its own way."""

    def __init__(self, forward: Forward, layers: tuple[nn.Module, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = layers
        self.use = forward

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.use(self, x)

    def all(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.a(x).tanh()).tanh())
        return y


def linear(forward: Forward) -> tuple[Layers, Tensor]:
    return Layers(forward, (nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4))), ROWS


def convolutions(forward: Forward, groups: int = 1) -> tuple[Layers, Tensor]:
    middle = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    return Layers(forward, (conv(3, 8), middle, conv(8, 4))), IMAGES


def of_input(net: Layers, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(net.all(x).sum(), x, create_graph=True)[0]


def with_other_weights(net: Layers, x: Tensor) -> Tensor:
    other = {name: 1.5 * tensor for name, tensor in net.b.named_parameters()}
    return net.c(functional_call(net.b, other, (net.a(x).relu(),)).relu())  # type: ignore[no-any-return]


def ensemble(net: Layers, x: Tensor) -> Tensor:
    weights = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in net.b.named_parameters()}
    h = net.a(x).relu()
    return net.c(vmap(lambda w: functional_call(net.b, w, (h,)))(weights).mean(0).relu())  # type: ignore[no-any-return]


def by_vjp(net: Layers, x: Tensor) -> Tensor:
    output, backward = vjp(net.all, x)
    return backward(torch.ones_like(output))[0]  # type: ignore[no-any-return]


NETWORKS: dict[str, tuple[Layers, Tensor]] = {
    "vmap": linear(lambda net, x: net.c(vmap(lambda row: net.b(net.a(row).relu()))(x))),
    "vmap of vmap": linear(lambda net, x: net.c(vmap(vmap(lambda row: net.b(net.a(row).relu())))(x[None]))),
    "vmap with dropout": linear(
        lambda net, x: net.c(
            vmap(lambda row: nn.functional.dropout(net.b(net.a(row)), 0.5, net.training), randomness="different")(x)
        )
    ),
    "vmap of convolutions": convolutions(lambda net, x: net.c(vmap(lambda image: net.b(net.a(image[None])[0]))(x))),
    "vmap over weights": linear(ensemble),
    "functional_call": convolutions(with_other_weights),
    "autograd.grad": linear(of_input),
    "autograd.grad of convolutions": convolutions(of_input),
    "autograd.grad of groups": convolutions(of_input, groups=4),
    "grad": linear(lambda net, x: grad(lambda v: net.all(v).sum())(x)),
    "vmap of grad": linear(lambda net, x: vmap(grad(lambda row: net.all(row).sum()))(x)),
    "vjp": linear(by_vjp),
    "jacrev": linear(lambda net, x: jacrev(lambda v: net.all(v).sum(0))(x)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name: str) -> None:
    network, inputs = copy.deepcopy(NETWORKS[name])
    model, example, groups = prepared(network, (inputs,), torch.double)
    plan = groups.plan(random_units(groups))
    assert "a" in plan.removed
    assert masked_error(model, copy.deepcopy(model), plan, example) < 1e-10


def adapted(net: Layers, x: Tensor) -> Tensor:
    """Do one step of descent within the forward pass (MAML)."""
    h, weights = net.a(x).relu(), dict(net.b.named_parameters())
    loss = functional_call(net.b, weights, (h,)).square().mean()
    slopes = torch.autograd.grad(loss, [*weights.values()], create_graph=True)
    faster = {name: tensor - 0.1 * slope for (name, tensor), slope in zip(weights.items(), slopes, strict=True)}
    return net.c(functional_call(net.b, faster, (h,)).relu())  # type: ignore[no-any-return]


def hessian(net: Layers, x: Tensor) -> Tensor:
    return torch.func.hessian(lambda v: net.all(v).sum())(x[0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [convolutions(adapted), linear(hessian)], ids=["descent", "hessian"])
def test_what_is_not_followed_is_locked_with_a_line(network: tuple[Layers, Tensor]) -> None:
    groups = find_groups(network[0], network[1])
    assert groups.locked and all(__file__ in entry.reason for entry in groups.locked if entry.name != "c")


def test_calls_within_a_transform_belong_to_the_call_around_it() -> None:
    network, inputs = copy.deepcopy(NETWORKS["vmap"])
    recorder = CallRecorder(network)
    network(inputs)
    recorder.close()
    assert [call.module for call in recorder.calls] == [""] and recorder.called_by("") == ["c"]
