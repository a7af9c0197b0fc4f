"""A network as it was earlier, kept on the CPU: it comes back whole, with the shapes that it had, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_taylor_prune.modules.likeness import is_inside
from lightning_taylor_prune.modules.updates import attributes_for_shapes, set_attributes
from lightning_taylor_prune.pruning.beside import Beside
from lightning_taylor_prune.pruning.checkpoint import attributes_inside, attributes_of, misfits_of, set_attributes_of
from lightning_taylor_prune.pruning.fit import unchanged_on_failure
from lightning_taylor_prune.pruning.holders import Copy
from lightning_taylor_prune.pruning.move import Move, Regrown, successor
from lightning_taylor_prune.pruning.optimizers import prepare_restore, states_of
from lightning_taylor_prune.pruning.prune import forget_compiled
from lightning_taylor_prune.pruning.transaction import Step, Transaction
from lightning_taylor_prune.tracing.tensors import named_tensors

Attributes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Snapshot:
    """A network and its optimizers as they were, as plain data and tensors on the CPU.

    Attributes:
        tensors: Parameters and buffers by name.
        attributes: Integers that depend on their shapes, by module and path.
        states: State of every optimizer, and of those that it drives, by names of parameters.
        copies: Tensors of what follows the network beside it (moving averages), by a name for each.
    """

    tensors: Mapping[str, Tensor]
    attributes: Attributes
    states: Sequence[Sequence[Mapping[str, Any]]]
    copies: Mapping[str, Mapping[str, Tensor]]

    @staticmethod
    def of(model: nn.Module, optimizers: Sequence[object], beside: Beside, without: Collection[str] = ()) -> Snapshot:
        """Copy a network.

        Args:
            model: The network.
            optimizers: Those of the training loop.
            beside: What lies beside the network and changes with it.
            without: Names of modules that are not of it: others prune them.
        """
        names, tensors = _names(model, without), _own_tensors(model, without)
        known: dict[int, Tensor] = {}
        return Snapshot(
            {name: _kept(tensor, known) for name, tensor in tensors.items()},
            attributes_of(model),
            [states_of(optimizer, names) for optimizer in beside.with_optimizers(optimizers)],
            {key: {n: _kept(t, known) for n, t in c.tensors.items()} for key, c in _keyed(beside.copies)},
        )


def restore_(
    model: nn.Module,
    snapshot: Snapshot,
    optimizers: Sequence[object],
    beside: Beside,
    original: Attributes,
    without: Collection[str] = (),
    further_steps: Iterable[Step] = (),
) -> None:
    """Give a network back what it was: values, shapes, integers, and the state of its optimizers; all or nothing.

    Tensors whose shape is the same are written in place; the others become new ones, also where optimizers, copies
    and other objects hold them. Gradients are dropped. What has joined since (a moving average that began later)
    begins anew at the network.

    Args:
        model: The network, which has lost channels since.
        snapshot: What it was.
        optimizers: Those of the training loop.
        beside: What lies beside the network and changes with it.
        original: Integers of the unpruned network that have been found to follow pruning since then, maybe.
        without: Names of modules that are not of it.
        further_steps: What else belongs to it, done last.
    """
    attributes = _joined(original, snapshot.attributes)
    names, networks = _names(model, without), [("", model), *_modules_of(beside.copies)]
    pairs = list(_pairs(model, snapshot, beside.copies, without))
    regrown = {id(old): _regrown(old, value) for old, value in pairs if old.shape != value.shape}
    all_optimizers = beside.with_optimizers(optimizers)
    states = [*snapshot.states, *[()] * (len(all_optimizers) - len(snapshot.states))]
    swaps = [prepare_restore(o, regrown, s, names) for o, s in zip(all_optimizers, states, strict=False)]
    with contextlib.ExitStack() as unchanged, Transaction() as transaction:
        for _, network in networks:
            unchanged.enter_context(unchanged_on_failure(network, {}))
        for prefix, network in networks:
            _set_sizes(network, prefix, snapshot, attributes, without)
        holders = [*(copy.holder for copy in beside.copies), *beside.holders]
        Move(regrown, transaction).everywhere([network for _, network in networks], holders)
        for old, value in pairs:
            _write(old, value, transaction)
        transaction.do_all([*swaps, *further_steps])
    for _, network in networks:
        forget_compiled(network)


def _own_tensors(model: nn.Module, without: Collection[str]) -> dict[str, Tensor]:
    """Return parameters and buffers by name, also under further names of them."""
    own = {name: tensor for name, tensor in named_tensors(model) if not is_lazy(tensor)}
    return {name: tensor for name, tensor in own.items() if not any(is_inside(name, other) for other in without)}


def _names(model: nn.Module, without: Collection[str]) -> dict[int, str]:
    """Return the first name of every parameter by its identity."""
    own = _own_tensors(model, without)
    return {id(tensor): name for name, tensor in reversed(own.items()) if isinstance(tensor, nn.Parameter)}


def _kept(tensor: Tensor, known: dict[int, Tensor]) -> Tensor:
    if id(tensor) not in known:
        known[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return known[id(tensor)]


def _keyed(copies: Iterable[Copy]) -> Iterator[tuple[str, Copy]]:
    """Name copies by where they are held: the same in another process."""
    seen: dict[str, int] = {}
    for copy in copies:
        name = ".".join((*copy.owners, copy.prefix))
        seen[name] = seen.get(name, 0) + 1
        yield f"{name}#{seen[name]}", copy


def _modules_of(copies: Iterable[Copy]) -> list[tuple[str, nn.Module]]:
    return [(copy.prefix, copy.module) for copy in copies if copy.module is not None]


def _joined(original: Attributes, then: Attributes) -> dict[str, dict[str, Any]]:
    return {name: {**original.get(name, {}), **then.get(name, {})} for name in {**original, **then}}


def _pairs(
    model: nn.Module, snapshot: Snapshot, copies: Iterable[Copy], without: Collection[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every tensor of the network and its copies once, with its former value."""
    seen: set[int] = set()
    found = [(tensor, snapshot.tensors.get(name)) for name, tensor in _own_tensors(model, without).items()]
    for key, copy in _keyed(copies):
        values = {**snapshot.tensors, **snapshot.copies.get(key, {})}
        found += [(tensor, values.get(name)) for name, tensor in copy.tensors.items()]
    for tensor, value in found:
        if value is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor, value


def _regrown(old: Tensor, value: Tensor) -> Regrown:
    data = value.to(old.device, old.dtype, copy=True)
    if isinstance(old, nn.Parameter):
        return Regrown(old, successor(old, data))
    return Regrown(old, data.requires_grad_(old.requires_grad))


def _set_sizes(
    network: nn.Module, prefix: str, snapshot: Snapshot, attributes: Attributes, without: Collection[str]
) -> None:
    """Set the integers of a network, or of a copy of a part of it, whose tensors have the later sizes yet."""
    inside = {name: t for name, t in snapshot.tensors.items() if not prefix or is_inside(name, prefix)}
    start = len(prefix) + 1 if prefix else 0
    shapes = {name[start:]: tuple(tensor.shape) for name, tensor in inside.items()}
    set_attributes(attributes_for_shapes(network, misfits_of(network, shapes)))
    own = {name: a for name, a in attributes.items() if not any(is_inside(name, other) for other in without)}
    set_attributes_of(network, attributes_inside(own, prefix))


def _write(tensor: Tensor, value: Tensor, transaction: Transaction) -> None:
    """Write a tensor's former value in place where its shape is the same; drop its gradient."""
    if tensor.shape == value.shape:
        transaction.do(partial(_copy, tensor, value), partial(_copy, tensor, tensor.detach().clone()))
        if tensor.grad is not None:
            transaction.set_attribute(tensor, "grad", None)


@torch.no_grad()
def _copy(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)
