"""Which attributes of modules are read while a network's code runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lightning_taylor_prune.modules.sizes import resolve_path


@contextlib.contextmanager
def noting_reads(module_paths: Iterable[tuple[nn.Module, str]]) -> Iterator[set[tuple[int, str]]]:
    """Note which attributes are read during a block; those that cannot be watched count as read.

    Args:
        module_paths: Modules, and paths of integers that they hold.

    Yields:
        What was read, as :func:`holder_of` says it.
    """
    read: set[tuple[int, str]] = set()
    with contextlib.ExitStack() as stack:
        for module, path in module_paths:
            owner, name, _ = resolve_path(module, path)
            if not _watch(stack, type(owner), name, read):
                read.add((id(owner), name))
        yield read


def _watch(stack: contextlib.ExitStack, cls: Any, name: str, read: set[tuple[int, str]]) -> bool:
    """Put a descriptor before the instances' attribute; returns whether it is there."""
    if hasattr(cls, name):
        return isinstance(getattr(cls, name), _Watched)
    try:
        setattr(cls, name, _Watched(name, read))
    except TypeError:  # built-in types do not let anyone
        return False
    stack.callback(delattr, cls, name)
    return True


class _Watched:
    """Reads and writes an attribute where instances hold it, and notes who was asked."""

    def __init__(self, name: str, read: set[tuple[int, str]]) -> None:
        self._name, self._read = name, read

    def __get__(self, owner: Any, cls: Any) -> Any:
        if owner is None:
            return self
        self._read.add((id(owner), self._name))
        try:
            return owner.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None

    def __set__(self, owner: Any, value: Any) -> None:
        owner.__dict__[self._name] = value

    def __delete__(self, owner: Any) -> None:
        del owner.__dict__[self._name]
