"""Pruned networks and checkpoints: give a module the shapes that a checkpoint has, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.modules.likeness import is_inside
from lightning_taylor_prune.modules.rewrite import HELD, is_rewritten, rewrite_
from lightning_taylor_prune.modules.sizes import has_size, mark_sizes, marked_sizes, size_updates
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
    misfits = {
        name: tuple(shapes[name])
        for name, tensor in named_tensors(module)
        if name in shapes and tensor.dim() == len(shapes[name]) and tuple(tensor.shape) != tuple(shapes[name])
    }
    set_attributes(attributes_for_shapes(module, misfits))
    places = [_place_of(module, name) for name in misfits]
    old = [table[leaf] for table, leaf in places]  # all of them first: a module may have several names
    new = {id(tensor): _empty_like(tensor, shape) for tensor, shape in zip(old, misfits.values(), strict=True)}
    for (table, leaf), tensor in zip(places, old, strict=True):
        table[leaf] = new[id(tensor)]


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


def follow_checkpoint_shapes(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Load hook: give the module the shapes of a state dict, however many filters that has kept.

    A module-level function without state, so that a module that carries it can be copied and pickled.
    """
    own = {
        k.removeprefix(prefix): v.shape for k, v in state_dict.items() if k.startswith(prefix) and hasattr(v, "shape")
    }
    fit_shapes_(module, own)


def make_loadable(module: nn.Module) -> RemovableHandle:
    """Let a module load state dicts of its pruned (or larger) selves, from now on.

    The callback does this by itself for the time of a Trainer call. Launchers that train in child processes
    (``ddp_spawn``, notebooks) need it on the module in the main process, before ``fit``.

    Returns:
        A handle whose ``remove()`` takes it back.

    Example:
        >>> network = nn.Linear(8, 4)
        >>> handle = make_loadable(network)
        >>> network.load_state_dict(nn.Linear(8, 3).state_dict())
        <All keys matched successfully>
        >>> network
        Linear(in_features=8, out_features=3, bias=True)
    """
    handle: RemovableHandle = module.register_load_state_dict_pre_hook(follow_checkpoint_shapes)
    return handle


def is_loadable(module: nn.Module) -> bool:
    """Whether :func:`make_loadable` is in force."""
    hooks = module._load_state_dict_pre_hooks.values()
    return any(getattr(hook, "hook", hook) is follow_checkpoint_shapes for hook in hooks)


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of every parameter and buffer, as plain data."""
    return {name: list(tensor.shape) for name, tensor in named_tensors(module)}


def attributes_of(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the attributes that depend on shapes, by module name and path, as plain data."""
    named = module.named_modules(remove_duplicate=False)  # a part of it may be loaded by itself
    found = {name: {**known_attributes(child), **marked_sizes(child)} for name, child in named}
    return {name: attributes for name, attributes in found.items() if attributes}


def attributes_inside(attributes: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, Mapping[str, Any]]:
    """Return the attributes of a submodule's modules, by the names that these have in it."""
    start = len(prefix) + 1 if prefix else 0
    return {name[start:]: values for name, values in attributes.items() if is_inside(name, prefix)}


def set_attributes_of(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes that :func:`attributes_of` returned, where the module still has them."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, values in attributes.items():
        if name not in modules:
            continue
        known = known_attributes(modules[name])
        for attribute in known.keys() & values.keys():
            value = values[attribute]
            setattr(modules[name], attribute, tuple(value) if isinstance(value, list) else value)
        if any(path.startswith(f"{HELD}.") for path in values) and not is_rewritten(modules[name]):
            rewrite_(modules[name])
        sizes = {p: v for p, v in values.items() if p not in known and has_size(modules[name], p)}
        set_attributes(size_updates(modules[name], sizes))
        mark_sizes(modules[name], sizes)


def fit_checkpoint_(module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give a module the shapes and sizes of a Lightning checkpoint that is about to be loaded into it, in place.

    For ``LightningModule.load_from_checkpoint``, which no callback sees: call it from the module's own
    ``on_load_checkpoint(self, checkpoint)``.

    Example:
        >>> network = nn.Linear(8, 4)
        >>> fit_checkpoint_(network, {"state_dict": nn.Linear(6, 4).state_dict()})
        >>> network
        Linear(in_features=6, out_features=4, bias=True)
    """
    fit_shapes_(module, {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()})
    set_attributes_of(module, checkpoint.get(KEY, {}).get("attributes", {}))


def load_pruned(path: str | Path, model: nn.Module, map_location: Any = "cpu") -> nn.Module:
    """Load a pruned network's checkpoint into a freshly built, unpruned one.

    Args:
        path: A Lightning checkpoint, or a file that ``torch.save`` made of a state dict. Only plain data is read
            (``weights_only=True``).
        model: The network as its code builds it, or a part of what was saved (``module.backbone``, say). It is changed
            in place.
        map_location: As in :func:`torch.load`.

    Returns:
        ``model``, with the checkpoint's shapes and weights.

    Raises:
        PlanError: The checkpoint is one of another network.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> torch.save(nn.Linear(8, 3).state_dict(), file)
        >>> _ = file.seek(0)
        >>> load_pruned(file, nn.Linear(8, 4))
        Linear(in_features=8, out_features=3, bias=True)
    """
    loaded = torch.load(path, map_location=map_location, weights_only=True)
    state_dict = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    prefix = _common_prefix(set(state_dict), model, str(path))
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    handle = make_loadable(model)
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise PlanError(f"{path} is a checkpoint of another network: {error}") from error
    finally:
        handle.remove()
    saved = loaded.get(KEY, {}) if isinstance(loaded, Mapping) else {}
    attributes = saved.get("attributes", {})
    set_attributes_of(model, attributes_inside(attributes, prefix[:-1]))
    return model


def _common_prefix(keys: set[str], model: nn.Module, path: str) -> str:
    """Return what precedes the model's names in a checkpoint's."""
    names = list(model.state_dict())
    if not names:
        return ""
    candidates = {key.removesuffix(names[0]) for key in keys if key == names[0] or key.endswith(f".{names[0]}")}
    fitting = [p for p in sorted(candidates, key=len) if all(p + name in keys for name in names)]
    if not fitting:
        absent = [name for name in names if not any(key.endswith(name) for key in keys)][:5]
        raise PlanError(
            f"{path} is a checkpoint of another network: it has no `{', '.join(absent or names[:3])}` beside the rest "
            f"of {type(model).__name__}'s parameters. Build the same network as was saved, unpruned."
        )
    return fitting[0]
