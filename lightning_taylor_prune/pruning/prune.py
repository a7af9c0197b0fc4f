"""Apply a plan: make parameters, buffers, gradients, attributes and optimizer state smaller, all or nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import PlanError, VerificationError
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import is_inside
from lightning_taylor_prune.modules.rewrite import is_rewritten, rewrite_, rewritten, unrewrite_
from lightning_taylor_prune.modules.sizes import mark_sizes
from lightning_taylor_prune.modules.updates import AttributeUpdate, attribute_updates
from lightning_taylor_prune.plan import Cut, PruningPlan
from lightning_taylor_prune.pruning.holders import Copy
from lightning_taylor_prune.pruning.move import BufferReplacement, Move, successor, take
from lightning_taylor_prune.pruning.optimizer_state import OptimizerStateMode, Replacement
from lightning_taylor_prune.pruning.optimizers import prepare_optimizer
from lightning_taylor_prune.pruning.record import keep_record
from lightning_taylor_prune.pruning.transaction import Step, Transaction


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
    copies: Sequence[Copy] = (),
    holders: Sequence[object] = (),
    further_steps: Sequence[Step] = (),
) -> None:
    """Carry out a plan's cuts without running the network; all or nothing like :func:`prune_`.

    Args:
        model: The network.
        plan: The plan, already verified.
        optimizers: As in :func:`prune_`.
        optimizer_state: As in :func:`prune_`.
        copies: What has tensors for those of the network one by one (moving averages) and is cut along.
        holders: Objects beside the network that may hold its parameters, as attributes or in containers.
        further_steps: What else belongs to the cut (a wrapper that holds the parameters), done last.
    """
    copied = [(copy.module, copy.prefix) for copy in copies if copy.module is not None]
    networks = [(model, ""), *copied]
    updates = [update for network, prefix in networks for update in _updates(network, prefix, plan)]
    cut = [_smaller(_tensor(model, name), cuts) for name, cuts in plan.by_tensor()]
    cut += [_smaller(tensor, cuts) for copy in copies for tensor, cuts in _cuts_of(copy, model, plan)]
    parameters = [r for r in cut if isinstance(r, Replacement)]
    several = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    swaps = [prepare_optimizer(optimizer, parameters, optimizer_state) for optimizer in several]
    with Transaction() as transaction:
        for network, prefix in networks:
            _rewrite(network, prefix, plan, transaction)
        move = Move({id(r.old): r for r in cut}, transaction)
        move.everywhere([network for network, _ in networks], [*(copy.holder for copy in copies), *holders])
        for network, prefix in networks:
            _cut_made(network, prefix, plan, transaction)
            _mark_sizes(network, prefix, plan, transaction)
            if not prefix:
                keep_record(network, plan.groups, transaction)
        for update in updates:
            transaction.set_attribute(update.module, update.name, update.value)
        transaction.do_all([*swaps, *further_steps])
    for network, _ in networks:
        forget_compiled(network)


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


def _smaller(old: Tensor, cuts: tuple[Cut, ...]) -> Replacement | BufferReplacement:
    """Build the new tensor of a parameter (with its gradient) or buffer."""
    data = take(old, cuts)
    if not isinstance(old, nn.Parameter):
        return BufferReplacement(old, data.requires_grad_(old.requires_grad), cuts)
    new = successor(old, data)
    if old.grad is not None:
        new.grad = take(old.grad, cuts)
    return Replacement(old, new, cuts)


def _cuts_of(copy: Copy, model: nn.Module, plan: PruningPlan) -> Iterator[tuple[Tensor, tuple[Cut, ...]]]:
    """Yield the tensors of a copy that shrink, each once, with their cuts: those of the network's tensors."""
    by_identity = {id(_tensor(model, name)): cuts for name, cuts in plan.by_tensor()}
    seen: set[int] = set()
    for name, tensor in copy.tensors.items():
        cuts = by_identity.get(id(_tensor(model, name)))
        if cuts is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor, cuts


def _cut_made(network: nn.Module, prefix: str, plan: PruningPlan, transaction: Transaction) -> None:
    """Give weights that hooks make of parameters the new sizes: users may read them before the next forward pass."""
    cuts: dict[str, list[Cut]] = {}
    for cut in plan.groups.cuts_of_made(plan):
        if not prefix or is_inside(cut.tensor, prefix):
            cuts.setdefault(cut.tensor[len(prefix) + 1 :] if prefix else cut.tensor, []).append(cut)
    for name, several in cuts.items():
        owner, _, leaf = name.rpartition(".")
        attributes = vars(network.get_submodule(owner))
        old = attributes.get(leaf)
        if isinstance(old, Tensor) and all(old.dim() > c.dim and old.shape[c.dim] == c.size for c in several):
            transaction.set_item(attributes, leaf, take(old, several))


def _updates(network: nn.Module, prefix: str, plan: PruningPlan) -> list[AttributeUpdate]:
    """Return what modules hold of their sizes, by registered updates and by inference, as it must be after the plan."""
    structure, changes = plan.groups.structure, plan.groups.analysis.changes.inside(prefix)
    counts = structure.counts(plan.groups.kept_after(plan))
    with rewritten(network, changes.rewritten):
        return [*attribute_updates(network, _inside(plan, prefix)), *changes.updates(network, structure, counts)]


def _inside(plan: PruningPlan, prefix: str) -> Iterator[Cut]:
    """Yield the cuts of tensors in a submodule, by their names in it, by each of them where they have several."""
    if not prefix:
        yield from plan.cuts
        return
    tensors = plan.groups.structure.propagation.traces[0].tensors
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if is_inside(name, prefix):
            names.setdefault(id(tensor), []).append(name[len(prefix) + 1 :])
    for cut in plan.cuts:
        for name in names.get(id(tensors[cut.tensor]), ()):
            yield replace(cut, tensor=name)


def _rewrite(network: nn.Module, prefix: str, plan: PruningPlan, transaction: Transaction) -> None:
    """Give modules whose code holds sizes their generated `forward`."""
    for name in plan.groups.analysis.changes.inside(prefix).rewritten:
        module = network.get_submodule(name)
        if not is_rewritten(module):
            transaction.do(partial(rewrite_, module), partial(unrewrite_, module))


def _mark_sizes(network: nn.Module, prefix: str, plan: PruningPlan, transaction: Transaction) -> None:
    """Note in each module which of its integers follow pruning, for checkpoints."""
    for rule in plan.groups.analysis.changes.inside(prefix).size_rules:
        module = network.get_submodule(rule.module)
        transaction.change(module, partial(mark_sizes, module, [rule.path]))


def forget_compiled(network: nn.Module) -> None:
    """Have compiled networks compiled anew after a cut: each would soon reach dynamo's limit on recompilations."""
    if any(_is_compiled(module) for module in network.modules()):
        torch._dynamo.reset()


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled: wrapped, in place, by Lightning, or its `forward` alone."""
    forward = vars(module).get("forward") or inspect.getattr_static(type(module), "forward", None)
    compiled_forward = hasattr(forward, "_torchdynamo_orig_callable")
    by_lightning = getattr(module, "_compiler_ctx", None) is not None
    in_place = vars(module).get("_compiled_call_impl") is not None
    return compiled_forward or by_lightning or in_place or type(module).__name__ == "OptimizedModule"
