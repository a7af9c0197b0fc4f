"""Parameters that have got other names since the network was analysed: masks, parametrizations, put on or removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.tracing.tensors import named_tensors

Shapes = Mapping[str, Sequence[int]]


def vanished(model: nn.Module, known: Collection[str]) -> frozenset[str]:
    """Return the names of parameters and buffers that a network no longer has.

    Args:
        model: The network.
        known: Names of those that it had when it was analysed.
    """
    return frozenset(known).difference(name for name, _ in named_tensors(model))


def shapes_with_renamed(model: nn.Module, original: Shapes, before: Shapes) -> dict[str, Sequence[int]]:
    """Return the shapes before the first prune also of tensors that stand in place of others of the same layer.

    A mask and the weight below it have the shape that the layer's weight had; so have those of a parametrization.

    Args:
        model: The network as it is now.
        original: Shapes before the first prune, by the names so far.
        before: Shapes after the last prune, by the names so far.
    """
    gone: dict[str, list[str]] = {}
    for name in sorted(vanished(model, before)):
        gone.setdefault(layer_name(name), []).append(name)
    found = dict(original)
    for name, tensor in named_tensors(model):
        replaced = [n for n in gone.get(layer_name(name), ()) if tuple(before[n]) == tuple(tensor.shape)]
        shapes = {tuple(original[n]) for n in replaced if n in original}
        if name not in found and len(shapes) == 1:
            found[name] = list(shapes.pop())
    return found


def renamed_scored(scored: Mapping[str, bool], names: Collection[str]) -> dict[str, bool]:
    """Return those of some parameters that stand in layers of which a parameter was scored."""
    layers = {layer_name(name) for name, has_score in scored.items() if has_score}
    return {name: True for name in names if layer_name(name) in layers}
