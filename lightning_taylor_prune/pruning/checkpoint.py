"""What a checkpoint says of a network's sizes: shapes of tensors, and integers that modules hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.modules.likeness import is_inside
from lightning_taylor_prune.modules.rewrite import HELD, is_rewritten, rewrite_
from lightning_taylor_prune.modules.sizes import find_sizes, mark_sizes, marked_sizes, size_updates
from lightning_taylor_prune.modules.updates import attributes_for_shapes, known_attributes, set_attributes
from lightning_taylor_prune.tracing.tensors import memory_format_of, named_tensors

KEY = "lightning_taylor_prune"
"""Where a checkpoint keeps what shapes alone do not tell."""


def fit_shapes_(module: nn.Module, shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> None:
    """Give parameters and buffers other sizes, smaller or larger, in place; their content is undefined then.

    Tensors that already fit, that ``shapes`` does not name, or whose number of axes differs are not changed.

    Args:
        module: The module that the names are relative to.
        shapes: Wanted shapes by qualified name.
    """
    misfits = misfits_of(module, shapes)
    set_attributes(attributes_for_shapes(module, misfits))
    places = [_place_of(module, name) for name in misfits]
    old = [table[leaf] for table, leaf in places]  # all of them first: a module may have several names
    new = {id(tensor): _empty_like(tensor, shape) for tensor, shape in zip(old, misfits.values(), strict=True)}
    for (table, leaf), tensor in zip(places, old, strict=True):
        table[leaf] = new[id(tensor)]


def misfits_of(module: nn.Module, shapes: Mapping[str, torch.Size | tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the wanted shapes that differ from a module's, where only the sizes of the axes do."""
    return {
        name: tuple(shapes[name])
        for name, tensor in named_tensors(module)
        if name in shapes and not is_lazy(tensor)
        if tensor.dim() == len(shapes[name]) and tuple(tensor.shape) != tuple(shapes[name])
    }


def _place_of(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the table that holds a parameter or buffer, and the name in it."""
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    table: dict[str, Any] = holder._parameters if leaf in holder._parameters else holder._buffers
    return table, leaf


def _empty_like(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    data = torch.empty(shape, dtype=old.dtype, device=old.device, memory_format=memory_format_of(old))
    if not isinstance(old, nn.Parameter):
        return data
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every parameter and buffer, as plain data."""
    return {name: list(tensor.shape) for name, tensor in named_tensors(module) if not is_lazy(tensor)}


def sizes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer, to be compared."""
    return {name: tuple(shape) for name, shape in shapes_of(module).items()}


def attributes_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the integers that depend on shapes, by module name and path, as plain data."""
    named = module.named_modules(remove_duplicate=False)  # a part of it may be loaded by itself
    found = {name: {**_known_sizes(child), **marked_sizes(child)} for name, child in named}
    return {name: attributes for name, attributes in found.items() if attributes}


def attributes_inside(attributes: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, Mapping[str, Any]]:
    """Return the attributes of a submodule's modules, by the names that these have in it."""
    start = len(prefix) + 1 if prefix else 0
    return {name[start:]: values for name, values in attributes.items() if is_inside(name, prefix)}


def _known_sizes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that a registered update sets, where they are integers or tuples of integers."""
    return {name: value for name, value in known_attributes(module).items() if _is_size(value)}


def _is_size(value: Any) -> bool:
    items = value if isinstance(value, (tuple, list)) else [value]
    return all(type(item) is int and item >= 0 for item in items)


def set_attributes_of(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set integers that :func:`attributes_of` returned, where the module still has them.

    They may come from a file of unknown origin. Nothing else is set than integers (and tuples of as many integers as
    before) that the analysis of the module itself would change, on modules and on plain objects that they hold.

    Raises:
        PlanError: The value for one of these is something else; nothing was set then.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    concerned = {name: values for name, values in attributes.items() if name in modules}
    for name, values in concerned.items():
        _check_sizes(modules[name], name, values)
    for name, values in concerned.items():
        _set_sizes(modules[name], values)


def _check_sizes(module: nn.Module, name: str, values: Mapping[str, Any]) -> None:
    now = {**find_sizes(module), **_known_sizes(module)}
    for path, value in values.items():
        fits = _is_size(value) and _count(value) == _count(now.get(path, 0))
        if not fits and (path in now or path.startswith(f"{HELD}.")):
            kind = "an int" if _count(now.get(path, 0)) is None else f"{_count(now[path])} ints"
            raise PlanError(
                f"Expected the checkpoint to set `{path}` of `{name or type(module).__name__}` to {kind}, but got "
                f"{str(value)[:80]!r}. It was damaged or edited; save it again."
            )


def _count(value: Any) -> int | None:
    """Return how many integers a tuple or list holds; ``None`` for a single one."""
    return len(value) if isinstance(value, (tuple, list)) else None


def _set_sizes(module: nn.Module, values: Mapping[str, Any]) -> None:
    known = _known_sizes(module)
    for attribute in known.keys() & values.keys():
        value = values[attribute]
        setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
    if any(path.startswith(f"{HELD}.") for path in values) and not is_rewritten(module):
        rewrite_(module)
    held = find_sizes(module)
    sizes = {path: value for path, value in values.items() if path in held}
    set_attributes(size_updates(module, sizes))
    mark_sizes(module, sizes)
