"""Put new tensors in the place of old ones, wherever these are held."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_taylor_prune.plan import Cut
from lightning_taylor_prune.pruning.holders import OBJECTS_DEEP, is_worth_a_look
from lightning_taylor_prune.pruning.optimizer_state import Replacement
from lightning_taylor_prune.pruning.transaction import Transaction
from lightning_taylor_prune.tracing.tensors import memory_format_of


@dataclass(frozen=True, eq=False)
class BufferReplacement:
    """A buffer, or a tensor that stands for one of the network's, that changed shape."""

    old: Tensor
    new: Tensor
    cuts: tuple[Cut, ...]


@dataclass(frozen=True, eq=False)
class Regrown:
    """A tensor that takes an earlier shape again: nothing tells which numbers beside it belong to the new positions."""

    old: Tensor
    new: Tensor


Successor = Replacement | BufferReplacement | Regrown


@torch.no_grad()
def take(tensor: Tensor, cuts: Iterable[Cut]) -> Tensor:
    """Return the part of a tensor that is kept, in the tensor's memory format."""
    part = tensor.detach()
    for cut in cuts:
        part = part.index_select(cut.dim, torch.tensor(cut.keep, device=tensor.device))
    return part.contiguous(memory_format=memory_format_of(tensor))


def _beside(value: Tensor, found: Successor) -> Tensor:
    """Return what takes the place of numbers that stand for those of a tensor: averages begin anew at the tensor."""
    if isinstance(found, Regrown):
        return found.new.detach().to(value, copy=True)
    return take(value, found.cuts)


class Move:
    """Puts new tensors in the place of old ones, in containers and plain objects of all kinds.

    Args:
        of: Replacements by the identity of the old tensors.
        transaction: Where every step is noted.
    """

    def __init__(self, of: Mapping[int, Successor], transaction: Transaction) -> None:
        self._of, self._transaction = of, transaction
        self._seen: set[int] = set()  # containers may hold themselves
        self._depth = 0

    def everywhere(self, networks: Iterable[nn.Module], holders: Iterable[Any]) -> None:
        """Replace what networks hold, and then what objects and containers beside them do."""
        for network in networks:
            self.items_of_modules(network)
        for holder in holders:
            self.look_into(holder)

    def items_of_modules(self, network: nn.Module) -> None:
        """Replace what modules hold: parameters, buffers, attributes, and what is in these."""
        for module in network.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tensors belong to compiled code, and are locked
            for table in (module._parameters, module._buffers, module.__dict__):
                self.items_of(table)

    def look_into(self, holder: Any) -> None:
        """Replace what an object or container beside the network holds."""
        if isinstance(holder, nn.Module):
            self.items_of_modules(holder)
        elif isinstance(holder, (dict, list, deque)):
            self.items_of(holder)
        else:
            self._attributes_of(holder)

    def items_of(self, table: MutableMapping[Any, Any] | MutableSequence[Any]) -> None:
        """Replace items of a container in place."""
        if id(table) in self._seen:
            return
        self._seen.add(id(table))
        if isinstance(table, MutableMapping) and any(id(key) in self._of for key in table):
            self._rekey(table)
        pairs = list(table.items() if isinstance(table, MutableMapping) else enumerate(table))
        for (key, item), moved in zip(pairs, self._all_moved([item for _, item in pairs]), strict=True):
            if moved is not item:
                self._transaction.set_item(table, key, moved)

    def _rekey(self, table: MutableMapping[Any, Any]) -> None:
        """Replace parameters that are keys, and cut the values that stand for them, in the same order."""
        before = dict(table)
        after = {}
        for key, value in before.items():
            found = self._of.get(id(key))
            if found is not None and isinstance(value, Tensor) and id(value) not in self._of:
                value = _beside(value, found) if value.shape == found.old.shape else value
            after[key if found is None else found.new] = value
        self._transaction.do(partial(_write, table, after), partial(_write, table, before))

    def _all_moved(self, items: Sequence[Any]) -> list[Any]:
        """Return what takes the place of a container's items; what stands beside a parameter alone is cut like it."""
        found = [self._of[id(item)] for item in items if id(item) in self._of] if len(items) <= _FEW else []
        moved = [self._moved(item) for item in items]
        if len(found) != 1 or not isinstance(found[0].old, nn.Parameter):
            return moved
        shape = found[0].old.shape
        return [
            _beside(m, found[0]) if m is i and isinstance(m, Tensor) and m.shape == shape else m
            for m, i in zip(moved, items, strict=True)
        ]

    def _moved(self, value: Any) -> Any:
        """Return what takes the place of a value: containers that cannot be changed in place are made anew."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return self._of[id(value)].new if id(value) in self._of else value
        if isinstance(value, (dict, list, deque)):
            self.items_of(value)
        elif isinstance(value, (tuple, set, frozenset)):
            items = self._all_moved(list(value))
            if any(a is not b for a, b in zip(items, value, strict=True)):
                return value._make(items) if hasattr(value, "_make") else type(value)(items)
        elif isinstance(value, weakref.ReferenceType):
            target = value()
            return weakref.ref(self._of[id(target)].new) if id(target) in self._of else value
        else:
            self._attributes_of(value)
        return value

    def _attributes_of(self, value: Any) -> None:
        """Replace what a plain object holds; modules and optimizers are seen to elsewhere."""
        if isinstance(value, (nn.Module, Optimizer)) or not is_worth_a_look(value) or not hasattr(value, "__dict__"):
            return
        if self._depth < OBJECTS_DEEP:
            self._depth += 1
            self.items_of(vars(value))
            self._depth -= 1


_FEW = 4
"""Items of a container that may hold one parameter and what belongs to it: a pair of it and its average, say."""

_PLAIN = frozenset({int, float, str, bool, bytes, type(None)})


def successor(old: nn.Parameter, data: Tensor) -> nn.Parameter:
    """Return a parameter that takes the place of another one: its flags, attributes and hooks with other numbers."""
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    # The hook tables move as they are, so that handles which users hold still remove their hooks.
    if old._backward_hooks:
        new._backward_hooks = old._backward_hooks
    if old._post_accumulate_grad_hooks:
        new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    return new


def _write(table: MutableMapping[Any, Any], content: Mapping[Any, Any]) -> None:
    table.clear()
    table.update(content)
