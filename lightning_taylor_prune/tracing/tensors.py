"""Tensors: their names, their place in memory, their memory format, and how to find them in nested structures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def named_tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, then buffers, with qualified names; tied tensors under each of their names."""
    return [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]


def memory_of(tensor: Tensor) -> Hashable:
    """Return a key for a tensor's place and layout in memory: equal for two objects that are the same data."""
    if tensor.layout != torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def find_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in nested containers, dataclasses and plain objects, each once."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            found.setdefault(id(item), item)
        elif id(item) not in seen and not isinstance(item, (str, bytes, int, float, type, nn.Module)):
            seen.add(id(item))
            stack.extend(_children(item))
    return list(reversed(found.values()))


def find_caches(value: Any) -> list[Any]:
    """Return the caches of keys and values in a network's result: by their class, or by the name that outputs give."""
    found: list[Any] = []
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (Tensor, str, bytes, int, float, type, nn.Module)):
            continue
        seen.add(id(item))
        if "Cache" in type(item).__name__:
            found.append(item)
        else:
            named = item if isinstance(item, Mapping) else getattr(item, "__dict__", {})
            found.extend(named[name] for name in _CACHES if name in named)
            stack.extend(_children(item))
    return found


_CACHES = ("past_key_values", "past_key_value")


def _children(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    slots = getattr(type(item), "__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [*vars(item).values()] if hasattr(item, "__dict__") else [getattr(item, n, None) for n in names]


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Return the memory format of a tensor: one of the channels-last formats, or the contiguous one."""
    if not tensor.is_contiguous():
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def scripted_tensors(root: nn.Module) -> list[str]:
    """Return names of the parameters and buffers that scripted modules hold: these keep their sizes."""
    scripted = [module for module in root.modules() if isinstance(module, torch.jit.ScriptModule)]
    held = {id(tensor) for module in scripted for _, tensor in named_tensors(module)}
    return [name for name, tensor in named_tensors(root) if id(tensor) in held] if held else []
