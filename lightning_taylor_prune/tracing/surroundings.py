"""What a forward pass can reach besides its modules: closures, globals, class attributes, objects, memo tables."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from lightning_taylor_prune.tracing.undo import (
    CONTAINERS,
    LARGEST_CONTAINER,
    Global,
    Slots,
    Undo,
    cell_content,
    content_of,
    size_of,
    slots_of,
    undo_all,
)


class Surroundings:
    """The places around a network in which its forward pass and its hooks can keep something.

    They are looked for once; :meth:`save` then notes what they hold, as often as the network is run.

    Args:
        root: The network.

    Attributes:
        found: Holders of fake tensors that were found elsewhere.
        searching: Whether it is worth while to look for more: the last search found some.
    """

    def __init__(self, root: nn.Module) -> None:
        attributes = _Walk(MODULES_THAT_KEEP_NOTHING)
        of_modules: list[str] = []
        for name, value in _own_attributes(root):
            attributes.visit(_objects_in([value]))
            of_modules += [name] * (len(attributes.places) - len(of_modules))
        around = _Walk(MODULES_THAT_KEEP_NOTHING, attributes.seen)
        around.visit(_hooks(root))
        around.visit(dict.fromkeys(type(module) for module in root.modules()))
        self._of_modules, self._names, self._around = attributes.places, of_modules, around.places
        self.found: list[Any] = []
        self.searching = True

    def watch(self, holder: Any) -> None:
        """Put one more object back after every run: something was found there."""
        walk = _Walk(MODULES_THAT_KEEP_NOTHING)
        walk.visit([holder])
        self._around.extend(walk.places)

    def save(self) -> tuple[list[tuple[str, Undo]], list[tuple[Any, Undo]]]:
        """Note what the places hold now.

        Returns:
            How to put back those that belong to the modules, each with the qualified name of the attribute, and those
            around them, each with the place itself.
        """
        return [*zip(self._names, undo_all(self._of_modules), strict=True)], [
            *zip(self._around, undo_all(self._around), strict=True)
        ]


def _own_attributes(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what users stored in attributes of modules, by qualified name."""
    for prefix, module in root.named_modules():
        for name, value in vars(module).items():
            if name not in _OWN_ATTRIBUTES:
                yield f"{prefix}.{name}" if prefix else name, value


def _objects_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what is no container: containers of modules are looked at anew in every run."""
    stack, seen = list(values), set()
    while stack:
        value = stack.pop()
        if isinstance(value, CONTAINERS):
            if id(value) not in seen and size_of(value) <= LARGEST_CONTAINER:
                seen.add(id(value))
                stack.extend(content_of(value)[1])
        elif isinstance(value, tuple):
            stack.extend(tuple.__iter__(value))
        elif type(value) not in _PLAIN:
            yield value


def _hooks(root: nn.Module) -> Iterator[Any]:
    yield from hooks_of_all_modules._global_forward_hooks.values()
    yield from hooks_of_all_modules._global_forward_pre_hooks.values()
    for module in root.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


class _Walk:
    """Follows references from objects to the places that code can write to.

    Args:
        passed_over: Top-level packages whose classes and functions keep nothing of a network.
        seen: Numbers of the objects that are known already.
    """

    def __init__(self, passed_over: frozenset[str], seen: Mapping[int, Any] | None = None) -> None:
        self.places: list[Any] = []
        self.seen: dict[int, Any] = dict(seen or {})  # the objects themselves, so that no number is given twice
        self._passed_over = passed_over

    def visit(self, start: Iterable[Any]) -> None:
        """Follow what can be reached from some objects."""
        stack = list(start)
        while stack and len(self.seen) < _MOST_OBJECTS:
            value = stack.pop()
            if type(value) in _PLAIN or isinstance(value, (Tensor, nn.Module, ModuleType)) or id(value) in self.seen:
                continue
            self.seen[id(value)] = value
            stack.extend(self._follow(value))

    def _follow(self, value: Any) -> Iterable[Any]:
        if isinstance(value, CONTAINERS):
            return self._container(value)
        if isinstance(value, (tuple, frozenset)):
            return value
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, (MethodType, BuiltinMethodType)):
            return [value.__self__, getattr(value, "__func__", None)]
        if isinstance(value, (staticmethod, classmethod)):
            return [value.__func__]
        if isinstance(value, property):
            return [value.fget]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, functools._lru_cache_wrapper):
            self.places.append(value)
            return [value.__wrapped__]
        if isinstance(value, (np.ndarray, random.Random, np.random.Generator, np.random.RandomState)):
            self.places.append(value)
            return ()
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _container(self, value: Any) -> Iterable[Any]:
        if size_of(value) > LARGEST_CONTAINER:
            return ()
        self.places.append(value)
        return content_of(value)[1]

    def _function(self, function: FunctionType) -> Iterable[Any]:
        if self._is_passed_over(function.__module__):
            return
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        for cell in function.__closure__ or ():
            self.places.append(cell)
            yield cell_content(cell)
        names = list(_names(function.__code__))
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                self.places.append(Global(function.__globals__, name))
                yield value
                if isinstance(value, ModuleType) and not self._is_passed_over(value.__name__):
                    yield from (vars(value)[attribute] for attribute in names if attribute in vars(value))

    def _class(self, cls: type) -> Iterable[Any]:
        if self._is_passed_over(cls.__module__):
            return ()
        self.places.append(cls)
        return [*cls.__bases__, *vars(cls).values()]

    def _object(self, value: Any) -> Iterable[Any]:
        module = type(value).__module__
        if self._is_passed_over(module) and module not in _PLAIN_OBJECTS:
            return ()
        if slots_of(value):
            self.places.append(Slots(value))
        return [
            type(value),
            *([vars(value)] if hasattr(value, "__dict__") else ()),
            *(getattr(value, name, None) for name in slots_of(value)),
        ]

    def _is_passed_over(self, module: str | None) -> bool:
        return (module or "").partition(".")[0] in self._passed_over


def _names(code: CodeType) -> Iterator[str]:
    """Return the global names and attributes that code uses, functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Parameters, submodules, hooks and the like."""

_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, slice, CodeType}
)

_PLAIN_OBJECTS = frozenset({"queue", "types", "collections", "argparse"})
"""Modules of the standard library whose objects hold what users put there."""

MODULES_THAT_KEEP_NOTHING = (
    sys.stdlib_module_names
    | {"torch", "numpy", "lightning", "lightning_fabric", "pytorch_lightning", "lightning_utilities", "torchmetrics"}
    | {__name__.partition(".")[0]}
) - {"__main__"}
"""Top-level packages that are passed over."""

_MOST_OBJECTS = 20_000
