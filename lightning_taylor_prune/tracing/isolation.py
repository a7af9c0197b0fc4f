"""Undo what a forward pass leaves behind in modules, around them, and in random generators."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_taylor_prune.tracing.surroundings import Surroundings
from lightning_taylor_prune.tracing.undo import CONTAINERS, restore_container


@contextlib.contextmanager
def untouched(root: nn.Module, surroundings: Surroundings | None = None) -> Iterator[list[Any]]:
    """Undo whatever a forward pass leaves behind in modules, in what they can reach, and in random generators.

    Args:
        root: The network.
        surroundings: What its code can reach besides its modules, if that was looked for already.

    Yields:
        A list that holds, afterwards, every value that had been set or replaced in attributes of modules.
    """
    leaked: list[Any] = []
    of_modules, around = (surroundings or Surroundings(root)).save()
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
        for undo in around:
            undo()
        for undo in of_modules:
            leaked.extend(undo())


_ABSENT = object()

_MADE_ANEW = frozenset({"_flat_weights", "_flat_weight_refs"})
"""Where torch's recurrent layers list their weights; every forward pass sees to that."""


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return every container in a module's attributes, also nested ones, with a copy (``None`` if it is empty)."""
    found: dict[int, tuple[Any, Any]] = {}
    stack = list(module.__dict__.values())
    while stack:
        value = stack.pop()
        if isinstance(value, CONTAINERS) and id(value) not in found:
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
            leaked.extend(restore_container(value, content))
    module.__dict__.clear()
    module.__dict__.update(attributes)
    return leaked
