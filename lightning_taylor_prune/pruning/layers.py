"""Which groups take filters from layers that arguments name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.groups import ChannelGroups

if TYPE_CHECKING:
    from lightning_taylor_prune.pruning.constraints import Constraints

Layers = str | type[nn.Module]
"""Layers: the name of one, a shell pattern, the name of a module that contains layers, or a class of either."""

DEFAULT_RATIO = 0.9
"""Largest fraction removed of layers that no entry of ``max_pruning_ratio`` names."""

Names = frozenset[str]
"""All names of one layer: a weight that is tied is found under each of them."""


def without_leave(groups: ChannelGroups, constraints: Constraints) -> set[str]:
    """Return the groups that may lose nothing, as they take filters from an excluded layer, or one not included.

    Raises:
        ArgumentError: An entry matches no layer, or nothing is included that could be removed.
    """
    kept = excluded_groups(groups, constraints.exclude) if constraints.exclude else set()
    return kept if constraints.include is None else kept | _not_included(groups, constraints.include)


def excluded_groups(groups: ChannelGroups, patterns: Iterable[Layers]) -> set[str]:
    """Return the groups that would take filters from a layer that some entry names.

    Raises:
        ArgumentError: An entry matches no layer.
    """
    patterns = list(patterns)
    _check_known(groups, patterns, "exclude")
    layers = _layers_of_groups(groups)
    return {
        group
        for group, found in layers.items()
        if any(_names(groups, {group}.union(*found), pattern) for pattern in patterns)
    }


def _not_included(groups: ChannelGroups, patterns: Collection[Layers]) -> set[str]:
    """Return the groups that would take filters from a layer that no entry names."""
    _check_known(groups, patterns, "include")

    def named(names: Iterable[str]) -> bool:
        return any(_names(groups, names, pattern) for pattern in patterns)

    layers = _layers_of_groups(groups)
    outside = {group: [names for names in found if not named(names)] for group, found in layers.items()}
    by_itself = {group for group in layers if "#" in group and named([group])}  # no layer has such a name
    kept = {group for group, others in outside.items() if others} - by_itself
    if groups.num_units and kept == set(layers):
        raise ArgumentError(_nothing_included(layers, outside, patterns))
    return kept


def _nothing_included(
    layers: Mapping[str, list[Names]], outside: Mapping[str, list[Names]], patterns: Collection[Layers]
) -> str:
    others = [min(names) for group, found in outside.items() if len(found) < len(layers[group]) for names in found]
    why = "but what it names has none: see `groups.locked`"
    if others:
        why = f"but they are tied to those of {', '.join(others[:8])}: include these as well"
    return f"Expected argument `include` to name layers of which filters can be removed, {why}. Got {list(patterns)}."


def ratios_of_groups(groups: ChannelGroups, ratio: float | Mapping[Layers, float]) -> dict[str, float]:
    """Return the largest fraction of every group that may be removed: the smallest of the entries that match it.

    Raises:
        ArgumentError: An entry matches no layer.
    """
    if not isinstance(ratio, Mapping):
        return {group.name: ratio for group in groups}
    _check_known(groups, ratio, "max_pruning_ratio")
    layers, found = _layers_of_groups(groups), {}
    for group, own in layers.items():
        names = {group}.union(*own)
        found[group] = min((r for p, r in ratio.items() if _names(groups, names, p)), default=DEFAULT_RATIO)
    return found


def _check_known(groups: ChannelGroups, patterns: Iterable[Layers], argument: str) -> None:
    called = _names_of_layers(groups)
    known = {name for group, found in _layers_of_groups(groups).items() for name in {group}.union(*found)}
    known |= {name for entry in groups.locked for name in called.get(entry.name, {entry.name})}
    for pattern in patterns:
        if not _names(groups, known, pattern):
            shown = f"{pattern!r}" if isinstance(pattern, str) else pattern.__name__
            raise ArgumentError(
                f"Expected argument `{argument}` to name layers, but {shown} matches none of "
                f"{', '.join(sorted(known))}."
            )


def _layers_of_groups(groups: ChannelGroups) -> dict[str, list[Names]]:
    """Return the layers from which each group takes filters, each by all its names."""
    called = _names_of_layers(groups)
    return {
        group.name: list({called[layer_name(s.tensor)]: None for s in group.slices if s.role == "writer"})
        for group in groups
    }


def _names_of_layers(groups: ChannelGroups) -> dict[str, Names]:
    """Return all names of every layer, one under which a tied weight is found as well, by each of them."""
    same: dict[int, set[str]] = {}
    tensors = groups.structure.propagation.traces[0].tensors
    for name, tensor in tensors.items():
        same.setdefault(id(tensor), set()).add(layer_name(name))
    called: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        called.setdefault(layer_name(name), set()).update(same[id(tensor)])
    return {name: frozenset(names) for name, names in called.items()}


def _names(groups: ChannelGroups, names: Iterable[str], pattern: Layers) -> bool:
    """Whether a pattern, or a class, is that of one of these layers, or of a module that contains it."""
    if isinstance(pattern, str):
        return any(matches(name, pattern) for name in names)
    classes = groups.structure.propagation.traces[0].classes
    found = (classes.get(place) for name in names for place in _places(name))
    return any(kind is not None and issubclass(kind, pattern) for kind in found)


def _places(name: str) -> list[str]:
    """Return the names of a layer and of all modules around it.

    Example:
        >>> _places("net.0.conv")
        ['', 'net', 'net.0', 'net.0.conv']
    """
    parts = name.split(".")
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a layer: exactly, as a shell pattern, or as a module that contains it."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
