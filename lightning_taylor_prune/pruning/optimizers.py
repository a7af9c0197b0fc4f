"""Carry an optimizer across a cut: exchange its parameters, reset or slice its state.

The optimizer, its parameter groups and their lists remain the same objects, so that learning rate schedulers,
gradient scalers and the Trainer continue as before. :func:`prepare_optimizer` changes nothing and may raise; the
:class:`OptimizerSwap` that it returns can be committed and rolled back, neither of which can fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch.optim import LBFGS, Optimizer

from lightning_taylor_prune.errors import PruningError
from lightning_taylor_prune.pruning.optimizer_state import (
    HasSuccessor,
    OptimizerStateMode,
    Replacement,
    fresh_state,
    next_state,
    restored_state,
    state_on_cpu,
)


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
            an optimizer that has none of them is not changed.
        mode: ``"reset"`` clears the state of every parameter, also of uncut ones: the optimizer continues as if
            newly built, with the options that its groups have now. Of state that a class writes in its
            constructor, only :class:`torch.optim.Adagrad`'s is written anew. ``"slice"`` keeps the state of
            all kept channels bit for bit; where state does not follow the parameter's axes, that
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
    edits = _edits_of_parameters(reached, of)
    if not edits:
        return OptimizerSwap()
    edits += [_Edit(owner.state, dict(owner.state), next_state(owner, of, mode)) for owner in _owners(reached)]
    return _swap(edits, reached)


def states_of(optimizer: object, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return a copy on the CPU of the state of an optimizer, and of each that it drives, by names of parameters.

    Args:
        optimizer: As in :func:`prepare_optimizer`.
        names: Names of the parameters by identity; state of others is not copied.
    """
    owners = _owners(_reach(unwrap(optimizer)))
    return [{names[id(p)]: state_on_cpu(values) for p, values in o.state.items() if id(p) in names} for o in owners]


def prepare_restore(
    optimizer: object, of: Mapping[int, HasSuccessor], states: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> OptimizerSwap:
    """Compute an optimizer's way back to parameters and state that it had; nothing changes until that is committed.

    Options of its groups (learning rates) are not changed: schedulers go on from where they are.

    Args:
        optimizer: As in :func:`prepare_optimizer`.
        of: What takes the place of parameters, by identity.
        states: What :func:`states_of` returned. If that was for fewer optimizers, the others begin anew.
        names: Names of the parameters that the optimizer has now, by identity.
    """
    reached = list(_reach(unwrap(optimizer)))
    edits, owners = _edits_of_parameters(reached, of), _owners(reached)
    known = [*states, *[None] * (len(owners) - len(states))]
    edits += [
        _Edit(o.state, dict(o.state), fresh_state(o, of) if s is None else restored_state(o, of, s, names))
        for o, s in zip(owners, known, strict=False)
    ]
    return _swap(edits, reached)


def _edits_of_parameters(reached: Iterable[Any], of: Mapping[int, HasSuccessor]) -> list[_Edit]:
    return [_edit(item, of) for item in reached if not isinstance(item, Optimizer) and _holds(item, of)]


def _owners(reached: Iterable[Any]) -> list[Optimizer]:
    """Return the optimizers that have a state of their own: the inner one, reached later, where a wrapper shares it."""
    return list({id(item.state): item for item in reached if isinstance(item, Optimizer)}.values())


def _swap(edits: Sequence[_Edit], reached: Iterable[Any]) -> OptimizerSwap:
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


def _holds(container: Any, of: Mapping[int, HasSuccessor]) -> bool:
    """Whether an old parameter is directly in ``container``."""
    if isinstance(container, dict):
        return any(id(key) in of or id(value) in of for key, value in container.items())
    return any(id(item) in of for item in container)


def _edit(container: Any, of: Mapping[int, HasSuccessor]) -> _Edit:
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
