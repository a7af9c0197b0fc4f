"""Plain values that a network's code sets in its first forward pass: from then on it may run other operators."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from lightning_taylor_prune.tracing.isolation import Write

Attribute = tuple[str, str]
"""A module's name, and an attribute's."""


def unset_attributes(model: nn.Module) -> frozenset[Attribute]:
    """Return the attributes that hold nothing yet."""
    named = model.named_modules()
    return frozenset((name, key) for name, module in named for key, value in vars(module).items() if value is None)


class LateValues:
    """What was set since a network was analysed. The code sets it again, to the same, if it depends on no channel.

    Args:
        model: The network as it is now.
        unset: What held nothing when it was analysed.
    """

    def __init__(self, model: nn.Module, unset: Collection[Attribute]) -> None:
        modules = dict(model.named_modules())
        places = ((modules[name].__dict__, key) for name, key in sorted(unset) if name in modules)
        self._set = [(table, key, table[key]) for table, key in places if _is_set(table.get(key))]
        self._seen: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._set)

    @property
    def writes(self) -> Iterator[Write]:
        """What makes the code set everything again."""
        return (Write(table, key, None) for table, key, _ in self._set)

    def look(self) -> None:
        """See what the code has set so far."""
        for number, (table, key, _) in enumerate(self._set):
            if (value := table.get(key)) is not None:
                self._seen[number] = value

    def came_again(self) -> bool:
        """Whether the code has set everything to what it is now."""
        return all(
            number in self._seen and _is_same(self._seen[number], value)
            for number, (_, _, value) in enumerate(self._set)
        )


def _is_set(value: Any) -> bool:
    """Whether a value is plain data, or an object that holds nothing else."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_set, value))
    if isinstance(value, (bool, int, float, str)):
        return True
    return not isinstance(value, (nn.Module, type)) and bool(_held(value)) and all(map(_is_set, _held(value).values()))


def _is_same(one: Any, other: Any) -> bool:
    if not _is_set(one) or type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other) or (bool(_held(one)) and _held(one) == _held(other))


def _held(value: Any) -> dict[str, Any]:
    """Return the attributes of an object."""
    return dict(getattr(value, "__dict__", {}))
