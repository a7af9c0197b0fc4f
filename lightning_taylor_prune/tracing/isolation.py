"""Undo what a forward pass leaves behind in modules, around them, and in random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from lightning_taylor_prune.tracing.surroundings import Surroundings
from lightning_taylor_prune.tracing.undo import CONTAINERS, KINDS, Content, content_of, is_same, restore_container


class Stored(NamedTuple):
    """A value that a forward pass stored where it outlives the pass.

    Attributes:
        place: Qualified name of the attribute of a module that holds it, also further down in a container or object;
            or else the holder itself: a container, class, closure or global.
        value: The value.
        replaced: What the attribute itself held before, if the value took its place.
    """

    place: Any
    value: Any
    replaced: Any = None


class Snapshot:
    """What modules hold before a forward pass, so that its changes can be undone, also several times.

    Args:
        root: The modules: this one and all below it.

    Attributes:
        root: The same.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._saved = [(name, m, dict(m.__dict__), _contents(m)) for name, m in root.named_modules()]
        found = {id(value): (value, content) for *_, contents in self._saved for _, value, content in contents}
        empty = {key for key, (value, content) in found.items() if type(value) in KINDS and not content[1]}
        self._empty = [found[key][0] for key in empty]
        self._dicts = [value for key, (value, _) in found.items() if key not in empty and isinstance(value, dict)]
        self._others = [pair for key, pair in found.items() if key not in empty and not isinstance(pair[0], dict)]
        self._items = self._items_now()

    def restore(self) -> list[Stored]:
        """Undo what has changed since; return every value that had been stored in an attribute."""
        if self._is_unchanged():
            return []
        return [
            Stored(f"{name}.{attribute}" if name else attribute, value, replaced)
            for name, module, attributes, contents in self._saved
            for attribute, value, replaced in _restore(module, attributes, contents)
        ]

    def _is_unchanged(self) -> bool:
        """Whether nothing has changed: all modules are compared at once, as mostly nothing has."""
        return (
            not any(self._empty)
            and all(map(_same_objects, self._items_now(), self._items))
            and all(is_same(content_of(value), content) for value, content in self._others)
        )

    def _items_now(self) -> tuple[list[int], list[Any], list[Any]]:
        """Return the lengths, the keys and the values of all dictionaries that were not empty."""
        dicts = [*(module.__dict__ for _, module, *_ in self._saved), *self._dicts]
        return (
            [*map(dict.__len__, dicts)],
            [*chain.from_iterable(map(dict.__iter__, dicts))],
            [*chain.from_iterable(map(dict.values, dicts))],
        )


@contextlib.contextmanager
def untouched(root: nn.Module | Snapshot, surroundings: Surroundings | None = None) -> Iterator[list[Stored]]:
    """Undo whatever a forward pass leaves behind in modules, in what they can reach, and in random generators.

    Args:
        root: The network, or a snapshot of it as it is now: to make one takes longer than many a forward pass.
        surroundings: What its code can reach besides its modules, if that was looked for already.

    Yields:
        A list that holds, afterwards, every value that had been set or replaced in modules or around them.
    """
    leaked: list[Stored] = []
    snapshot = root if isinstance(root, Snapshot) else Snapshot(root)
    of_modules, around = (surroundings or Surroundings(snapshot.root)).save()
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield leaked
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        leaked.extend(snapshot.restore())
        for place, undo in (*around, *of_modules):
            leaked.extend(Stored(place, value) for value in undo())


@contextlib.contextmanager
def buffers_kept(root: nn.Module) -> Iterator[None]:
    """Put back afterwards what buffers hold."""
    buffers = [(buffer, buffer.clone()) for buffer in root.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)


class Entries(Protocol):
    """Values by name that can be replaced: a dictionary, or the attributes of an object."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a value."""

    def __setitem__(self, name: str, value: Any, /) -> None:
        """Replace a value."""


class Write(NamedTuple):
    """An entry (of a module's attributes, say, or of its parameters) and another value for it."""

    entries: Entries
    name: str
    value: Any

    @staticmethod
    def of_attribute(owner: Any, name: str, value: Any) -> Write:
        """Return the write of an attribute: of a module's dictionary itself if possible, which is faster."""
        held = owner.__dict__ if isinstance(owner, nn.Module) else {}
        simple = name in held and not hasattr(type(owner), name)
        return Write(held if simple else _Attributes(owner), name, value)


class _Attributes:
    """The attributes of an object that takes them in its own way: a property, say, or a scripted module."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __getitem__(self, name: str, /) -> Any:
        return getattr(self._owner, name)

    def __setitem__(self, name: str, value: Any, /) -> None:
        setattr(self._owner, name, value)


@contextlib.contextmanager
def written(writes: Sequence[Write]) -> Iterator[None]:
    """Replace entries for the duration of a block, one after the other: of two values for one entry the last counts."""
    before: list[Write] = []
    try:
        for entries, name, value in writes:
            old, entries[name] = entries[name], value
            before.append(Write(entries, name, old))
        yield
    finally:
        for entries, name, value in reversed(before):
            entries[name] = value


_ABSENT = object()

_MADE_ANEW = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Where torch's recurrent layers list their weights; every forward pass sees to that."""


def _contents(module: nn.Module) -> list[tuple[str, Any, Content]]:
    """Return every container in a module's attributes, also nested ones: the attribute, itself, and what it holds."""
    found: dict[int, tuple[str, Any, Content]] = {}
    stack = list(module.__dict__.items())
    while stack:
        name, value = stack.pop()
        if isinstance(value, CONTAINERS) and id(value) not in found:
            found[id(value)] = (name, value, content_of(value))
            stack.extend((name, item) for item in found[id(value)][2][1])
        elif isinstance(value, tuple):
            stack.extend((name, item) for item in tuple.__iter__(value))
    return list(found.values())


def _restore(
    module: nn.Module, attributes: Mapping[str, Any], contents: Sequence[tuple[str, Any, Content]]
) -> list[tuple[str, Any, Any]]:
    """Put a module back; returns the changed attributes: names, values, and what they were instead."""
    changed = {key: value for key, value in module.__dict__.items() if attributes.get(key, _ABSENT) is not value}
    leaked = [(key, value, attributes.get(key)) for key, value in changed.items() if key not in _MADE_ANEW]
    for name, value, content in contents:
        leaked.extend((name, item, None) for item in restore_container(value, content))
    module.__dict__.clear()
    module.__dict__.update(attributes)
    return leaked


def _same_objects(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))
