"""Undo what a forward pass changes in modules and random generators."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[list[Any]]:
    """Undo all changes that a forward pass makes to attributes of modules and to random generators.

    Yields:
        A list. After the block it holds every value that the forward pass had stored in an attribute.
    """
    leaked: list[Any] = []
    saved = [(module, dict(module.__dict__), _contents(module)) for module in root.modules()]
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield leaked
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        for module, attributes, contents in saved:
            leaked.extend(_restore(module, attributes, contents))


_ABSENT = object()

_MADE_ANEW = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Where torch's recurrent layers list their weights; every forward pass sees to that."""

_CONTAINERS = (dict, list, set, deque)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return every container in a module's attributes, also nested ones, with a copy (``None`` if it is empty)."""
    found: dict[int, tuple[Any, Any]] = {}
    stack = list(module.__dict__.values())
    while stack:
        value = stack.pop()
        if isinstance(value, _CONTAINERS) and id(value) not in found:
            found[id(value)] = (value, value.copy() if value else None)
        elif not isinstance(value, tuple):
            continue
        stack.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _restore(module: nn.Module, attributes: Mapping[str, Any], contents: Sequence[tuple[Any, Any]]) -> list[Any]:
    changed = {key: value for key, value in module.__dict__.items() if attributes.get(key, _ABSENT) is not value}
    leaked = [value for key, value in changed.items() if key not in _MADE_ANEW]
    for value, content in contents:
        if value or content:
            leaked.extend(_restore_container(value, content))
    module.__dict__.clear()
    module.__dict__.update(attributes)
    return leaked


def _restore_container(value: Any, content: Any) -> list[Any]:
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
