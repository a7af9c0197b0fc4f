"""Carry an optimizer across a cut: exchange its parameters, reset or slice its state.

The optimizer, its parameter groups and their lists stay the same objects, so that learning rate schedulers,
gradient scalers and the Trainer go on as before. :func:`prepare_optimizer` changes nothing and may raise; the
:class:`OptimizerSwap` that it returns can be committed and rolled back, neither of which can fail.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer

from lightning_taylor_prune.errors import PlanError, PruningError, PruningWarning
from lightning_taylor_prune.plan import Cut

OptimizerStateMode = Literal["reset", "slice"]


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


@dataclass(frozen=True, eq=False)
class _Edit:
    """New content for one list, dict or set."""

    holder: Any
    before: Any
    after: Any


@dataclass(frozen=True, eq=False)
class OptimizerSwap:
    """An optimizer's move to new parameters, computed in full and not yet made.

    Attributes:
        edits: What changes in the containers that hold parameters or state.
        lbfgs: L-BFGS optimizers, which remember how many numbers they optimize.
    """

    edits: tuple[_Edit, ...] = ()
    lbfgs: tuple[LBFGS, ...] = ()

    def commit(self) -> None:
        """Put the new parameters and their state in place."""
        for edit in self.edits:
            _write(edit.holder, edit.after)
        self._forget_sizes()

    def rollback(self) -> None:
        """Put the old parameters and state back, the same objects in the same order."""
        for edit in self.edits:
            _write(edit.holder, edit.before)
        self._forget_sizes()

    def _forget_sizes(self) -> None:
        for optimizer in self.lbfgs:
            optimizer._numel_cache = None


def prepare_optimizer(
    optimizer: object, replacements: Sequence[Replacement], mode: OptimizerStateMode = "reset"
) -> OptimizerSwap:
    """Compute an optimizer's move to new parameters; nothing changes until the result is committed.

    Args:
        optimizer: A torch optimizer, or a wrapper with one in its attribute ``optimizer``. Optimizers that
            it drives in turn are carried along.
        replacements: The parameters that changed shape. Those that are not in the optimizer are ignored, and
            an optimizer that has none of them is left alone.
        mode: ``"reset"`` clears the state of every parameter, also of uncut ones: the optimizer goes on as if
            newly built, with the options that its groups have now. Of state that a class writes in its
            constructor, only :class:`torch.optim.Adagrad`'s is written anew. ``"slice"`` keeps the state of
            all channels that stay bit for bit; where state does not follow the parameter's axes, that
            parameter's state is reset, with a warning.

    Returns:
        The swap, to be committed or dropped.

    Raises:
        PruningError: The optimizer holds parameters in a way that cannot be followed.
    """
    if mode not in get_args(OptimizerStateMode):
        raise ValueError(f"mode must be one of {get_args(OptimizerStateMode)}, not {mode!r}")
    of = {id(replacement.old): replacement for replacement in replacements}
    reached = list(_reach(unwrap(optimizer)))
    edits = [_edit(item, of) for item in reached if not isinstance(item, Optimizer) and _holds(item, of)]
    if not edits:
        return OptimizerSwap()
    # A wrapper may share its state with the optimizer that it drives: the inner one, reached later, decides.
    owners = {id(item.state): item for item in reached if isinstance(item, Optimizer)}.values()
    edits += [_Edit(owner.state, dict(owner.state), _next_state(owner, of, mode)) for owner in owners]
    return OptimizerSwap(tuple(edits), tuple(item for item in reached if isinstance(item, LBFGS)))


def unwrap(optimizer: object) -> Optimizer:
    """Return the optimizer that owns the parameter groups.

    Lightning's wrappers take on the class of what they wrap, so that ``isinstance`` cannot tell; but they
    have no parameter groups of their own.

    Raises:
        PruningError: There is no torch optimizer inside.
    """
    while not (isinstance(optimizer, Optimizer) and "param_groups" in vars(optimizer)):
        if not hasattr(optimizer, "optimizer"):
            break
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise PruningError(f"{type(optimizer).__name__} is no torch optimizer and wraps none")
    return optimizer


def _reach(root: Optimizer) -> Iterator[Any]:
    """Yield every optimizer and every container that ``root`` reaches, each once; state aside.

    Raises:
        PruningError: One of the optimizers shards its parameters over ranks.
    """
    seen: dict[int, Any] = {}
    pending: list[Any] = [root]
    while pending:
        item = pending.pop()
        if id(item) in seen or not isinstance(item, (Optimizer, dict, list, tuple, set, frozenset)):
            continue
        seen[id(item)] = item
        if isinstance(item, Optimizer):
            _refuse_sharded(item)
            seen[id(item.state)] = item.state
            pending.append(vars(item))
        else:
            pending.extend(item.values() if isinstance(item, dict) else item)
        yield item


def _refuse_sharded(optimizer: Optimizer) -> None:
    """Raise where each rank owns only part of the parameters, in caches that are built once."""
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise PruningError(
            f"{type(optimizer).__name__} divides parameters among ranks by their size when it is built and "
            "cannot follow a change of shape; use the optimizer that it wraps"
        )


def _holds(container: Any, of: Mapping[int, Replacement]) -> bool:
    """Whether an old parameter is directly in ``container``."""
    if isinstance(container, dict):
        return any(id(key) in of or id(value) in of for key, value in container.items())
    return any(id(item) in of for item in container)


def _edit(container: Any, of: Mapping[int, Replacement]) -> _Edit:
    """New parameters in place of old ones, in the same order."""

    def new(item: Any) -> Any:
        return of[id(item)].new if id(item) in of else item

    if isinstance(container, dict):
        return _Edit(container, dict(container), {new(key): new(value) for key, value in container.items()})
    if isinstance(container, (list, set)):
        return _Edit(container, list(container), [new(item) for item in container])
    raise PruningError(
        f"the optimizer holds parameters in a {type(container).__name__}, which cannot be changed in place; "
        "hold them in a list"
    )


def _write(holder: Any, content: Any) -> None:
    if isinstance(holder, list):
        holder[:] = content
    else:
        holder.clear()
        holder.update(content)


def _next_state(optimizer: Optimizer, of: Mapping[int, Replacement], mode: str) -> dict[Any, Any]:
    """The whole of ``optimizer.state`` after the swap."""
    name = type(optimizer).__name__
    if mode == "slice" and isinstance(optimizer, LBFGS) and any(id(p) in of for p in optimizer._params):
        # One flat history over all parameters, whose past steps were taken in the larger space.
        if optimizer.state:
            _warn(f"{name}: its history cannot be sliced; all state was reset")
        mode = "reset"
    if mode == "slice":
        return dict(_slice_states(optimizer, of))
    state = {}
    for group in optimizer.param_groups:
        for old in group["params"]:
            new = of[id(old)].new if id(old) in of else old
            state[new] = _constructor_state(optimizer, group, new)
    return {parameter: values for parameter, values in state.items() if values}


def _constructor_state(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """State that the class writes when it is built: only Adagrad's, whose older releases fail without it."""
    if not isinstance(optimizer, Adagrad):
        return {}
    initial = optimizer.defaults["initial_accumulator_value"]
    return Adagrad([parameter], initial_accumulator_value=initial, fused=group.get("fused")).state[parameter]


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
    """Whether state stays meaningful when axes of the parameter shrink.

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
    """The part of one piece of state that belongs to the channels that stay."""
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
