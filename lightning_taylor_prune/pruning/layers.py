"""Which groups take filters from layers that arguments name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.groups import ChannelGroups


def excluded_groups(groups: ChannelGroups, patterns: Iterable[str]) -> set[str]:
    """Return the groups that would take filters from a layer that some pattern names.

    A pattern is a layer's name, a shell pattern, or the name of a module that contains layers.

    Raises:
        ArgumentError: A pattern matches no layer.
    """
    called = _names_of_layers(groups)
    layers = {
        g.name: {n for s in g.slices if s.role == "writer" for n in called[layer_name(s.tensor)]} | {g.name}
        for g in groups
    }
    known = {name for names in layers.values() for name in names}
    known |= {name for entry in groups.locked for name in called[entry.name]}
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            raise ArgumentError(
                f"Expected argument `exclude` to name layers, but {pattern!r} matches none of "
                f"{', '.join(sorted(known))}."
            )
    return {
        group
        for group, names in layers.items()
        if any(matches(name, pattern) for name in names for pattern in patterns)
    }


def _names_of_layers(groups: ChannelGroups) -> dict[str, set[str]]:
    """Return all names of every layer, one under which a tied weight is found as well, by each of them."""
    same: dict[int, set[str]] = {}
    tensors = groups.structure.propagation.traces[0].tensors
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), set()).add(layer_name(name))
    called: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        called.setdefault(layer_name(name), set()).update(same[id(tensor)])
    return called


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a layer: exactly, as a shell pattern, or as a module that contains it."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
