"""Record which attributes of modules are read while a network's code runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lightning_taylor_prune.modules.sizes import resolve_path


@contextlib.contextmanager
def recording_reads(module_paths: Iterable[tuple[nn.Module, str]]) -> Iterator[set[tuple[int, str]]]:
    """Record which attributes are read during a block; those whose reads cannot be recorded count as read.

    Args:
        module_paths: Modules, and paths of integers that they hold.

    Yields:
        The attributes that were read, as :func:`~lightning_taylor_prune.modules.sizes.holder_of` returns them.
    """
    read: set[tuple[int, str]] = set()
    with contextlib.ExitStack() as stack:
        for module, path in module_paths:
            owner, name, _ = resolve_path(module, path)
            if not _record_reads(stack, type(owner), name, read):
                read.add((id(owner), name))
        yield read


def _record_reads(stack: contextlib.ExitStack, cls: type, name: str, read: set[tuple[int, str]]) -> bool:
    """Put a descriptor on the class that records reads of an attribute; return whether that is possible."""
    if hasattr(cls, name):
        return isinstance(getattr(cls, name), _RecordedAttribute)
    try:
        setattr(cls, name, _RecordedAttribute(name, read))
    except TypeError:  # attributes of built-in types cannot be set
        return False
    stack.callback(delattr, cls, name)
    return True


class _RecordedAttribute:
    """A descriptor that reads and writes an attribute of its instances, and records which of them were read."""

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
