"""What stands for a network's tensors one by one is found by names and shapes, and cut at the same positions."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.beside import Beside
from lightning_taylor_prune.pruning.holders import Holders
from lightning_taylor_prune.pruning.prune import cut_tensors_
from lightning_taylor_prune.pruning.pruner import Pruner
from tests.lightning_modules import small_network

X = torch.zeros(2, 1, 8, 8)


def changed(network: nn.Module) -> nn.Module:
    """A copy with other values, as an average has."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def by_name(value: dict[str, Tensor]) -> list[Tensor]:
    return list(value.values())


KINDS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Iterable[Tensor]]]] = {
    "module": (changed, lambda value: value.parameters()),
    "average": (lambda n: AveragedModel(changed(n)), lambda value: value.module.parameters()),
    "dictionary": (lambda n: dict(changed(n).named_parameters()), by_name),
    "data in a dictionary": (lambda n: OrderedDict((k, p.data) for k, p in changed(n).named_parameters()), by_name),
    "names with a prefix": (lambda n: {f"module.{k}": p.data for k, p in changed(n).named_parameters()}, by_name),
    "list": (lambda n: [p.data for p in changed(n).parameters()], list),
    "list of parameters": (lambda n: list(changed(n).parameters()), list),
}


class Fails:
    def commit(self) -> None:
        raise RuntimeError("no room")

    def rollback(self) -> None:
        pass


def cut(network: nn.Module, copies: list[Any], *steps: Any, holders: Any = ()) -> None:
    plan = find_groups(network, X).plan({"0": [0, 3], "3": [5]})
    beside = Beside.of(network, copies, holders)
    optimizers = beside.with_optimizers([])
    cut_tensors_(network, plan, optimizers, "slice", beside.copies, beside.holders, steps)


def kept_part(tensor: Tensor, name: str) -> Tensor:
    """What the plan of :func:`cut` keeps of a tensor of :func:`small_network`."""
    first, second = [i for i in range(8) if i not in (0, 3)], [i for i in range(16) if i != 5]
    if name.startswith(("0.", "1.")):
        return tensor[first]
    if name == "3.weight":
        return tensor[second][:, first]
    return tensor[second] if name.startswith(("3.", "4.")) else tensor[:, second] if name == "8.weight" else tensor


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_keeps_its_values_at_the_positions_that_the_network_keeps(kind: str) -> None:
    build, tensors_of = KINDS[kind]
    network = small_network()
    value = build(network)
    before = [tensor.detach().clone() for tensor in tensors_of(value)]
    cut(network, [value])
    names = [name for name, _ in network.named_parameters()]
    triples = zip(before, tensors_of(value), names, strict=True)
    assert all(torch.equal(kept_part(old, name), new) for old, new, name in triples)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_gets_its_own_tensors_back_if_a_later_step_fails(kind: str) -> None:
    build, tensors_of = KINDS[kind]
    network = small_network()
    value = build(network)
    before = [*map(id, tensors_of(value)), *map(id, network.parameters())]
    with pytest.raises(RuntimeError, match="no room"):
        cut(network, [value], Fails())
    assert [*map(id, tensors_of(value)), *map(id, network.parameters())] == before


HOLDERS: dict[str, tuple[Callable[[list[nn.Parameter]], Any], Callable[[Any], Iterable[Any]]]] = {
    "attribute": (lambda p: SimpleNamespace(held=p[0]), lambda h: [h.held]),
    "list": (lambda p: SimpleNamespace(held=list(p)), lambda h: h.held),
    "tuple": (lambda p: SimpleNamespace(held=tuple(p)), lambda h: h.held),
    "set": (lambda p: SimpleNamespace(held=set(p)), lambda h: h.held),
    "keys": (lambda p: SimpleNamespace(held=dict.fromkeys(p, 1)), lambda h: h.held),
    "object in an object": (lambda p: SimpleNamespace(inner=SimpleNamespace(held=p[0])), lambda h: [h.inner.held]),
    "weak references": (lambda p: SimpleNamespace(held=[weakref.ref(v) for v in p]), lambda h: [r() for r in h.held]),
    "optimizer": (lambda p: SimpleNamespace(held=torch.optim.Adam(p)), lambda h: h.held.param_groups[0]["params"]),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_parameters_are_exchanged_in_objects_beside_the_network(kind: str) -> None:
    build, held_by = HOLDERS[kind]
    network = small_network()
    holder = build(list(network.parameters()))
    cut(network, [], holders=[holder])
    assert {id(parameter) for parameter in held_by(holder)} <= {id(parameter) for parameter in network.parameters()}


@pytest.mark.parametrize("kind", HOLDERS)
def test_objects_beside_the_network_get_the_old_parameters_back(kind: str) -> None:
    build, held_by = HOLDERS[kind]
    network = small_network()
    holder = build(list(network.parameters()))
    before = sorted(map(id, held_by(holder)))
    with pytest.raises(RuntimeError, match="no room"):
        cut(network, [], Fails(), holders=[holder])
    assert sorted(map(id, held_by(holder))) == before


def test_values_by_parameter_are_cut_with_their_keys() -> None:
    network = small_network()
    holder = SimpleNamespace(velocity={p: torch.arange(p.numel()).reshape(p.shape) for p in network.parameters()})
    before = [value.clone() for value in holder.velocity.values()]
    cut(network, [], holders=[holder])
    names = [name for name, _ in network.named_parameters()]
    triples = zip(before, network.parameters(), names, strict=True)
    assert all(torch.equal(kept_part(old, name), holder.velocity[p]) for old, p, name in triples)


UNRELATED: dict[str, Any] = {
    "another network": nn.Sequential(nn.Conv2d(1, 8, 3)),
    "other shapes": small_network(width=6),
    "losses": [torch.zeros(()), torch.zeros(())],
    "statistics": [torch.zeros(8), torch.zeros(8)],
    "other names": {"mean": torch.zeros(8, 1, 3, 3)},
    "text": "0.weight",
}


@pytest.mark.parametrize("kind", UNRELATED)
def test_what_has_other_names_or_shapes_is_no_copy(kind: str) -> None:
    assert Holders(small_network()).as_copy(UNRELATED[kind]) is None


def test_a_copy_of_one_of_two_like_parts_is_one_of_that_whose_values_it_has() -> None:
    network = nn.ModuleDict({"first": small_network(), "second": small_network(seed=1)})
    found = Holders(network).as_copy(changed(network["second"]))
    assert found is not None and found.prefix == "second"


def test_what_is_named_but_no_copy_is_refused() -> None:
    with pytest.raises(ArgumentError, match="got a Linear whose names or shapes are others"):
        Beside.of(small_network(), [nn.Linear(3, 3)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_loop_prunes_copies_along(kind: str) -> None:
    build, tensors_of = KINDS[kind]
    network = small_network()
    value, pruner = build(network), Pruner(network, X, criterion="magnitude")
    pruner.prune(3, copies=[value])
    assert [t.shape for t in tensors_of(value)] == [p.shape for p in network.parameters()]


def test_a_frozen_part_is_not_pruned_unless_nothing_is_trained() -> None:
    part = nn.ModuleDict({"teacher": small_network(seed=1).requires_grad_(False), "student": small_network()})
    model = Both(part["teacher"], part["student"])
    scores = Pruner(model, X, criterion="magnitude").scores
    frozen = Pruner(model.requires_grad_(False), X, criterion="magnitude").scores
    assert (int(scores.isfinite().sum()), int(frozen.isfinite().sum())) == (24, 48)


class Both(nn.Module):
    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x) + self.student(x)


class TaughtByItsPast(Both):
    """Training starts with a teacher that is equal to the student."""

    def __init__(self) -> None:
        super().__init__(small_network().requires_grad_(False), small_network())

    def step(self, pruner: Pruner) -> None:
        self.zero_grad()
        self(torch.randn(4, 1, 8, 8)).square().mean().backward()
        pruner.update()


@pytest.mark.filterwarnings("ignore:`teacher` is built as `student`")
def test_a_plain_loop_resumes_beside_a_teacher_that_was_equal_to_the_network() -> None:
    first, second = TaughtByItsPast(), TaughtByItsPast()
    pruner = Pruner(first, X)
    first.step(pruner)
    pruner.prune(3)
    resumed = Pruner(second, X)
    resumed.load_state_dict(pruner.state_dict())
    assert [p.shape for p in second.parameters()] == [p.shape for p in first.parameters()]
