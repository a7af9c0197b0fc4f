"""Attributes of known modules that hold shapes of their parameters, and their values after a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_taylor_prune.plan import Cut

ModuleUpdate = Callable[[Any, Mapping[int, Cut]], dict[str, Any]]


class _Registered(NamedTuple):
    """An update, and the names of the tensors whose cuts it reads."""

    update: ModuleUpdate
    tensors: tuple[str, ...]


_UPDATES: dict[type[nn.Module], _Registered] = {}


# Names of a weight, or of the tensor from which a parametrization or a hook computes it.
_ALIASES = ("{}", "{}_orig", "{}_v", "parametrizations.{}.original", "parametrizations.{}.original1")

_WEIGHT_AXES = 2
"""How many axes a weight has where an update reads the cuts of several."""


class AttributeUpdate(NamedTuple):
    """One attribute of one module (or of an object that it holds), and its value after the cut."""

    module: Any
    name: str
    value: Any


def register_module_update(
    *types: type[nn.Module], weights: Sequence[str] = ("weight",)
) -> Callable[[ModuleUpdate], ModuleUpdate]:
    """Register how attributes of a module type (and its subclasses) follow a cut of its weight.

    The function gets the module and the cuts of its ``weight`` (or, lacking one, of its running statistics) by
    axis, and returns new attribute values by name.

    Args:
        types: Module types.
        weights: Names of the weights whose cuts the function gets; the axes of several matrices are numbered one
            after another (2 and 3 are the axes of the second).

    Raises:
        ValueError: A type has an update already.

    Example:
        >>> class Scaled(nn.Linear):
        ...     def __init__(self, c_in, c_out):
        ...         super().__init__(c_in, c_out)
        ...         self.label = f"{c_out} outputs"
        >>> @register_module_update(Scaled)
        ... def scaled_update(module, cuts):
        ...     kept = len(cuts[0].keep) if 0 in cuts else module.out_features
        ...     return {"out_features": kept, "label": f"{kept} outputs"}
    """

    def decorate(update: ModuleUpdate) -> ModuleUpdate:
        for cls in types:
            if cls in _UPDATES:
                raise ValueError(f"{cls.__name__} has a module update already: {_UPDATES[cls].update.__name__}.")
            _UPDATES[cls] = _Registered(update, tuple(weights))
        return update

    return decorate


def attribute_updates(root: nn.Module, cuts: Iterable[Cut]) -> list[AttributeUpdate]:
    """Return every attribute that must change for ``cuts``, without changing any.

    Args:
        root: The network that the names in ``cuts`` refer to.
        cuts: Cuts of parameters and buffers; those of tied tensors under one of their names.
    """
    by_identity: dict[int, dict[int, Cut]] = {}
    for cut in cuts:
        owner, _, name = cut.tensor.rpartition(".")
        by_identity.setdefault(id(getattr(root.get_submodule(owner), name)), {})[cut.dim] = cut
    updates = []
    for module in root.modules():
        found = _find_update(type(module))
        if found is not None and (own := _weight_cuts(module, found.tensors, by_identity)):
            updates += [AttributeUpdate(module, name, value) for name, value in found.update(module, own).items()]
    return updates


def attributes_for_shapes(root: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[AttributeUpdate]:
    """Return every attribute that must change when tensors take other shapes, smaller or larger.

    Shapes do not tell how many groups a normalisation keeps; the first choice of its label rule is assumed. What a
    Lightning checkpoint stores besides shapes: :func:`~lightning_taylor_prune.pruning.checkpoint.load_pruned`.
    """
    cuts = []
    for name, shape in shapes.items():
        owner, _, leaf = name.rpartition(".")
        old = getattr(root.get_submodule(owner), leaf).shape
        pairs = enumerate(zip(old, shape, strict=True))
        cuts += [
            Cut(name, dim, before, np.arange(after), positions_known=False)
            for dim, (before, after) in pairs
            if before != after
        ]
    return attribute_updates(root, cuts)


def has_update(module: nn.Module) -> bool:
    """Whether an update is registered for a module's class, or one that it inherits from."""
    return _find_update(type(module)) is not None


def known_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that its registered update would set, with their values now."""
    found = _find_update(type(module))
    if found is None or not any(True for _ in module.parameters(recurse=True)):
        return {}
    return {name: getattr(module, name) for name in found.update(module, {})}


def set_attributes(updates: Iterable[AttributeUpdate]) -> None:
    """Set attributes for good."""
    for update in updates:
        setattr(update.module, update.name, update.value)


def _find_update(cls: type[nn.Module]) -> _Registered | None:
    return next((_UPDATES[base] for base in cls.__mro__ if base in _UPDATES), None)


def _weight_cuts(module: nn.Module, tensors: Sequence[str], cuts: Mapping[int, dict[int, Cut]]) -> dict[int, Cut]:
    """Return the cuts of a module's weights by axis, those of the second from axis 2 on."""
    found: dict[int, Cut] = {}
    for number, name in enumerate(tensors):
        tensor = _find_weight(module, name)
        own = {} if tensor is None else cuts.get(id(tensor), {})
        found.update({number * _WEIGHT_AXES + dim: cut for dim, cut in own.items()})
    return found


def _find_weight(module: nn.Module, weight: str) -> Tensor | None:
    """Return the parameter that a weight is, or is computed from; a normalisation may only have statistics."""
    for alias in (*(alias.format(weight) for alias in _ALIASES), "running_mean"):
        owner, _, name = alias.rpartition(".")
        try:
            holder = module.get_submodule(owner)
        except AttributeError:
            continue
        tensor = holder._parameters.get(name, holder._buffers.get(name))
        if tensor is not None:
            return tensor
    return None


def _kept(cuts: Mapping[int, Cut], dim: int, otherwise: int) -> int:
    return len(cuts[dim].keep) if dim in cuts else otherwise


def _groups_kept(module: _ConvNd, channels: int, before: int) -> int:
    """Return how many whole groups are kept: always the only one of an ordinary convolution."""
    return 1 if module.groups == 1 else channels * module.groups // before


@register_module_update(_ConvNd)
def _convolution(module: _ConvNd, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    out = _kept(cuts, 0, module.out_channels)
    groups = _groups_kept(module, out, module.out_channels)
    per_group = _kept(cuts, 1, module.in_channels // module.groups)
    return {"out_channels": out, "in_channels": groups * per_group, "groups": groups}


@register_module_update(_ConvTransposeNd)
def _transposed_convolution(module: _ConvTransposeNd, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    into = _kept(cuts, 0, module.in_channels)
    groups = _groups_kept(module, into, module.in_channels)
    per_group = _kept(cuts, 1, module.out_channels // module.groups)
    return {"in_channels": into, "out_channels": groups * per_group, "groups": groups}


@register_module_update(nn.Linear)
def _linear(module: nn.Linear, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    return {
        "out_features": _kept(cuts, 0, module.out_features),
        "in_features": _kept(cuts, 1, module.in_features),
    }


@register_module_update(_NormBase)
def _running_norm(module: _NormBase, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    return {"num_features": _kept(cuts, 0, module.num_features)}


@register_module_update(nn.GroupNorm)
def _group_norm(module: nn.GroupNorm, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    """Infer from the kept positions whether whole groups were removed, or the same positions of every group."""
    if 0 not in cuts:
        return {"num_channels": module.num_channels, "num_groups": module.num_groups}
    per_group = module.num_channels // module.num_groups
    kept = len(cuts[0].keep)
    kept_per_group = np.bincount(cuts[0].keep // per_group)
    whole = set(kept_per_group.tolist()) <= {0, per_group}
    if not cuts[0].positions_known:
        whole = whole_groups_first(module.num_groups, per_group) if kept % module.num_groups == 0 else whole
    return {"num_channels": kept, "num_groups": kept // per_group if whole else module.num_groups}


def whole_groups_first(groups: int, per_group: int) -> bool:
    """Whether to remove whole groups first, or the same positions of every group: the choice with the smaller units."""
    return per_group <= groups


@register_module_update(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(module: nn.LayerNorm | nn.RMSNorm, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    shape = tuple(_kept(cuts, dim, size) for dim, size in enumerate(module.normalized_shape))
    return {"normalized_shape": shape}


@register_module_update(nn.PReLU)
def _prelu(module: nn.PReLU, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    return {"num_parameters": _kept(cuts, 0, module.num_parameters)}


@register_module_update(nn.Embedding)
def _embedding(module: nn.Embedding, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    return {"embedding_dim": _kept(cuts, 1, module.embedding_dim)}


@register_module_update(nn.RNNBase, weights=("weight_ih_l0", "weight_hh_l0"))
def _recurrent(module: nn.RNNBase, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    """The state is as wide as the hidden units, or as their projection."""
    hidden = _kept_of_gates(cuts, module.hidden_size)
    state = _kept(cuts, 3, module.proj_size)
    return {
        "input_size": _kept(cuts, 1, module.input_size),
        "hidden_size": hidden,
        "proj_size": state if module.proj_size else 0,
    }


@register_module_update(nn.RNNCellBase, weights=("weight_ih", "weight_hh"))
def _recurrent_cell(module: nn.RNNCellBase, cuts: Mapping[int, Cut]) -> dict[str, Any]:
    return {"input_size": _kept(cuts, 1, module.input_size), "hidden_size": _kept_of_gates(cuts, module.hidden_size)}


def _kept_of_gates(cuts: Mapping[int, Cut], hidden: int) -> int:
    """Return how many hidden units are kept: every gate keeps the same number."""
    cut = cuts.get(0, cuts.get(2))
    return hidden if cut is None else len(cut.keep) * hidden // cut.size
