"""Reset or slice the state that an optimizer holds for parameters which changed shape."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer

from lightning_taylor_prune.errors import PlanError, PruningWarning
from lightning_taylor_prune.plan import Cut

OptimizerStateMode = Literal["reset", "slice"]


class HasSuccessor(Protocol):
    """A parameter whose place another one takes."""

    @property
    def new(self) -> Any:
        """The parameter that takes it."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """One parameter that changed shape.

    Attributes:
        old: The parameter before the cut.
        new: The parameter that takes its place.
        cuts: The axes that shrank, one cut per axis.
    """

    old: nn.Parameter
    new: nn.Parameter
    cuts: tuple[Cut, ...]

    def __post_init__(self) -> None:
        shape = list(self.old.shape)
        for cut in self.cuts:
            if shape[cut.dim] != cut.size:
                raise PlanError(f"{cut.tensor!r}: axis {cut.dim} is {shape[cut.dim]} long, not {cut.size}")
            shape[cut.dim] = len(cut.keep)
        if shape != list(self.new.shape):
            names = ", ".join(sorted({cut.tensor for cut in self.cuts}))
            raise PlanError(f"{names!r}: the cuts predict {shape}, the new one is {list(self.new.shape)}")


def next_state(optimizer: Optimizer, of: Mapping[int, Replacement], mode: str) -> dict[Any, Any]:
    """The whole of ``optimizer.state`` after the swap."""
    name = type(optimizer).__name__
    if mode == "slice" and isinstance(optimizer, LBFGS) and any(id(p) in of for p in optimizer._params):
        # One flat history over all parameters, whose past steps were taken in the larger space.
        if optimizer.state:
            _warn(f"{name}: its history cannot be sliced; all state was reset")
        mode = "reset"
    if mode == "slice":
        return dict(_slice_states(optimizer, of))
    return fresh_state(optimizer, of)


def fresh_state(optimizer: Optimizer, of: Mapping[int, HasSuccessor]) -> dict[Any, Any]:
    """Return the whole of ``optimizer.state`` after a swap with which the optimizer begins anew."""
    state = {}
    for group in optimizer.param_groups:
        for old in group["params"]:
            new = of[id(old)].new if id(old) in of else old
            state[new] = _constructor_state(optimizer, group, new)
    return {parameter: values for parameter, values in state.items() if values}


def restored_state(
    optimizer: Optimizer, of: Mapping[int, HasSuccessor], states: Mapping[str, Any], names: Mapping[int, str]
) -> dict[Any, Any]:
    """Return the whole of ``optimizer.state`` with what it was earlier.

    Args:
        optimizer: The optimizer.
        of: What takes the place of parameters, by identity.
        states: Its state then, by names of parameters, as :func:`state_on_cpu` returns each.
        names: Names of parameters by identity; the state of others is not changed.
    """
    found = {key: values for key, values in optimizer.state.items() if id(key) not in names}
    for group in optimizer.param_groups:
        on_device = bool(group.get("capturable") or group.get("fused"))
        for old in group["params"]:
            if (values := states.get(names.get(id(old), ""))) is not None:
                new = of[id(old)].new if id(old) in of else old
                # Optimizers count steps on the CPU, unless they run on the device as a whole.
                places = {key: None if key == "step" and not on_device else new.device for key in values}
                found[new] = {key: _mapped(v, partial(_copied, device=places[key])) for key, v in values.items()}
    return found


def state_on_cpu(state: Any) -> Any:
    """Return a copy of a piece of state, nested as it is, with its tensors on the CPU."""
    return _mapped(state, partial(_copied, device=torch.device("cpu")))


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    return copy.deepcopy(value)


def _copied(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    return tensor.detach().to(device or tensor.device, copy=True)


def _constructor_state(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """State that the class writes when it is built: only Adagrad's, whose older releases fail without it."""
    if not isinstance(optimizer, Adagrad):
        return {}
    initial = optimizer.defaults["initial_accumulator_value"]
    anew = Adagrad([parameter], initial_accumulator_value=initial, fused=group.get("fused"))
    state: dict[str, Any] = anew.state[parameter]
    return state


def _slice_states(optimizer: Optimizer, of: Mapping[int, Replacement]) -> Iterator[tuple[Any, Any]]:
    """Yield each parameter with its state, both of them new where the parameter was cut."""
    for parameter, values in optimizer.state.items():
        replacement = of.get(id(parameter))
        if replacement is None:
            yield parameter, values
            continue
        shape = replacement.old.shape
        misfits = {key: value for key, value in values.items() if not _follows(value, shape)}
        if not misfits:
            yield replacement.new, {key: _slice(value, replacement) for key, value in values.items()}
            continue
        _warn(
            f"{type(optimizer).__name__}: state of parameter {replacement.cuts[0].tensor!r} was reset, since "
            f"it cannot follow the cut from {list(shape)} to {list(replacement.new.shape)}: "
            + ", ".join(f"{key!r} ({_describe(value)})" for key, value in misfits.items())
        )
        if state := _partial_reset(optimizer, replacement):
            yield replacement.new, state


def _partial_reset(optimizer: Optimizer, replacement: Replacement) -> dict[str, Any]:
    """State for one parameter to start again with, while others keep theirs."""
    group = next((g for g in optimizer.param_groups if any(p is replacement.old for p in g["params"])), {})
    if isinstance(optimizer, SGD) and group.get("fused") and group.get("momentum"):
        # The fused kernel wants a momentum buffer for all parameters or for none.
        return {"momentum_buffer": torch.zeros_like(replacement.new, requires_grad=False)}
    return _constructor_state(optimizer, group, replacement.new)


def _follows(value: Any, shape: torch.Size) -> bool:
    """Whether state remains meaningful when axes of the parameter shrink.

    It does where it is a single number or plain data, and where every axis is the parameter's own or, as in
    factored moments, one long. Containers of tensors do not, even of a matching shape: such matrices, as in
    second-order methods, may run over the same axis twice.
    """
    if not isinstance(value, Tensor):
        return _is_plain(value)
    if value.numel() == 1:
        return True
    # A tensor subclass may lay its numbers out in its own way, for instance in quantized blocks.
    if type(value) not in (Tensor, nn.Parameter) or value.dim() != len(shape):
        return False
    return all(own in (1, size) for own, size in zip(value.shape, shape, strict=True))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device))


@torch.no_grad()
def _slice(value: Any, replacement: Replacement) -> Any:
    """The part of one piece of state that belongs to the kept channels."""
    if not isinstance(value, Tensor) or value.dim() != replacement.old.dim():
        return value
    sliced = value
    for cut in replacement.cuts:
        if value.shape[cut.dim] == cut.size:
            sliced = sliced.index_select(cut.dim, torch.tensor(cut.keep, device=value.device))
    if value.shape != replacement.old.shape:
        return sliced
    # Laid out as the parameter: fused kernels walk both in memory order and never compare strides.
    return torch.empty_like(replacement.new, dtype=value.dtype, device=value.device).copy_(sliced)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} {list(value.shape)}" if isinstance(value, Tensor) else kind


def _warn(message: str) -> None:
    warnings.warn(message, PruningWarning, stacklevel=2)
