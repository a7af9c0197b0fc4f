"""Who holds a network's parameters beside it, or numbers for them one by one: copies, shadow lists, optimizers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_taylor_prune.modules.likeness import correlation, is_comparable, names_by_signature, signature
from lightning_taylor_prune.tracing.tensors import named_tensors

OBJECTS_DEEP = 3
"""How many plain objects, one held by the other, are looked into."""


@dataclass(frozen=True, eq=False)
class Copy:
    """Tensors beside a network that stand for its own one by one, and are cut at the same positions.

    Attributes:
        tensors: The tensors, by the name of the network's.
        holder: The module, dictionary, list or tuple that has them.
        prefix: Name of the submodule that the holder is a copy of, where it is a module.
        owners: Names of attributes and classes that lead to the holder.
    """

    tensors: Mapping[str, Tensor]
    holder: Any
    prefix: str = ""
    owners: tuple[str, ...] = ()

    @property
    def module(self) -> nn.Module | None:
        """The holder, where it is a module that can be run."""
        return self.holder if isinstance(self.holder, nn.Module) else None


class Holders:
    """Finds what belongs to a network's parameters outside of its own parameters and buffers.

    Args:
        network: The network.
        sizes: Whether a copy has the sizes of the network; without, modules are found by names, others not at all.
    """

    def __init__(self, network: nn.Module, sizes: bool = True) -> None:
        self._network, self._sizes = network, sizes
        self._tensors = {name: tensor for name, tensor in named_tensors(network) if is_comparable(tensor)}
        self._inside = {id(module) for module in network.modules()}
        self._live = {id(parameter) for parameter in network.parameters()}
        self._same = names_by_signature(network, sizes)
        self._flat = {name.replace(".", mark): name for mark in ("_", "", ".") for name in self._tensors}
        self._lists = _names_by_shapes(network)

    def copies(self, roots: Iterable[object]) -> list[Copy]:
        """Return all copies that some objects hold, each once; whether they follow the network is not asked."""
        found: dict[int, Copy] = {}
        for value, owners in self._walk(roots):
            if id(value) not in found and (copy := self.as_copy(value, owners)) is not None:
                found[id(value)] = copy
        found |= {id(c.holder): c for module in self._network.modules() if (c := self._copy_inside(module)) is not None}
        inner = {id(t) for c in found.values() if c.module is not None for t in c.tensors.values()}
        return [c for c in found.values() if c.module is not None or not inner.issuperset(map(id, c.tensors.values()))]

    def optimizers(self, roots: Iterable[object]) -> list[Optimizer]:
        """Return all optimizers that some objects hold."""
        found = (value for value, _ in self._walk(roots))
        return list({id(value): value for value in found if isinstance(value, Optimizer)}.values())

    def as_copy(self, value: object, owners: tuple[str, ...] = ()) -> Copy | None:
        """Return what a value is a copy of; ``None`` if it is none of this network."""
        if isinstance(value, nn.Module):
            return self._copy_module(value, owners)
        if isinstance(value, dict):
            return self._copy_dict(value, owners)
        return self._copy_list(value, owners) if isinstance(value, (list, tuple)) else None

    def _walk(self, roots: Iterable[object]) -> Iterator[tuple[Any, tuple[str, ...]]]:
        seen: set[int] = set()
        pending: list[tuple[Any, tuple[str, ...], int]] = [(root, (), OBJECTS_DEEP) for root in roots]
        while pending:
            value, owners, depth = pending.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) not in self._inside:
                yield value, owners
            children = items_of(value)
            is_object = not isinstance(value, (nn.Module, dict, list, tuple, set, frozenset, deque))
            if is_object and not depth:
                continue
            names = (*owners, type(value).__name__) if hasattr(value, "__dict__") else owners
            further = [(child, (*names, key), depth - is_object) for key, child in children.items()]
            pending += [entry for entry in further if is_worth_a_look(entry[0])]

    def _copy_module(self, module: nn.Module, owners: tuple[str, ...]) -> Copy | None:
        if not any(True for _ in module.parameters()) or self._shares(module.parameters()):
            return None
        prefixes = self._same.get(signature(module, self._sizes), [])
        if not prefixes:
            return None
        best = max(prefixes, key=lambda prefix: self._likeness(prefix, module)) if self._sizes else prefixes[0]
        named = ((_join(best, name), tensor) for name, tensor in named_tensors(module))
        return Copy({name: t for name, t in named if self._fits(name, t)}, module, best, owners)

    def _likeness(self, prefix: str, module: nn.Module) -> float:
        return correlation(self._network.get_submodule(prefix).parameters(), module.parameters())

    def _copy_dict(self, table: Mapping[Any, Any], owners: tuple[str, ...]) -> Copy | None:
        """Match a dictionary from names to tensors; names may be relative, or have no dots as those of buffers."""
        named = {key: v for key, v in table.items() if isinstance(key, str) and is_comparable(v) and v.dim()}
        if not any(tensor.dim() > 1 for tensor in named.values()) or self._shares(named.values()):
            return None
        for strict in (True, False):
            found = [
                match
                for cut in ("", "module.")
                for prefix in self._prefixes_of(named, cut, strict)
                if (match := self._match(named, prefix, cut)) is not None
            ]
            if found:
                return Copy(max(found, key=self._likeness_of), table, owners=owners)
        return None

    def _prefixes_of(self, named: Mapping[str, Tensor], cut: str, strict: bool) -> list[str]:
        """Return what may precede the names: the name of a module, or else (``strict`` is False) anything."""
        name, *_ = [key for key, tensor in named.items() if tensor.dim() > 1]
        first = name.removeprefix(cut)
        found = (flat.removesuffix(first) for flat in self._flat if flat.endswith(first))
        return list(dict.fromkeys(prefix for prefix in found if not strict or not prefix or prefix[-1] in "._"))

    def _match(self, named: Mapping[str, Tensor], prefix: str, cut: str) -> dict[str, Tensor] | None:
        found = {}
        for key, tensor in named.items():
            name = self._flat.get(prefix + key.removeprefix(cut))
            if name is None or not self._fits(name, tensor) or self._tensors[name] is tensor:
                return None
            found[name] = tensor
        return found

    def _copy_list(self, items: Sequence[Any], owners: tuple[str, ...] = ()) -> Copy | None:
        if len(items) < 2 or not self._sizes or not all(map(is_comparable, items)):
            return None
        return None if self._shares(items) else self._match_list(items, owners)

    def _copy_inside(self, module: nn.Module) -> Copy | None:
        """Match a frozen list of parameters in the network itself."""
        if not isinstance(module, nn.ParameterList) or any(p.requires_grad for p in module.parameters()):
            return None
        return self._match_list(list(module))

    def _match_list(self, items: Sequence[Tensor], owners: tuple[str, ...] = ()) -> Copy | None:
        """Match a list of tensors with the shapes of a module's parameters, in their order."""
        several = self._lists.get(tuple(tuple(item.shape) for item in items), [])
        matches = [dict(zip(names, items, strict=True)) for names in several]
        others = [match for match in matches if all(self._tensors[name] is not t for name, t in match.items())]
        return Copy(max(others, key=self._likeness_of), items, owners=owners) if others else None

    def _likeness_of(self, tensors: Mapping[str, Tensor]) -> float:
        return correlation((self._tensors[name] for name in tensors), tensors.values())

    def _fits(self, name: str, tensor: Tensor) -> bool:
        return self._sizes and name in self._tensors and self._tensors[name].shape == tensor.shape

    def _shares(self, tensors: Iterable[Tensor]) -> bool:
        return any(id(tensor) in self._live for tensor in tensors)


def items_of(value: Any) -> dict[str, Any]:
    """Return what a container or plain object holds, by name where there is one."""
    if isinstance(value, dict):
        return {str(key) if isinstance(key, str) else f"#{number}": v for number, (key, v) in enumerate(value.items())}
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return {f"#{number}": item for number, item in enumerate(value)}
    if isinstance(value, Optimizer):
        return {}
    if isinstance(value, nn.Module):
        return {**_plain_attributes_of_module(value), **dict(value.named_children()), "": value._buffers}
    return dict(vars(value)) if hasattr(value, "__dict__") else {}


def is_worth_a_look(value: Any) -> bool:
    """Whether something may hold parameters: neither plain data nor the machinery around a training."""
    if value is None or isinstance(value, (str, bytes, int, float, complex, Tensor, torch.dtype, torch.device)):
        return False
    if isinstance(value, (type, ModuleType, FunctionType, MethodType, torch.jit.ScriptModule)):
        return False
    if isinstance(value, (torch.utils.data.Dataset, torch.utils.data.DataLoader)):
        return False
    if any(cls.__name__ == "Trainer" for cls in type(value).__mro__):
        return False
    return not type(value).__module__.startswith(__package__.partition(".")[0])


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _plain_attributes_of_module(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _names_by_shapes(network: nn.Module) -> dict[tuple[tuple[int, ...], ...], list[list[str]]]:
    """Return names of every module's parameters, all, the trained, or the weights alone, by their shapes."""
    found: dict[tuple[tuple[int, ...], ...], list[list[str]]] = {}
    for prefix, module in network.named_modules():
        own = [(_join(prefix, name), p) for name, p in module.named_parameters() if is_comparable(p)]
        trained, weights = [p for p in own if p[1].requires_grad], [p for p in own if p[1].dim() > 1]
        for chosen in (own, trained, weights):
            names, shapes = [name for name, _ in chosen], tuple(tuple(p.shape) for _, p in chosen)
            several = found.setdefault(shapes, [])
            if weights and len(names) > 1 and names not in several:
                several.append(names)
    return found


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
