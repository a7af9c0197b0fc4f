"""Weights that hooks make of parameters at every call, and other values that a forward pass stores."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_taylor_prune import find_groups, prune_
from tests.networks import conv, head
from tests.oracles import differences, masked_error, random_units, relative_error, state_of, training_step

Change = Callable[[nn.Module], Any]


def old(name: str, **options: Any) -> Change:
    def change(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(nn.utils, name)(layer, **options)  # type: ignore[no-any-return]

    return change


def twice_masked(layer: nn.Module) -> None:
    prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
    prune.random_unstructured(layer, "weight", 0.3)


class Doubled:
    """A hook of a user's own."""

    def __init__(self, layer: nn.Module) -> None:
        weight = layer._parameters.pop("weight")
        layer.register_parameter("weight_orig", weight)
        layer.weight = weight.detach() * 2  # type: ignore[union-attr]
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: Any) -> None:
        layer.weight = layer.weight_orig * 2  # type: ignore[operator]


MADE: dict[str, Change] = {
    "l1_unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "ln_structured": lambda layer: prune.ln_structured(layer, "weight", 0.25, n=2, dim=0),
    "custom_from_mask": lambda layer: prune.custom_from_mask(layer, "bias", torch.arange(len(layer.bias)) % 3 > 0),
    "twice": twice_masked,
    "weight_norm": old("weight_norm"),
    "weight_norm_over_inputs": old("weight_norm", dim=1),
    "weight_norm_over_all": old("weight_norm", dim=None),
    "own_hook": Doubled,
}

PARAMETRIZED: dict[str, Change] = {
    "parametrized": parametrizations.weight_norm,
    "parametrized_over_inputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "parametrized_over_all": lambda layer: parametrizations.weight_norm(layer, dim=None),
}

kinds = pytest.mark.parametrize("change", {**MADE, **PARAMETRIZED}.values(), ids=[*MADE, *PARAMETRIZED])


def network(change: Change, transposed: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    second = nn.ConvTranspose2d(8, 6, 3) if transposed else conv(8, 6)
    model = nn.Sequential(conv(3, 8), nn.ReLU(), second, nn.ReLU(), head(6))
    for layer in (model[0], model[2]):
        change(layer)
    model(torch.randn(2, 3, 6, 6))
    return model


EXAMPLE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


def twins(change: Change, transposed: bool = False) -> tuple[nn.Module, nn.Module]:
    return network(change, transposed), network(change, transposed)


@kinds
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_layers_with_made_weights_are_pruned_as_if_masked(change: Change, transposed: bool) -> None:
    model, masked = twins(change, transposed)
    groups = find_groups(model, EXAMPLE)
    assert [group.name for group in groups] == ["0", "2"]
    exact = [group.name for group in groups if group.exact]
    units = {name: chosen for name, chosen in random_units(groups).items() if name in exact}
    assert masked_error(model, masked, groups.plan(units), EXAMPLE) < 1e-5


@pytest.mark.parametrize("change", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_channels_that_a_norm_sums_over_are_not_called_exact(change: Change) -> None:
    """What is left is scaled differently once some are removed."""
    assert not find_groups(network(change), EXAMPLE)["0"].exact


def _leaves(model: nn.Module) -> nn.Module:
    """Detach the weights that the last call made: only leaves can be copied."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = value.detach()
    return model


@pytest.mark.parametrize("change", MADE.values(), ids=MADE)
def test_the_attribute_has_the_cut_shape_before_the_next_call(change: Change) -> None:
    model = network(change)
    groups = find_groups(model, EXAMPLE)
    prune_(model, groups.plan({"0": [1, 2], "2": [0]}))
    at_rest = model[2].weight.detach().clone()
    model.eval()(*EXAMPLE)
    assert at_rest.shape == model[2].weight.shape == (5, 6, 3, 3)


@pytest.mark.parametrize("change", MADE.values(), ids=MADE)
def test_a_plan_that_fails_leaves_made_weights_as_they_were(change: Change) -> None:
    class Failing:
        def commit(self) -> None:
            raise RuntimeError("no")

        def rollback(self) -> None:
            pass

    from lightning_taylor_prune.pruning.prune import cut_tensors_

    model = network(change)
    plan = find_groups(model, EXAMPLE).plan({"0": [1]})
    before = state_of(model)
    with pytest.raises(RuntimeError, match="no"):
        cut_tensors_(model, plan, further_steps=[Failing()])
    assert differences(before, state_of(model)) == []


@pytest.mark.parametrize("norm", [old("spectral_norm"), parametrizations.spectral_norm], ids=["old", "parametrized"])
def test_spectral_norm_is_pruned_and_not_called_exact(norm: Change) -> None:
    """The largest singular value is one of all channels."""
    model = network(norm)
    groups = find_groups(model, EXAMPLE)
    assert {group.name: group.exact for group in groups} == {"0": False, "2": False}
    prune_(model, groups.plan({"0": [1, 2], "2": [0]}))
    assert training_step(model, EXAMPLE).isfinite().all()


def test_an_orthogonal_weight_is_locked_with_a_reason() -> None:
    groups = find_groups(network(parametrizations.orthogonal), EXAMPLE)
    assert {entry.name for entry in groups.locked} >= {"0", "2"}
    assert all("aten." in entry.reason for entry in groups.locked if entry.name in "02")


def test_masks_can_be_made_permanent_after_a_prune() -> None:
    model = network(MADE["l1_unstructured"])
    prune_(model, find_groups(model, EXAMPLE).plan({"0": [1, 2]}))
    before = model(*EXAMPLE)
    for layer in (model[0], model[2]):
        prune.remove(layer, "weight")
    assert relative_error(model(*EXAMPLE), before) < 1e-6


class Keeps(nn.Module):
    """Keeps something of its forward pass."""

    def __init__(self, keep: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.first, self.last, self.keep = nn.Linear(3, 6), nn.Linear(6, 2), keep
        self.kept: Any = None
        self.many: dict[str, list[Tensor]] = {"all": []}
        self.before = torch.zeros(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.keep(self, x)
        return self.last(x.relu())


STORED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "attribute": (lambda self, x: setattr(self, "kept", x), "`kept`"),
    "child": (lambda self, x: setattr(self.last, "seen", x), "`last.seen`"),
    "container": (lambda self, x: self.many["all"].append(x), "`many`"),
    "in_place_of_a_tensor": (lambda self, x: setattr(self, "before", x), "`before`"),
}


@pytest.mark.parametrize(("keep", "place"), STORED.values(), ids=STORED)
def test_what_a_forward_pass_stores_is_locked_by_a_reason_that_names_the_place(keep: Any, place: str) -> None:
    reasons = {entry.name: entry.reason for entry in find_groups(Keeps(keep), torch.zeros(2, 3)).locked}
    assert reasons["first"] == f"is stored in {place} by the forward pass, where other code may read it"


def test_a_cache_that_is_made_once_is_locked() -> None:
    """It would be read with its old size after a cut."""

    def keep(self: Any, x: Tensor) -> None:
        if self.kept is None:
            self.kept = self.first.weight * 2

    assert "`kept`" in {e.name: e.reason for e in find_groups(Keeps(keep), torch.zeros(2, 3)).locked}["first"]


@pytest.mark.parametrize("detached", [False, True], ids=["for_a_loss", "for_a_monitor"])
def test_features_in_a_dict_of_the_user_are_locked_where_a_loss_may_use_them(detached: bool) -> None:
    features: dict[str, Tensor] = {}
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].register_forward_hook(lambda m, a, out: features.__setitem__("0", out.detach() if detached else out))
    groups = find_groups(model, torch.zeros(2, 3))
    reasons = {entry.name: entry.reason for entry in groups.locked}
    expected = None if detached else "is stored in a dict named `features` by the forward pass"
    assert reasons.get("0", "").partition(",")[0] == (expected or "")
