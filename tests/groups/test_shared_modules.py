"""A module that a network knows by several names is one module: it is pruned as if it had one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import TaylorPruningCallback, find_groups, load_pruned, measure_cost, prune_, select
from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.pruning.checkpoint import attributes_of, fit_shapes_
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.submodules import submodules_of_call
from tests.lightning_modules import Classifier, loader, trainer
from tests.oracles import masked_error

EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    """Every module under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 10, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.second(self.first(x).relu())).relu().mean((2, 3)))


class InSequential(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self.first, nn.ReLU(), self.second, self.norm)


class InList(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.second, self.first])


class InDict(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({"one": self.first, "norm": self.norm})
        self.again = self.by_name


class RunByAlias(InSequential):
    """Runs the modules by their later names."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x).relu().mean((2, 3)))


class Step(nn.Module):
    def __init__(self, layer: nn.Module, following: nn.Module) -> None:
        super().__init__()
        self.layer, self.following = layer, following

    def forward(self, x: Tensor) -> Tensor:
        return self.following(self.layer(x).relu())


class Chain(Plain):
    """A chain whose links are kept in the network, too."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Step(self.first, Step(self.second, self.norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.chain(x).mean((2, 3)))


class CalledTwice(Plain):
    """Two parents call one module."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Conv2d(12, 12, 1)
        self.left, self.right = Step(self.first, self.middle), Step(self.middle, self.second)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.right(self.left(x))).relu().mean((2, 3)))


class TiedAndNamedTwice(Plain):
    """A weight that two modules hold, one of which has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Conv2d(1, 12, 3, padding=1)
        self.twin.weight = self.first.weight
        self.extra = nn.ModuleList([self.first])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() + self.twin(x).relu()
        return self.last(self.norm(self.second(x)).relu().mean((2, 3)))


KINDS = [InSequential, InList, InDict, RunByAlias, Chain, CalledTwice, TiedAndNamedTwice]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def build(kind: type[nn.Module]) -> Any:
    torch.manual_seed(0)
    return kind()


def pruned(kind: type[nn.Module]) -> Any:
    model = build(kind)
    groups = find_groups(model, EXAMPLE)
    prune_(model, groups.plan({group.name: [0, 3, 4] for group in groups}))
    return model


@kinds
def test_everything_but_the_output_can_be_removed(kind) -> None:
    groups = find_groups(build(kind), EXAMPLE)
    assert sorted(group.num_channels for group in groups) == [10, 12]
    assert [entry.reason for entry in groups.locked] == ["is an output of the network"]


@kinds
def test_pruned_equals_masked(kind) -> None:
    model = build(kind).double()
    groups = find_groups(model, EXAMPLE.double())
    plan = groups.plan({group.name: [1, 2, 5] for group in groups})
    assert masked_error(model, copy.deepcopy(model), plan, (EXAMPLE.double(),)) < 1e-10


@kinds
def test_it_stays_one_module(kind) -> None:
    model = pruned(kind)
    names = {name: id(p) for name, p in build(kind).named_parameters(remove_duplicate=False)}
    now = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    same = [[a for a in ids if ids[a] == ids[b]] for ids in (names, now) for b in ids]
    assert same[: len(names)] == same[len(names) :]


@kinds
def test_finding_groups_leaves_the_network_alone(kind) -> None:
    model = build(kind)
    before = dict(model.named_parameters(remove_duplicate=False))
    find_groups(model, EXAMPLE)
    assert all(p is before[name] for name, p in model.named_parameters(remove_duplicate=False))


@kinds
def test_a_checkpoint_loads_into_a_fresh_network(kind, tmp_path: Path) -> None:
    model = pruned(kind).eval()
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    fresh = load_pruned(tmp_path / "pruned.pt", build(kind)).eval()
    assert torch.equal(fresh(EXAMPLE), model(EXAMPLE))


@kinds
def test_fitting_shapes_keeps_ties(kind) -> None:
    model, fresh = pruned(kind), build(kind)
    fit_shapes_(fresh, {name: tensor.shape for name, tensor in model.state_dict().items()})
    assert len(list(fresh.parameters())) == len(list(model.parameters()))


def test_attributes_are_kept_under_every_name() -> None:
    attributes = attributes_of(pruned(InSequential))
    assert attributes["features.0"] == attributes["first"]


@pytest.mark.parametrize("target", ["chain", "chain.following", "second", "chain.following.layer"])
def test_a_call_names_a_module_by_any_name(target: str) -> None:
    model = build(Chain)
    example = EXAMPLE if target == "chain" else EXAMPLE.expand(2, 12, 8, 8)
    assert groups_of_calls(model, [Call(target, (example,))]).analysis.structure.results


@pytest.mark.parametrize("pattern", ["second", "features.2", "features"])
def test_exclude_knows_every_name(pattern: str) -> None:
    groups = find_groups(build(InSequential), EXAMPLE)
    chosen = select(groups, torch.arange(groups.num_units), 4, exclude=[pattern])
    assert "second" not in chosen.removed


def test_its_cost_is_that_of_a_network_with_one_name() -> None:
    assert measure_cost(build(InSequential), EXAMPLE) == measure_cost(build(Plain), EXAMPLE)


class OneOfMany(nn.Module):
    """Depends on values at its end; a chain of its parts can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.links = nn.ModuleList([nn.Conv2d(1, 8, 1), nn.Conv2d(8, 6, 1)])
        self.chain = Step(self.links[0], self.links[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x).flatten()[: int(x.sum().abs()) + 1]


def test_parts_are_found_by_what_calls_them() -> None:
    model = OneOfMany()
    found = submodules_of_call(model, Call("", (EXAMPLE,)))
    assert [call.module for call in found.calls] == ["chain"]


@pytest.mark.parametrize("target", ["network", "network.features", "alias.features"])
def test_the_callback_prunes_a_target_by_any_name(target: str) -> None:
    network = build(RunByAlias)
    module = Classifier(copy.deepcopy(network))
    module.alias = module.network
    pruning = TaylorPruningCallback(every_n_steps=2, filters_per_prune=3, max_prunes=1, target=target)
    trainer(pruning, max_epochs=-1, max_steps=4, limit_val_batches=0).fit(module, loader())
    assert module.network.first.out_channels < 12
