"""Whether a network can be what a checkpoint was pruned from; if so, it takes the checkpoint's sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from lightning_taylor_prune.modules.sizes import plain_objects
from lightning_taylor_prune.pruning.checkpoint import fit_shapes_, misfits_of, set_attributes_of, sizes_of
from lightning_taylor_prune.pruning.record import PruningRecord, Shapes, original_shapes, take_record
from lightning_taylor_prune.tracing.isolation import Snapshot
from lightning_taylor_prune.tracing.tensors import named_tensors


def fit_(module: nn.Module, shapes: Shapes, records: Sequence[PruningRecord], refused: Collection[str] = ()) -> None:
    """Give a network the sizes of a checkpoint that is about to be loaded into it, in place.

    Args:
        module: The network.
        shapes: Shapes of the tensors in the checkpoint.
        records: What the checkpoint tells beside them, under the same names.
        refused: Names of tensors that keep their shapes.

    Raises:
        PlanError: A record sets something else than an integer that follows pruning.
    """
    fit_shapes_(module, {name: shape for name, shape in shapes.items() if name not in refused})
    for record in records:
        set_attributes_of(module, record.attributes)
    for record in records:
        take_record(module, record)


def misfit_reasons(
    module: nn.Module, shapes: Shapes, records: Sequence[PruningRecord], larger: bool = False
) -> dict[str, str]:
    """Return the tensors of a checkpoint that pruning cannot have made from a network's, with the reason.

    What a record tells is compared exactly. Without one, only what modules of torch show by themselves is: the axes
    that pruning never cuts (kernels, rows of embeddings), that nothing grows, and that the weight, the bias and the
    statistics of one module go together.

    Args:
        module: The network, as its code builds it or pruned.
        shapes: Shapes of the tensors in the checkpoint.
        records: What the checkpoint tells beside them, under the same names.
        larger: Without a record, sizes may be larger than the network's, too.
    """
    now = sizes_of(module)
    before = original_shapes(module)
    reasons = {}
    for record in records:
        for name in record.original.keys() & shapes.keys() & now.keys():
            if reason := _contradiction(record, name, before[name], now[name], shapes[name]):
                reasons[name] = reason
    known = {name for record in records for name in record.original}
    misfits = {name: shape for name, shape in misfits_of(module, shapes).items() if name not in known}
    for name, shape in misfits.items():
        if reason := _impossible(module, name, now[name], shape, None if larger else before[name]):
            reasons[name] = reason
    after = {**now, **{name: shape for name, shape in shapes.items() if name in now}}
    for name in misfits.keys() - reasons.keys():
        if (other := _partner_of_another_size(module, name, after)) is not None:
            reasons[name] = f"its {_text(after[name])} does not go together with {_text(after[other])} of `{other}`"
    return reasons


def _contradiction(
    record: PruningRecord, name: str, before: tuple[int, ...], now: tuple[int, ...], found: tuple[int, ...]
) -> str | None:
    """Return what a record has against a tensor."""
    original = record.original[name]
    if found != now and before != original:
        return f"it had shape {_text(original)} before it was pruned, and the network's has {_text(before)}"
    if found != record.shapes.get(name, found):
        return f"its shape is {_text(found)}, but it was saved with {_text(record.shapes[name])}"
    return None


def _impossible(
    module: nn.Module, name: str, now: tuple[int, ...], shape: tuple[int, ...], most: tuple[int, ...] | None
) -> str | None:
    """Return why pruning cannot make a shape from a network's."""
    owner, _, leaf = name.rpartition(".")
    cut = _axes_that_pruning_cuts(module.get_submodule(owner), leaf)
    fixed = [axis for axis in range(len(shape)) if cut is not None and axis not in cut]
    if any(shape[axis] != now[axis] for axis in fixed):
        return f"its shape is {_text(shape)}, the network's {_text(now)}, and pruning never changes axis {fixed[0]}"
    if most is not None and any(size > limit for size, limit in zip(shape, most, strict=True)):
        return f"its shape is {_text(shape)}, and pruning only makes the network's {_text(now)} smaller"
    return f"its shape is {_text(shape)}, and pruning keeps a channel at least" if 0 in shape else None


def _text(shape: tuple[int, ...]) -> str:
    return str(list(shape))


_CUT_AXES: Mapping[type[nn.Module], tuple[int, ...]] = {
    _ConvNd: (0, 1),
    nn.Embedding: (1,),
    nn.EmbeddingBag: (1,),
}
"""Axes of the weight of a module along which pruning can cut it, where that is not all of them."""


def _axes_that_pruning_cuts(module: nn.Module, leaf: str) -> tuple[int, ...] | None:
    if leaf != "weight":
        return None
    return next((axes for cls, axes in _CUT_AXES.items() if isinstance(module, cls)), None)


def _partner_of_another_size(module: nn.Module, name: str, shapes: Shapes) -> str | None:
    """Return a tensor of the same module whose channels are not as many as those of a tensor."""
    owner = name.rpartition(".")[0]
    holder, before = module.get_submodule(owner), owner + "." if owner else ""
    sizes = {
        before + other: shapes[before + other][axis]
        for other, axis in _channel_axes(holder).items()
        if before + other in shapes
    }
    return next((other for other, size in sizes.items() if name in sizes and size != sizes[name]), None)


def _channel_axes(module: nn.Module) -> dict[str, int]:
    """Return the axis along which tensors of a module have its channels, by name."""
    if isinstance(module, _ConvTransposeNd):
        return {"weight": 1, "bias": 0} if module.groups == 1 else {}
    if isinstance(module, (_ConvNd, nn.Linear)):
        return {"weight": 0, "bias": 0}
    if isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    return {}


@contextlib.contextmanager
def unchanged_on_failure(module: nn.Module, shapes: Shapes) -> Iterator[None]:
    """Put a network back as it was if loading into it fails: tensors and their values, integers, generated code.

    Args:
        module: The network.
        shapes: Shapes of the tensors in the checkpoint. Tensors of other shapes are replaced, not overwritten.
    """
    snapshot, classes = Snapshot(module), [(part, type(part)) for part in module.modules()]
    objects = [(held, dict(vars(held))) for part in module.modules() for held in plain_objects(part).values()]
    overwritten = [t for n, t in named_tensors(module) if not is_lazy(t) and shapes.get(n) == tuple(t.shape)]
    values = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in overwritten]
    try:
        yield
    except BaseException:
        for part, cls in classes:
            part.__class__ = cls
        snapshot.restore()
        for held, attributes in objects:
            vars(held).clear()
            vars(held).update(attributes)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise


def shapes_in(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a state dict whose names begin with a prefix, without it."""
    found = {name: value for name, value in state_dict.items() if name.startswith(prefix) and hasattr(value, "shape")}
    return {name.removeprefix(prefix): tuple(value.shape) for name, value in found.items()}
