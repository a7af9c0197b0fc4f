"""Scores against a real gate on every unit, where gradients of weights alone do not tell: complex, computed, frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from lightning_taylor_prune.criteria.criterion import CRITERIA, Criterion
from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.criteria.measured import relative

EXAMPLES = 6


class Gated(nn.Module):
    """One hidden layer with a gate on each of its units."""

    def __init__(self, writer: nn.Module, reader: nn.Module, axis: int = -1) -> None:
        super().__init__()
        self.writer, self.reader, self.axis = writer, reader, axis

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        hidden = self.activation(self.writer(x))
        if gate is not None:
            hidden = hidden * gate.reshape(gate.shape + (1,) * (-self.axis - 1))
        y = self.reader(hidden)
        y = y[0] if isinstance(y, tuple) else y
        return torch.view_as_real(y) if y.is_complex() else y

    def activation(self, x: Tensor) -> Tensor:
        return x if x.is_complex() else torch.tanh(x)


class ComplexMatrix(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_in, c_out, dtype=torch.cdouble))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.cdouble) @ self.weight


class Spectral(nn.Module):
    """Mixes channels of the lowest frequencies, as a Fourier layer does."""

    def __init__(self, c_in: int, c_out: int, real: bool = False) -> None:
        super().__init__()
        weight = torch.randn(c_in, c_out, 3, 3, dtype=torch.cdouble)
        self.real, self.weight = real, nn.Parameter(torch.view_as_real(weight) if real else weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.view_as_complex(self.weight) if self.real else self.weight
        low = torch.einsum("bixy,ioxy->boxy", torch.fft.rfft2(x)[..., :3, :3], weight)
        return torch.fft.irfft2(low, s=x.shape[-2:])


class Adapted(nn.Module):
    """A frozen layer with a trained adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class AdaptedInside(nn.Linear):
    """The same as a subclass, with both weights in one layer."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, c_in)), nn.Parameter(torch.randn(c_out, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + x @ self.down.T @ self.up.T


class LowRank(nn.Module):
    """A parametrization: the frozen weight plus a trained update."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, c_in)), nn.Parameter(torch.randn(c_out, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def low_rank(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", LowRank(layer.in_features, layer.out_features))
    layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    return layer


class Averaging(nn.Module):
    """Reads the same units with a trained and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def weight_normed(layer: nn.Module, dim: int | None) -> nn.Module:
    normed = parametrizations.weight_norm(layer, dim=dim)  # type: ignore[arg-type]
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(torch.rand_like(normed.parametrizations.weight.original0) + 0.5)
    return normed


def vector(reader: nn.Module, writer: nn.Module | None = None) -> tuple[Gated, Tensor]:
    return Gated(writer or nn.Linear(5, 8), reader), torch.randn(EXAMPLES, 5)


def image(reader: nn.Module, writer: nn.Module | None = None) -> tuple[Gated, Tensor]:
    return Gated(writer or nn.Conv2d(2, 8, 3, padding=1), reader, -3), torch.randn(EXAMPLES, 2, 6, 6)


WATCHED: dict[str, Callable[[], tuple[Gated, Tensor]]] = {
    "complex linear": lambda: vector(nn.Linear(8, 3, dtype=torch.cdouble), nn.Linear(5, 8, dtype=torch.cdouble)),
    **{
        f"weight norm over {dim}, {kind}": (lambda dim=dim, build=build: build(dim))
        for dim in (0, 1, None)
        for kind, build in {
            "linear": lambda dim: vector(weight_normed(nn.Linear(8, 3), dim), weight_normed(nn.Linear(5, 8), dim)),
            "convolution": lambda dim: image(weight_normed(nn.Conv2d(8, 3, 3), dim)),
            "transposed convolution": lambda dim: image(weight_normed(nn.ConvTranspose2d(8, 3, 3), dim)),
        }.items()
    },
    "spectral norm": lambda: vector(parametrizations.spectral_norm(nn.Linear(8, 3))),
    "spectral norm of old": lambda: vector(nn.utils.spectral_norm(nn.Linear(8, 3))),
    "spectral norm of old, convolution": lambda: image(nn.utils.spectral_norm(nn.Conv2d(8, 3, 3))),
    "frozen reader": lambda: vector(frozen(nn.Linear(8, 3))),
    "frozen convolution": lambda: image(frozen(nn.Conv2d(8, 3, 3))),
    "frozen weight norm": lambda: image(frozen(weight_normed(nn.Conv2d(8, 3, 3), 1))),
    "adapter": lambda: vector(Adapted(nn.Linear(8, 3)), Adapted(nn.Linear(5, 8))),
    "adapter in a subclass": lambda: vector(AdaptedInside(8, 3)),
    "adapter as parametrization": lambda: vector(low_rank(nn.Linear(8, 3))),
    "frozen and trained reader": lambda: vector(Averaging()),
}
"""Networks whose reading layers can be watched, so that examples can be told apart."""

WHOLE: dict[str, Callable[[], tuple[Gated, Tensor]]] = {
    "complex matrix": lambda: vector(ComplexMatrix(8, 3), ComplexMatrix(5, 8)),
    "Fourier layer": lambda: image(Spectral(8, 3)),
    "Fourier layers": lambda: image(Spectral(8, 3), Spectral(2, 8)),
    "Fourier layer stored as pairs": lambda: image(Spectral(8, 3, real=True)),
    "weight norm in a recurrent layer": lambda: vector(parametrizations.weight_norm(nn.GRU(8, 3), "weight_ih_l0", 1)),
}
"""Networks of which only weights tell what they read."""


def prepared(build: Callable[[], tuple[Gated, Tensor]]) -> tuple[Gated, Tensor, ChannelGroups]:
    torch.manual_seed(0)
    model, x = build()
    model, x = model.double(), x.double()
    if not any(p.is_complex() for p in model.writer.parameters() if p.dim() == 2):
        assert model(x).dtype == torch.double
    elif isinstance(model.writer, nn.Linear):
        x = x.to(torch.cdouble)
    return model, x, find_groups(model, (x,))


def loss(y: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view(y.shape[1:])
    return (y * weights).mean() + (y.square() * weights.abs()).mean()


def gate_gradients(model: Gated, x: Tensor) -> Tensor:
    """Return the derivative of the loss by a gate on every unit for every example; shape ``[examples, 8]``."""
    gate = torch.ones(EXAMPLES, 8, dtype=torch.double, requires_grad=True)
    return torch.autograd.grad(loss(model(x, gate)), gate)[0]


def scored(name: str, model: Gated, x: Tensor, groups: ChannelGroups) -> Tensor:
    criterion: Criterion = CRITERIA[name](model, groups)
    model.eval()  # no power iteration between the gate and the criterion
    loss(model(x)).backward()
    criterion.update()
    criterion.close()
    return criterion.compute()[:8]


@pytest.mark.parametrize("network", [*WATCHED, *WHOLE])
@pytest.mark.parametrize("name", ["taylor", "taylor_gate"])
def test_taylor_score_is_that_of_a_gate_on_the_unit(name: str, network: str) -> None:
    model, x, groups = prepared({**WATCHED, **WHOLE}[network])
    assert relative(scored(name, model, x, groups), gate_gradients(model, x).sum(0).square()) < 1e-8


@pytest.mark.parametrize("network", WATCHED)
@pytest.mark.parametrize(("name", "fold"), [("taylor_examples", torch.square), ("taylor_activation", torch.abs)])
def test_example_scores_are_those_of_a_gate_for_each_example(name: str, fold: Any, network: str) -> None:
    model, x, groups = prepared(WATCHED[network])
    expected = fold(EXAMPLES * gate_gradients(model, x)).mean(0)
    assert relative(scored(name, model, x, groups), expected) < 1e-8


@pytest.mark.parametrize("network", WHOLE)
def test_units_that_a_complex_function_reads_are_summed_over_the_minibatch(network: str) -> None:
    model, x, groups = prepared(WHOLE[network])
    assert relative(scored("taylor_examples", model, x, groups), gate_gradients(model, x).sum(0).square()) < 1e-8


def computed_weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().clone().requires_grad_()


@pytest.mark.parametrize("network", ["complex linear", "weight norm over 0, linear", "weight norm over 1, linear"])
def test_weights_of_the_writer_count_as_the_layer_uses_them(network: str) -> None:
    model, x, groups = prepared(WATCHED[network])
    weight = computed_weight(model.writer)
    hidden = model.activation(F.linear(x, weight, model.writer.bias))  # type: ignore[arg-type]
    y = model.reader(hidden)
    loss(torch.view_as_real(y) if y.is_complex() else y).backward()
    assert weight.grad is not None
    gates = (weight.grad.conj() * weight).real.square().sum(1)
    assert relative(scored("taylor_weight", model, x, groups), gates.detach()) < 1e-8


@pytest.mark.parametrize("network", ["complex linear", "weight norm over 0, linear", "weight norm over None, linear"])
def test_magnitude_is_the_norm_of_the_weight_that_is_used(network: str) -> None:
    model, _, groups = prepared(WATCHED[network])
    norms = computed_weight(model.writer).abs().square().sum(1).sqrt()
    assert relative(CRITERIA["magnitude"](model, groups).compute()[:8], norms.detach()) < 1e-12


@pytest.mark.parametrize("name", ["taylor", "taylor_examples"])
def test_a_part_without_any_gradient_has_no_score(name: str) -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = (
                nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2)
            )
            self.teacher.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x) - self.teacher(x)

    model, x = Distilled(), torch.randn(EXAMPLES, 5).double()
    criterion = CRITERIA[name](model, find_groups(model, (x,)))
    loss(model(x)).backward()
    criterion.update()
    assert criterion.compute().isnan().tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("name", ["taylor", "taylor_examples"])
def test_input_that_is_overwritten_after_a_frozen_layer_read_it_counts_from_the_next_minibatch_on(name: str) -> None:
    class Overwriting(Gated):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            hidden = self.writer(x) * (1 if gate is None else gate)
            return self.reader(hidden) + hidden.mul_(0.5).sum()

    model, x, groups = prepared(lambda: (Overwriting(nn.Linear(5, 8), frozen(nn.Linear(8, 3))), torch.randn(6, 5)))
    expected = torch.autograd.grad(loss(model(x, g := torch.ones(8).double().requires_grad_())), g)[0]
    assert expected.isfinite().all()
    criterion = CRITERIA[name](model, groups)
    for _ in range(2):
        loss(model(x)).backward()
        criterion.update()
    assert (criterion.steps, criterion.skipped) == (2, 1) and criterion.compute().isfinite().all()


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy], ids=["deep", "shallow"])
@pytest.mark.parametrize("network", ["frozen reader", "complex linear"])
@pytest.mark.parametrize("name", ["taylor", "taylor_examples", "taylor_activation"])
def test_backward_passes_of_a_copy_do_not_count(name: str, network: str, how: Callable[[Any], Any]) -> None:
    model, x, groups = prepared(WATCHED[network])
    alone = scored(name, model, x, groups)
    model.zero_grad()
    criterion = CRITERIA[name](model, groups)
    twin = copy.copy(model)
    twin._modules = {key: how(module) for key, module in model._modules.items()}  # type: ignore[type-var, misc]
    loss(model(x)).backward()
    hidden = twin.activation(twin.writer(2 * x))
    torch.autograd.grad(twin.reader(hidden).abs().sum(), hidden)
    criterion.update()
    torch.testing.assert_close(criterion.compute()[:8], alone)
