"""Arguments and networks that differ from those of the run before: each does what is expected, or is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_taylor_prune.pruning.checkpoint import shapes_of
from lightning_taylor_prune.pruning.layers import Layers

if TYPE_CHECKING:
    from lightning_taylor_prune.callbacks.resume import ResumablePruning

_STATE = {"kept", "original", "intervals", "stop_reason"}
"""Keys by which a callback's state in a checkpoint is known as one of this package."""


def arguments_of(callback: ResumablePruning) -> dict[str, Any]:
    """Return what a checkpoint must know of a callback's arguments, as plain data."""
    limits = callback.settings.constraints
    return {
        "target": callback.target,
        "rewrite_hard_coded": callback.settings.rewrite_hard_coded,
        "schedule": [callback.every_n_steps, callback.start_step],
        "limits": {
            "max_prunes": callback.max_prunes,
            "min_channels": limits.min_channels,
            "max_pruning_ratio": _ratios(limits.max_pruning_ratio),
            "round_to": limits.round_to,
            "exclude": sorted(map(_layers, limits.exclude)),
            "include": None if limits.include is None else sorted(map(_layers, limits.include)),
            "stop_at": dict(limits.stop_at or {}),
            **callback.further_limits,
        },
    }


def _layers(named: Layers) -> str:
    return named if isinstance(named, str) else f"{named.__module__}.{named.__qualname__}"


def _ratios(ratio: float | Mapping[Layers, float]) -> float | dict[str, float]:
    return {_layers(named): r for named, r in ratio.items()} if isinstance(ratio, Mapping) else ratio


def has_other(state: Mapping[str, Any], callback: ResumablePruning, name: str) -> bool:
    """Whether a checkpoint's state was written with other arguments of some kind (see :func:`arguments_of`)."""
    before, now = state.get("arguments"), arguments_of(callback)[name]
    if before is None:
        return False
    known = before[name]  # an earlier version does not know every argument
    return ({**now, **known} if isinstance(now, dict) else known) != now  # type: ignore[no-any-return]


def resume_with_other_arguments(callback: ResumablePruning, state: Mapping[str, Any]) -> None:
    """Have a callback go on from a checkpoint that was written with other arguments.

    Pruning that had ended goes on under other limits. A network that was cut with ``rewrite_hard_coded``, or without,
    needs the same again.
    """
    if callback.stop_reason is not None and has_other(state, callback, "limits"):
        rank_zero_info(f"Pruning had ended ({callback.stop_message}), and goes on under other limits.")
        callback.stop_reason = callback.stop_message = None
    if has_other(state, callback, "rewrite_hard_coded") and state["history"]:
        before = state["arguments"]["rewrite_hard_coded"]
        rank_zero_warn(f"`rewrite_hard_coded={before}` remains, as the checkpoint's network was pruned so.")
        callback.settings = replace(callback.settings, rewrite_hard_coded=before)


def state_of_renamed(
    callback: ResumablePruning, trainer: Trainer, checkpoint: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Return the callback's state from a checkpoint that has it under another name; ``None`` if it has none.

    Raises:
        MisconfigurationException: The checkpoint's network was pruned at another target.
    """
    states = checkpoint.get("callbacks", {})
    if callback.state_key in states:
        return None
    claimed = {other.state_key for other in trainer.callbacks}  # type: ignore[attr-defined]
    free = [s for key, s in states.items() if key not in claimed and isinstance(s, Mapping) and s.keys() >= _STATE]
    targets = [state.get("arguments", {}).get("target") for state in free]
    if callback.target in targets:
        found: Mapping[str, Any] = free[targets.index(callback.target)]
        return found
    if any(state["history"] for state in free) and trainer.state.fn == "fit":
        raise MisconfigurationException(
            f"Expected `target` to be {' or '.join(map(repr, targets))}, at which the checkpoint's network was "
            f"pruned, but got {callback.target!r}. Resume with that target, or begin anew from `load_pruned`."
        )
    return None


def refuse_overlap(callback: ResumablePruning, trainer: Trainer, pl_module: LightningModule) -> None:
    """Check that no other callback of the Trainer prunes part of the same network.

    Raises:
        MisconfigurationException: One does.
    """
    own = {id(parameter) for parameter in _targeted(pl_module, callback.target).parameters()}
    for other in others_of(callback, trainer):
        network = _targeted(pl_module, other.target)
        if any(id(parameter) in own for parameter in network.parameters()):
            raise MisconfigurationException(
                f"Expected callbacks that prune different parts of {type(pl_module).__name__}, but those with "
                f"`target={callback.target!r}` and `target={other.target!r}` have layers in common. Give each a "
                "submodule of its own, or use one callback."
            )


def others_of(callback: ResumablePruning, trainer: Trainer) -> Iterator[ResumablePruning]:
    """Yield the other callbacks of a Trainer that prune."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if other is not callback and hasattr(other, "pruner") and hasattr(other, "target"):
            yield other


def _targeted(pl_module: LightningModule, target: str | None) -> nn.Module:
    named = dict(pl_module.named_modules(remove_duplicate=False))
    return pl_module if target is None else named.get(target, nn.Module())


Structure = tuple[dict[str, type[nn.Module]], dict[str, list[int]]]


def structure_of(model: nn.Module) -> Structure:
    """Return the class of every module and the shape of every tensor: what must not change between two trainings."""
    return {name: type(module) for name, module in model.named_modules()}, shapes_of(model)
