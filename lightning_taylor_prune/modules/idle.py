"""Layers that no traced call runs: the channels that they would read or write, by their parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor_prune.tracing.tensors import named_tensors


class IdleAxis(NamedTuple):
    """One axis of a parameter or buffer that has a position for every channel which its layer reads or writes.

    Attributes:
        layer: Qualified name of the layer.
        tensor: Qualified name of the parameter or buffer.
        dim: The axis; ``None`` where its positions stand for several channels each (grouped convolutions).
        size: Number of channels.
        part: Outermost module around the layer of which nothing runs.
        like: The same tensor of a module that runs, is built alike and stands beside `part` (another expert); ``""`` if
            there is none.
    """

    layer: str
    tensor: str
    dim: int | None
    size: int
    part: str
    like: str

    @property
    def part_that_runs(self) -> str:
        """The module beside `part` that `like` is in."""
        return self.like.removesuffix(self.tensor.removeprefix(self.part))


def idle_axes(root: nn.Module, unused: Collection[str]) -> list[IdleAxis]:
    """Return the channel axes of layers whose parameters are all unused.

    Args:
        root: The network.
        unused: Names of the parameters and buffers that no traced call uses.
    """
    absent = set(unused)
    found = []
    for name, module in root.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks: where it runs beside the traced calls, that is not seen
        own = _names_in(module, name, recurse=False)
        if own and own <= absent:
            part = _outermost_unused(root, name, absent)
            beside = _built_alike(root, part, absent)
            for leaf, dim, size in _axes_of(module):
                tensor = f"{name}.{leaf}" if name else leaf
                like = beside + tensor.removeprefix(part) if beside else ""
                found.append(IdleAxis(name, tensor, dim, size, part, like))
    return found


def _names_in(module: nn.Module, name: str, recurse: bool = True) -> set[str]:
    prefix = f"{name}." if name else ""
    named = [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]
    return {f"{prefix}{leaf}" for leaf, _ in named}


def _outermost_unused(root: nn.Module, name: str, absent: Collection[str]) -> str:
    """Return the name of the outermost module around another one of which nothing is used."""
    while "." in name:
        above = name.rpartition(".")[0]
        if not _names_in(root.get_submodule(above), above) <= set(absent):
            break
        name = above
    return name


def _built_alike(root: nn.Module, name: str, absent: Collection[str]) -> str:
    """Return the name of a module beside another one with the same class and shapes of which something is used.

    Only modules of one list or dictionary, and those whose names differ in their numbers alone, stand for one another.
    """
    above, _, own = name.rpartition(".")
    module = root.get_submodule(name)
    shapes = _shapes_in(module)
    for child, other in root.get_submodule(above).named_children():
        if not isinstance(root.get_submodule(above), (nn.ModuleList, nn.ModuleDict)) and _stem(child) != _stem(own):
            continue
        found = f"{above}.{child}" if above else child
        if type(other) is type(module) and _shapes_in(other) == shapes and not _names_in(other, found) <= set(absent):
            return found
    return ""


def _stem(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _shapes_in(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(module)}


def _axes_of(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """Yield name, axis and number of channels for what a layer's own parameters read or write."""
    for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        if isinstance(module, _ConvNd) and leaf.startswith("weight"):
            first, second = (module.in_channels, module.out_channels)[:: 1 if module.transposed else -1]
            yield leaf, 0, first
            yield leaf, 1 if module.groups == 1 else None, second
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            yield leaf, 1, tensor.shape[1]  # its other axis stands for words
        else:
            yield from ((leaf, dim, size) for dim, size in enumerate(tensor.shape))


def unused_tensors(root: nn.Module, used: Collection[str]) -> list[str]:
    """Return names of the parameters and buffers that are none of those used, under any of their names."""
    named = named_tensors(root)
    taken = {id(tensor) for name, tensor in named if name in used}
    return [name for name, tensor in named if id(tensor) not in taken]
