"""What a forward pass can reach besides its modules: closures, globals, class attributes, objects, memo tables."""

from __future__ import annotations

import functools
import gc
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as hooks_of_all_modules

CONTAINERS = (dict, list, set, deque)

Undo = Callable[[], list[Any]]
"""Puts a place back as it was, and returns what had been put there."""


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
        for module in root.modules():
            attributes.visit(_objects_in(value for key, value in vars(module).items() if key not in _OWN_ATTRIBUTES))
        around = _Walk(MODULES_THAT_KEEP_NOTHING, attributes.seen)
        around.visit(_hooks(root))
        around.visit(dict.fromkeys(type(module) for module in root.modules()))
        self._of_modules, self._around = attributes.places, around.places
        self.found: list[Any] = []
        self.searching = True

    def watch(self, holder: Any) -> None:
        """Put one more object back after every run: something was found there."""
        walk = _Walk(MODULES_THAT_KEEP_NOTHING)
        walk.visit([holder])
        self._around.extend(walk.places)

    def save(self) -> tuple[list[Undo], list[Undo]]:
        """Note what the places hold now.

        Returns:
            How to put back those that belong to the modules, and those around them.
        """
        return _saved(self._of_modules), _saved(self._around)


def _objects_in(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what is no container: containers of modules are looked at anew in every run."""
    stack, seen = list(values), set()
    while stack:
        value = stack.pop()
        if isinstance(value, (*CONTAINERS, tuple)):
            if id(value) not in seen and len(value) <= _LARGEST_CONTAINER:
                seen.add(id(value))
                stack.extend(value.values() if isinstance(value, dict) else value)
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
        if len(value) > _LARGEST_CONTAINER:
            return ()
        self.places.append(value)
        return list(value.values()) if isinstance(value, dict) else list(value)

    def _function(self, function: FunctionType) -> Iterable[Any]:
        if self._is_passed_over(function.__module__):
            return
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        for cell in function.__closure__ or ():
            self.places.append(cell)
            yield _content(cell)
        names = list(_names(function.__code__))
        for name in names:
            if name in function.__globals__:
                value = function.__globals__[name]
                self.places.append(_Global(function.__globals__, name))
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
            self.places.append(_Slots(value))
        return [
            type(value),
            *([vars(value)] if hasattr(value, "__dict__") else ()),
            *(getattr(value, name, None) for name in slots_of(value)),
        ]

    def _is_passed_over(self, module: str | None) -> bool:
        return (module or "").partition(".")[0] in self._passed_over


class _Slots:
    """The slots of an object."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    def values(self) -> dict[str, Any]:
        """Return what is in the slots that hold something."""
        names = slots_of(self.holder)
        return {name: value for name in names if (value := getattr(self.holder, name, _EMPTY)) is not _EMPTY}


def slots_of(holder: Any) -> list[str]:
    """Return the names of all slots of an object."""
    slots = [getattr(cls, "__slots__", ()) for cls in type(holder).__mro__]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
    return [name for name in names if not name.startswith("__")]


class _Global:
    """A name in the namespace of a module."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name = namespace, name


def _names(code: CodeType) -> Iterator[str]:
    """Return the global names and attributes that code uses, functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell says so like this
        return _EMPTY


def _saved(places: Sequence[Any]) -> list[Undo]:
    return [_undo_of(place) for place in places]


def _undo_of(place: Any) -> Undo:
    if isinstance(place, CONTAINERS):
        return functools.partial(restore_container, place, place.copy() if place else None)
    if isinstance(place, _Global):
        return functools.partial(_restore_global, place, place.namespace.get(place.name, _EMPTY))
    if isinstance(place, _Slots):
        return functools.partial(_restore_slots, place, place.values())
    if isinstance(place, CellType):
        return functools.partial(_restore_cell, place, _content(place))
    if isinstance(place, type):
        return functools.partial(_restore_class, place, dict(vars(place)))
    if isinstance(place, np.ndarray):
        return functools.partial(_restore_array, place, place.copy() if place.size < _LARGEST_CONTAINER else place)
    if isinstance(place, random.Random):
        return functools.partial(_restore_state, place.setstate, place.getstate())
    if isinstance(place, np.random.RandomState):
        return functools.partial(_restore_state, place.set_state, place.get_state())
    if isinstance(place, np.random.Generator):
        return functools.partial(_restore_state, functools.partial(_set_state, place), place.bit_generator.state)
    return functools.partial(_forget_fakes, place, place.cache_info().misses)


def restore_container(value: Any, content: Any) -> list[Any]:
    """Put a container back; returns what it held where that differs."""
    if not value and not content:
        return []
    if value == content if isinstance(value, set) else _same_items(value, content):
        return []
    leaked = list(value.values()) if isinstance(value, dict) else list(value)
    value.clear()
    if content:
        value.extend(content) if isinstance(value, (list, deque)) else value.update(content)
    return leaked


def _same_items(value: Any, content: Any) -> bool:
    if content is None or len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(k in content and content[k] is v for k, v in value.items())
    return all(a is b for a, b in zip(value, content, strict=True))


def _restore_global(place: _Global, value: Any) -> list[Any]:
    now = place.namespace.get(place.name, _EMPTY)
    if now is value:
        return []
    if value is _EMPTY:
        del place.namespace[place.name]
    else:
        place.namespace[place.name] = value
    return [now]


def _restore_slots(place: _Slots, content: Mapping[str, Any]) -> list[Any]:
    changed = {k: v for k, v in place.values().items() if k not in content or content[k] is not v}
    for name in {*changed, *content}:
        if name not in content:
            delattr(place.holder, name)
        elif getattr(place.holder, name, _EMPTY) is not content[name]:
            setattr(place.holder, name, content[name])
    return list(changed.values())


def _restore_cell(cell: CellType, value: Any) -> list[Any]:
    if (now := _content(cell)) is value:
        return []
    if value is _EMPTY:
        del cell.cell_contents
    else:
        cell.cell_contents = value
    return [now]


def _restore_class(cls: type, attributes: Mapping[str, Any]) -> list[Any]:
    changed = {k: v for k, v in vars(cls).items() if k not in attributes or attributes[k] is not v}
    for name in changed:
        if name in attributes:
            setattr(cls, name, attributes[name])
        else:
            delattr(cls, name)
    return list(changed.values())


def _restore_array(array: Any, content: Any) -> list[Any]:
    if array is not content and array.flags.writeable:
        array[...] = content
    return []


def _restore_state(set_state: Callable[[Any], None], state: Any) -> list[Any]:
    set_state(state)
    return []


def _set_state(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


def _forget_fakes(memo: Any, misses: int) -> list[Any]:
    if memo.cache_info().misses != misses and holds_fakes(memo):
        memo.cache_clear()
    return []


def holds_fakes(holder: Any) -> bool:
    """Whether a fake tensor can be reached from a container or memo through a few references, modules apart."""
    level, seen = [holder], {id(holder)}
    for _ in range(_DEEPEST_MEMO):
        level = [item for item in gc.get_referents(*level) if id(item) not in seen]
        seen.update(map(id, level))
        if any(isinstance(item, FakeTensor) for item in level):
            return True
        level = [i for i in level if not isinstance(i, (nn.Module, FunctionType, type, ModuleType, Tensor))]
    return False


_EMPTY = object()

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

_LARGEST_CONTAINER = 10_000
"""Containers with more items are not copied."""

_DEEPEST_MEMO = 6
