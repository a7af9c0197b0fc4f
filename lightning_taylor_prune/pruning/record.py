"""What the state dicts of a pruned network tell beside its tensors: what it was before, and integers that it holds.

The record lies in the metadata of the state dict (``state_dict._metadata``, where torch keeps the versions of modules),
so that it goes wherever the state dict goes: into ``torch.save``, Lightning's checkpoints, and back by
``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lightning_taylor_prune.errors import PlanError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.checkpoint import KEY, attributes_of, sizes_of
from lightning_taylor_prune.pruning.transaction import Transaction
from lightning_taylor_prune.tracing.tensors import named_tensors

Shapes = Mapping[str, tuple[int, ...]]
Axes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PruningRecord:
    """What a checkpoint tells of a pruned network beside its tensors.

    Attributes:
        attributes: Integers that modules hold, by module and path.
        original: Shapes of parameters and buffers before anything was removed.
        shapes: Their shapes when this was written.
        prunable: Axes along which they can lose channels.
    """

    attributes: Mapping[str, Mapping[str, Any]]
    original: Shapes
    shapes: Shapes
    prunable: Axes

    def moved(self, source: str, target: str) -> PruningRecord:
        """Return what concerns a module, under another name of that module; ``""`` is the network itself."""
        renamed = partial(_renamed, source=source, target=target)
        return PruningRecord(*map(renamed, (self.attributes, self.original, self.shapes, self.prunable)))

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        tables = {"original": self.original, "shapes": self.shapes, "prunable": self.prunable}
        plain = {key: {name: list(sizes) for name, sizes in table.items()} for key, table in tables.items()}
        return {"attributes": dict(self.attributes), **plain}

    @staticmethod
    def from_data(data: Any) -> PruningRecord:
        """Read what :meth:`as_data` returned; what is not there is unknown.

        Raises:
            PlanError: The data were damaged or edited.
        """
        if not isinstance(data, Mapping) or not all(_is_table(data.get(key, {})) for key in _TABLES):
            raise PlanError(
                f"Expected `{KEY}` in the checkpoint to hold tables of integers by name, as they were saved, but got "
                f"{str(data)[:80]!r}. It was damaged or edited; save it again."
            )
        if not all(_is_shape(shape) for key in _TABLES[1:] for shape in data.get(key, {}).values()):
            raise PlanError(f"Expected shapes in `{KEY}` of the checkpoint. It was damaged or edited; save it again.")
        if not all(_is_table(values) for values in data.get("attributes", {}).values()):
            raise PlanError(f"Expected names in `{KEY}` of the checkpoint. It was damaged or edited; save it again.")
        shapes = [{name: tuple(s) for name, s in data.get(key, {}).items()} for key in _TABLES[1:]]
        return PruningRecord(data.get("attributes", {}), *shapes)


_TABLES = ("attributes", "original", "shapes", "prunable")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(size) is int and size >= 0 for size in value)


def _renamed(table: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """Return the entries for a module, and for what lies below it, under another name of that module."""
    below, found = f"{source}." if source else "", {}
    for name, value in table.items():
        if name == source or name.startswith(below):
            found[".".join(filter(None, (target, name[len(source) :].removeprefix("."))))] = value
    return found


class StateDictRecord:
    """Hook of a pruned network that writes a record into the metadata of its state dicts.

    Args:
        original: Shapes before anything was removed.
        prunable: Axes along which they can lose channels.
    """

    def __init__(self, original: Shapes, prunable: Axes) -> None:
        self.original, self.prunable = original, prunable

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
        """Write the record of a module."""
        local_metadata[KEY] = self.of(module).as_data()

    def of(self, module: nn.Module) -> PruningRecord:
        """Return the record of a module as it is now."""
        shapes = sizes_of(module)
        original = {
            name: _before(self.original[name], shape, self.prunable.get(name, ()))
            for name, shape in shapes.items()
            if name in self.original and len(self.original[name]) == len(shape)
        }
        attributes, prunable = attributes_of(module), {n: a for n, a in self.prunable.items() if n in original}
        return PruningRecord(attributes, original, {name: shapes[name] for name in original}, prunable)

    def __deepcopy__(self, memo: Any) -> StateDictRecord:
        """Go on in copies of the network."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Become nothing in a pickle of the network: that must be readable where this package is not installed."""
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes any arguments and returns None


def _before(original: tuple[int, ...], now: tuple[int, ...], prunable: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor before anything was removed, which the user may have replaced since then."""
    return tuple(o if a in prunable and n <= o else n for a, (o, n) in enumerate(zip(original, now, strict=True)))


def hook_of(module: nn.Module) -> StateDictRecord | None:
    """Return the hook that writes a module's record, if it has been pruned."""
    hooks = vars(module).get("_state_dict_hooks", {}).values()
    return next((hook for hook in hooks if isinstance(hook, StateDictRecord)), None)


def record_of(module: nn.Module) -> dict[str, Any]:
    """Return what a checkpoint of a network is to tell beside its tensors, as plain data."""
    hook = hook_of(module)
    return {"attributes": attributes_of(module)} if hook is None else hook.of(module).as_data()


def keep_record(network: nn.Module, groups: ChannelGroups, transaction: Transaction) -> None:
    """Have a network that is about to be cut write records from now on.

    Args:
        network: The network, or a copy of it.
        groups: Its groups, whether some of its channels have been removed before or not.
        transaction: Where this is noted.
    """
    original, prunable = _original_shapes(network, groups), _prunable_axes(network, groups)
    if (known := hook_of(network)) is not None:
        original = {**original, **known.original}
        prunable = {n: tuple({*prunable.get(n, ()), *known.prunable.get(n, ())}) for n in original}
        transaction.do(partial(_set, known, original, prunable), partial(_set, known, known.original, known.prunable))
    else:
        hook = StateDictRecord(original, prunable)
        transaction.do(partial(network.register_state_dict_post_hook, hook), partial(_remove, network, hook))


def take_record(network: nn.Module, record: PruningRecord) -> None:
    """Have a network write the record that it was loaded with."""
    if not record.original:
        return
    if (known := hook_of(network)) is not None:
        _set(known, {**known.original, **record.original}, {**known.prunable, **record.prunable})
    else:
        network.register_state_dict_post_hook(StateDictRecord(record.original, record.prunable))


def _set(hook: StateDictRecord, original: Shapes, prunable: Axes) -> None:
    hook.original, hook.prunable = original, prunable


def _remove(network: nn.Module, hook: StateDictRecord) -> None:
    hooks = network._state_dict_hooks
    for key in [key for key, value in hooks.items() if value is hook]:
        del hooks[key]


def _original_shapes(network: nn.Module, groups: ChannelGroups) -> dict[str, tuple[int, ...]]:
    before = groups.unpruned().shapes
    return {**before, **{name: before[first] for name, first in _aliases(network).items() if first in before}}


def _prunable_axes(network: nn.Module, groups: ChannelGroups) -> dict[str, tuple[int, ...]]:
    axes: dict[str, set[int]] = {}
    for number in {number for group in groups for number in groups.axes_of(group)}:
        axis = groups.structure.propagation.axes[number]
        axes.setdefault(axis.tensor, set()).add(axis.dim)
    found = {name: tuple(sorted(dims)) for name, dims in axes.items()}
    return {**found, **{name: found[first] for name, first in _aliases(network).items() if first in found}}


def _aliases(network: nn.Module) -> dict[str, str]:
    """Return the first name of every tensor that has several, by its other names."""
    first: dict[int, str] = {}
    named = named_tensors(network)
    return {name: known for name, tensor in named if (known := first.setdefault(id(tensor), name)) != name}


def original_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a network had before anything was removed from it, or has if nothing was."""
    shapes = sizes_of(module)
    for name, part in module.named_modules(remove_duplicate=False):
        if (hook := hook_of(part)) is not None:
            shapes |= hook.of(part).moved("", name).original
    return shapes


def records_of(state_dict: Any) -> list[PruningRecord]:
    """Return the records in the metadata of a state dict, under the names that its tensors have in it.

    Raises:
        PlanError: One was damaged or edited.
    """
    metadata = getattr(state_dict, "_metadata", None) or {}
    found = {name: own[KEY] for name, own in metadata.items() if isinstance(own, Mapping) and KEY in own}
    return [PruningRecord.from_data(data).moved("", name) for name, data in found.items()]
