"""Apply a plan: make parameters, buffers, gradients, attributes and optimizer state smaller, all or nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import PlanError, VerificationError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.rewrite import is_rewritten, rewrite_, rewritten, unrewrite_
from lightning_taylor_prune.modules.sizes import mark_sizes
from lightning_taylor_prune.modules.updates import AttributeUpdate, attribute_updates
from lightning_taylor_prune.plan import Cut, PruningPlan
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode, Replacement
from lightning_taylor_prune.pruning.optimizers import prepare_optimizer
from lightning_taylor_prune.pruning.record import keep_record
from lightning_taylor_prune.pruning.transaction import Step, Transaction
from lightning_taylor_prune.tracing.tensors import memory_format_of


def prune_(
    model: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[object] | object = (),
    optimizer_state: OptimizerStateMode = "reset",
) -> ChannelGroups:
    """Cut a network to a plan, in place; either all of it is done or nothing.

    Every tensor that shrinks becomes a new one with the same flags, attributes, hooks, dtype, device and memory
    format; modules keep their identity, mode and hooks. The network's own code is run without data at the new
    shapes before anything is changed.

    Args:
        model: The network that the plan was made for.
        plan: From :func:`~lightning_taylor_prune.pruning.select.select` or
            :meth:`~lightning_taylor_prune.groups.ChannelGroups.plan`.
        optimizers: Optimizers that hold the network's parameters.
        optimizer_state: ``"reset"`` clears the state of all their parameters; ``"slice"`` keeps the state of the
            channels that stay, bit for bit.

    Returns:
        The groups of the network as it is now, for the next plan.

    Raises:
        PlanError: The plan does not fit the network.
        VerificationError: The network's code contradicts the plan; nothing was changed.

    Example:
        >>> from lightning_taylor_prune import find_groups
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups = prune_(net, find_groups(net, torch.zeros(1, 3, 8, 8)).plan({"0": [1, 5]}))
        >>> net[0].out_channels, net[2].in_channels, groups["0"].num_channels
        (6, 6, 6)
    """
    refuse_wrappers(model)
    check_fit(model, plan)
    if not plan:
        return plan.groups
    if (divergence := plan.groups.verify(model, plan)) is not None:
        raise VerificationError(
            f"The plan cannot be carried out: {divergence.message}. Nothing was changed.", divergence
        )
    cut_tensors_(model, plan, optimizers, optimizer_state)
    return plan.groups.after(plan)


def cut_tensors_(
    model: nn.Module,
    plan: PruningPlan,
    optimizers: Sequence[object] | object = (),
    optimizer_state: OptimizerStateMode = "reset",
    copies: Sequence[nn.Module] = (),
    further_steps: Sequence[Step] = (),
) -> None:
    """Carry out a plan's cuts without running the network; all or nothing like :func:`prune_`.

    Args:
        model: The network.
        plan: The plan, already verified.
        optimizers: As in :func:`prune_`.
        optimizer_state: As in :func:`prune_`.
        copies: Networks of the same structure (moving averages) that are cut along.
        further_steps: What else belongs to the cut (a wrapper that holds the parameters), done last.
    """
    networks = [model, *copies]
    updates = [update for network in networks for update in _updates(network, plan)]
    cut = [[_smaller(_tensor(network, name), cuts) for name, cuts in plan.by_tensor()] for network in networks]
    parameters = [r for r in cut[0] if isinstance(r, Replacement)]
    several = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    swaps = [prepare_optimizer(optimizer, parameters, optimizer_state) for optimizer in several]
    transaction = Transaction()
    try:
        for network, replaced in zip(networks, cut, strict=True):
            _rewrite(network, plan, transaction)
            _move_tensors(network, replaced, transaction)
            _mark_sizes(network, plan, transaction)
            keep_record(network, plan.groups, transaction)
        for update in updates:
            transaction.set_attribute(update.module, update.name, update.value)
        for step in (*swaps, *further_steps):
            transaction.do(step.commit, step.rollback)
    except BaseException:
        transaction.undo()
        raise
    for network in networks:
        _forget_compiled(network)


@dataclass(frozen=True, eq=False)
class _BufferReplacement:
    old: Tensor
    new: Tensor


def refuse_wrappers(model: nn.Module) -> None:
    """Check that a network is not wrapped.

    Raises:
        PlanError: It is.
    """
    if type(model).__name__ in (
        "DistributedDataParallel",
        "DataParallel",
        "OptimizedModule",
        "FullyShardedDataParallel",
    ):
        raise PlanError(f"Expected the network itself, but got it wrapped in {type(model).__name__}; unwrap it first.")


def check_fit(model: nn.Module, plan: PruningPlan) -> None:
    """Check that every tensor of a plan exists and has the size that the plan starts from.

    Raises:
        PlanError: One does not.
    """
    for cut in plan.cuts:
        tensor = _tensor(model, cut.tensor)
        if tensor.dim() <= cut.dim or tensor.shape[cut.dim] != cut.size:
            raise PlanError(
                f"The plan expects `{cut.tensor}` to have {cut.size} positions on axis {cut.dim}, but its shape is "
                f"{tuple(tensor.shape)}. Was the network changed since the plan was made?"
            )


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError as error:
        raise PlanError(f"The plan names `{name}`, but the network has no module `{owner}`.") from error
    tensor = module._parameters.get(leaf, module._buffers.get(leaf))
    if tensor is None:
        raise PlanError(f"The plan names `{name}`, but the network has no such parameter or buffer.")
    return tensor


def _smaller(old: Tensor, cuts: tuple[Cut, ...]) -> Replacement | _BufferReplacement:
    """Build the new tensor of a parameter (with its gradient) or buffer."""
    data = take(old, cuts)
    if not isinstance(old, nn.Parameter):
        return _BufferReplacement(old, data.requires_grad_(old.requires_grad))
    new = nn.Parameter(data, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    if old.grad is not None:
        new.grad = take(old.grad, cuts)
    # The hook tables move as they are, so that handles which users hold still remove their hooks.
    if old._backward_hooks:
        new._backward_hooks = old._backward_hooks
    if old._post_accumulate_grad_hooks:
        new._post_accumulate_grad_hooks = old._post_accumulate_grad_hooks
    return Replacement(old, new, cuts)


@torch.no_grad()
def take(tensor: Tensor, cuts: Iterable[Cut]) -> Tensor:
    """Return the part of a tensor that stays, in the tensor's memory format."""
    part = tensor.detach()
    for cut in cuts:
        part = part.index_select(cut.dim, torch.tensor(cut.keep, device=tensor.device))
    return part.contiguous(memory_format=memory_format_of(tensor))


def _move_tensors(
    model: nn.Module, replaced: Sequence[Replacement | _BufferReplacement], transaction: Transaction
) -> None:
    """Put new tensors wherever modules hold the old ones: parameters, buffers, attributes, and containers in these."""
    move = _Move({id(r.old): r.new for r in replaced}, transaction)
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # its tensors belong to compiled code, and are locked
        for table in (module._parameters, module._buffers, module.__dict__):
            move.items_of(table)


class _Move:
    """Puts new tensors in the place of old ones, in containers of all kinds.

    Args:
        new: New tensors by the identity of the old ones.
        transaction: Where every step is noted.
    """

    def __init__(self, new: Mapping[int, Tensor], transaction: Transaction) -> None:
        self._new, self._transaction = new, transaction
        self._seen: set[int] = set()  # containers may hold themselves

    def items_of(self, table: MutableMapping[Any, Any] | MutableSequence[Any]) -> None:
        """Replace items of a container in place."""
        if id(table) in self._seen:
            return
        self._seen.add(id(table))
        for key, item in list(table.items() if isinstance(table, MutableMapping) else enumerate(table)):
            if (moved := self._moved(item)) is not item:
                self._transaction.set_item(table, key, moved)

    def _moved(self, value: Any) -> Any:
        """Return what takes the place of a value: containers that cannot be changed in place are made anew."""
        if isinstance(value, Tensor):
            return self._new.get(id(value), value)
        if isinstance(value, (dict, list, deque)):
            self.items_of(value)
        elif isinstance(value, (tuple, set, frozenset)):
            items = [self._moved(item) for item in value]
            if any(a is not b for a, b in zip(items, value, strict=True)):
                return value._make(items) if hasattr(value, "_make") else type(value)(items)
        return value


def _updates(network: nn.Module, plan: PruningPlan) -> list[AttributeUpdate]:
    """Return what modules hold of their sizes, by registered updates and by inference, as it must be after the plan."""
    structure, changes = plan.groups.structure, plan.groups.analysis.changes
    counts = structure.counts(plan.groups.kept_after(plan))
    with rewritten(network, changes.rewritten):
        return [*attribute_updates(network, plan.cuts), *changes.updates(network, structure, counts)]


def _rewrite(network: nn.Module, plan: PruningPlan, transaction: Transaction) -> None:
    """Give modules whose code holds sizes their generated `forward`."""
    for name in plan.groups.analysis.changes.rewritten:
        module = network.get_submodule(name)
        if not is_rewritten(module):
            transaction.do(partial(rewrite_, module), partial(unrewrite_, module))


def _mark_sizes(network: nn.Module, plan: PruningPlan, transaction: Transaction) -> None:
    """Note in each module which of its integers follow pruning, for checkpoints."""
    for rule in plan.groups.analysis.changes.size_rules:
        module = network.get_submodule(rule.module)
        transaction.change(module, partial(mark_sizes, module, [rule.path]))


def _forget_compiled(network: nn.Module) -> None:
    """Have compiled networks compiled anew after a cut: each would soon reach dynamo's limit on recompilations."""
    compiled = any(type(module).__name__ == "OptimizedModule" for module in network.modules())
    if compiled or getattr(network, "_compiler_ctx", None) is not None:
        torch._dynamo.reset()
