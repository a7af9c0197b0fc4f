"""Note what a place holds, and put it back as it was: containers, globals, slots, closures, classes, memo tables."""

from __future__ import annotations

import functools
import gc
import operator
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch._subclasses import FakeTensor

Undo = Callable[[], list[Any]]
"""Puts a place back as it was, and returns what had been put there."""

CONTAINERS = (dict, list, set, deque)
KINDS = (OrderedDict, *CONTAINERS)
"""The built-in kinds, each before what it derives from: an ``OrderedDict`` keeps an order of its own."""

Content = tuple[list[Any], list[Any]]
"""What a container holds: keys, if it has any, and items."""


class Slots:
    """The slots of an object."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    def values(self) -> dict[str, Any]:
        """Return what is in the slots that hold something."""
        names = slots_of(self.holder)
        return {name: value for name in names if (value := getattr(self.holder, name, EMPTY)) is not EMPTY}


def slots_of(holder: Any) -> list[str]:
    """Return the names of all slots of an object."""
    slots = [getattr(cls, "__slots__", ()) for cls in type(holder).__mro__]
    names = [name for some in slots for name in ([some] if isinstance(some, str) else some)]
    return [name for name in names if not name.startswith("__")]


class Global:
    """A name in the namespace of a module."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name = namespace, name


def cell_content(cell: CellType) -> Any:
    """Return what a closure's cell holds; ``EMPTY`` where that is nothing."""
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell says so like this
        return EMPTY


def undo_all(places: Sequence[Any]) -> list[Undo]:
    """Return how to put back what places hold now."""
    return [_undo_of(place) for place in places]


def _undo_of(place: Any) -> Undo:
    if isinstance(place, CONTAINERS):
        return functools.partial(restore_container, place, content_of(place))
    if isinstance(place, Global):
        return functools.partial(_restore_global, place, place.namespace.get(place.name, EMPTY))
    if isinstance(place, Slots):
        return functools.partial(_restore_slots, place, place.values())
    if isinstance(place, CellType):
        return functools.partial(_restore_cell, place, cell_content(place))
    if isinstance(place, type):
        return functools.partial(_restore_class, place, dict(vars(place)))
    if isinstance(place, np.ndarray):
        return functools.partial(_restore_array, place, place.copy() if place.size < LARGEST_CONTAINER else place)
    if isinstance(place, random.Random):
        return functools.partial(_restore_state, place.setstate, place.getstate())
    if isinstance(place, np.random.RandomState):
        return functools.partial(_restore_state, place.set_state, place.get_state())
    if isinstance(place, np.random.Generator):
        return functools.partial(_restore_state, functools.partial(_set_state, place), place.bit_generator.state)
    return functools.partial(_forget_fakes, place, place.cache_info().misses)


def restore_container(value: Any, content: Content) -> list[Any]:
    """Put a container back; returns what it held where that differs."""
    now = content_of(value)
    if is_same(now, content):
        return []
    kind, (keys, items) = kind_of(value), content
    kind.clear(value)
    if issubclass(kind, dict):
        for key, item in zip(keys, items, strict=True):
            kind.__setitem__(value, key, item)
    else:
        (kind.update if kind is set else kind.extend)(value, items)
    return now[1]


def content_of(value: Any) -> Content:
    """Return what a container holds.

    Never by a method that a class of the user's has in place of the built-in one, which may do anything: a table of
    classes, say, may make an object of one whenever it is asked for it.
    """
    kind = kind_of(value)
    keys = list(kind.__iter__(value))
    if kind is dict:
        return keys, list(dict.values(value))
    return (keys, [dict.__getitem__(value, key) for key in keys]) if kind is OrderedDict else ([], keys)


def size_of(value: Any) -> int:
    """Return how many items a container holds."""
    size: int = kind_of(value).__len__(value)
    return size


def kind_of(value: Any) -> Any:
    """Return the built-in kind of a container: its methods are those that no class of the user's has replaced."""
    kind, *_ = (kind for kind in KINDS if isinstance(value, kind))
    return kind


def is_same(a: Content, b: Content) -> bool:
    """Whether two containers hold the same objects, in the same order."""
    return all(len(x) == len(y) and all(map(operator.is_, x, y)) for x, y in zip(a, b, strict=True))


def _restore_global(place: Global, value: Any) -> list[Any]:
    now = place.namespace.get(place.name, EMPTY)
    if now is value:
        return []
    if value is EMPTY:
        del place.namespace[place.name]
    else:
        place.namespace[place.name] = value
    return [now]


def _restore_slots(place: Slots, content: Mapping[str, Any]) -> list[Any]:
    changed = {k: v for k, v in place.values().items() if k not in content or content[k] is not v}
    for name in {*changed, *content}:
        if name not in content:
            delattr(place.holder, name)
        elif getattr(place.holder, name, EMPTY) is not content[name]:
            setattr(place.holder, name, content[name])
    return list(changed.values())


def _restore_cell(cell: CellType, value: Any) -> list[Any]:
    if (now := cell_content(cell)) is value:
        return []
    if value is EMPTY:
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


EMPTY = object()

LARGEST_CONTAINER = 10_000
"""Containers with more items are not copied."""

_DEEPEST_MEMO = 6
