"""Sizes that modules hold in attributes for which no update is registered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lightning_taylor_prune.modules.updates import AttributeUpdate, known_attributes

MARK = "_sizes_that_follow_pruning"
"""Attribute of a module that lists the paths of its attributes which were inferred to follow a cut."""


def find_sizes(module: nn.Module) -> dict[str, int]:
    """Return every integer that a module holds, by path, except those that its registered update sets.

    A path is the name of an attribute, with the position in a tuple or list (``"sizes.0"``) or the name in a plain
    object (``"config.num_heads"``) after it.
    """
    known = known_attributes(module)
    held = {name: value for name, value in vars(module).items() if name not in known and name not in _OWN_TO_MODULES}
    found = _integers(held)
    for name, value in plain_objects(module).items():
        if name in held:
            found.update({f"{name}.{inner}": size for inner, size in _integers(vars(value)).items()})
    return found


def plain_objects(module: nn.Module) -> dict[str, Any]:
    """Return the objects with settings, such as a configuration, that a module holds, by attribute."""
    return {name: value for name, value in vars(module).items() if _is_plain_object(value)}


_OWN_TO_MODULES = frozenset(vars(nn.Module())) | {MARK}


def _integers(values: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for name, value in values.items():
        if type(value) is int:
            found[name] = value
        elif isinstance(value, (tuple, list)) and type(value) in (tuple, list, torch.Size):
            found.update({f"{name}.{i}": item for i, item in enumerate(value) if type(item) is int})
    return found


def _is_plain_object(value: Any) -> bool:
    """Whether a value is an object with settings, such as a configuration: no module, tensor, class or function."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, torch.Tensor, type, dict))
        and not callable(value)
    )


def size_updates(module: nn.Module, sizes: Mapping[str, int]) -> list[AttributeUpdate]:
    """Return the updates that set integers of a module to new values, without setting any.

    Args:
        module: The module that holds them.
        sizes: New values by path, as :func:`find_sizes` names them.
    """
    values: dict[tuple[int, str], AttributeUpdate] = {}
    for path, size in sizes.items():
        owner, name, position = resolve_path(module, path)
        before = values.get((id(owner), name))
        value: Any = getattr(owner, name) if before is None else before.value
        if position is not None:
            items = [*value]
            items[position] = size
            size = type(value)(items)
        values[id(owner), name] = AttributeUpdate(owner, name, size)
    return list(values.values())


def resolve_path(module: nn.Module, path: str) -> tuple[Any, str, int | None]:
    """Return the object that holds an attribute, the attribute's name, and a position in it."""
    *names, last = path.split(".")
    owner: Any = module
    if not names:
        return owner, last, None
    for name in names[:-1]:
        owner = getattr(owner, name)
    held = getattr(owner, names[-1])
    if isinstance(held, (tuple, list)):
        return owner, names[-1], int(last)
    return held, last, None


def size_at(module: nn.Module, path: str) -> int:
    """Return the integer at a path."""
    owner, name, position = resolve_path(module, path)
    value = getattr(owner, name)
    size: int = value if position is None else value[position]
    return size


def holder_of(module: nn.Module, path: str) -> tuple[int, str]:
    """Return the identity of the object that holds the integer at a path, and the name of the attribute there."""
    owner, name, _ = resolve_path(module, path)
    return id(owner), name


def has_size(module: nn.Module, path: str) -> bool:
    """Whether a module holds an integer at a path."""
    try:
        return type(size_at(module, path)) is int
    except (AttributeError, IndexError, ValueError, TypeError):
        return False


def mark_sizes(module: nn.Module, paths: Iterable[str]) -> None:
    """Remember that these integers follow pruning, so that checkpoints keep them."""
    if marked := {*getattr(module, MARK, ()), *paths}:
        setattr(module, MARK, tuple(sorted(marked)))


def marked_sizes(module: nn.Module) -> dict[str, int]:
    """Return the integers that follow pruning, by path, with their values now."""
    return {path: size_at(module, path) for path in getattr(module, MARK, ())}
