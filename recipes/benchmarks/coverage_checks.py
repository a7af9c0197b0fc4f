"""The checks of a coverage run: the network's outputs and gradients, a mask to compare with, and an export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune import select
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.tensors import find_tensors
from recipes.benchmarks.coverage_models import Built

RATIO = 0.5
"""Share of every group's units that is removed."""

FLOAT64_PARAMS = 50_000_000
"""Networks of more parameters are compared in float32."""


def prepared(built: Built) -> Built:
    """Fill what starts out constant (normalisations, zeroed branches, layer scales), and choose a precision.

    Otherwise a wrong cut could hide behind zeros and ones. Tensors without a shape or of integers do not change.
    """
    model = built.model.train()
    generator = torch.Generator().manual_seed(0)
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "running_" in n)]
    with torch.no_grad():
        for name, tensor in named:
            if tensor.is_floating_point() and tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
                _fill_(name, tensor, generator)
    small = sum(p.numel() for p in model.parameters()) < FLOAT64_PARAMS
    dtype = built.dtype or (torch.float64 if small else torch.float32)
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (built.args, dict(built.kwargs))
    )
    return replace(built, model=model.to(dtype), args=args, kwargs=kwargs)


def _fill_(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Positive values around 1 for scales, small ones of both signs for the rest."""
    noise = torch.rand(tensor.shape, generator=generator)
    if tensor.dim() > 1:
        tensor.copy_((noise - 0.5) * (12 / max(tensor[0].numel(), 1)) ** 0.5)
    elif name.endswith(("bias", "running_mean")):
        tensor.copy_(noise - 0.3)
    else:
        tensor.copy_(noise + 0.5)


def evaluate(built: Built) -> list[Tensor]:
    """Return all tensors that come out in evaluation mode, with a fixed random state."""
    return evaluate_parts(built, [Call("", built.args, built.kwargs)])


def evaluate_parts(built: Built, parts: Sequence[Call]) -> list[Tensor]:
    """Return all tensors that come out of calls in evaluation mode, with a fixed random state."""
    built.model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = find_tensors([built.model.get_submodule(c.module)(*c.args, **c.kwargs) for c in parts])
    built.model.train()
    return [t.detach().clone() for t in output if t.is_floating_point()]


def calls_of_parts(built: Built, groups: ChannelGroups) -> list[Call]:
    """Return the calls whose outcomes are compared: the network's own, or those of the parts that were traced.

    A network that is traced in parts chooses by values (which boxes, say): what rounds differently may choose others.
    Each part is therefore called with what it got in the network as it was built.
    """
    names = {t.call.module for t in groups.structure.propagation.traces if t.call.is_submodule}
    if not names:
        return [Call("", built.args, built.kwargs)]
    found: dict[str, Call] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.setdefault(name, Call(name, args, kwargs))

        return hook

    modules = [(name, built.model.get_submodule(name)) for name in sorted(names)]
    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in modules]
    try:
        evaluate(built)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def training_step(built: Built) -> float:
    """Do one step of descent on the mean square of whatever depends on the parameters; returns it.

    Raises:
        AssertionError: A value is not finite, nothing could be trained, or nothing moved.
    """
    model = built.model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = [t for t in find_tensors(model(*built.args, **built.kwargs)) if t.requires_grad]
    loss = torch.stack([t.square().mean() for t in output]).sum()
    torch.autograd.backward(loss)
    gradients = [p.grad for p in trainable if p.grad is not None]
    require_finite([loss, *gradients])
    before = [p.detach().clone() for p in trainable if p.grad is not None]
    optimizer.step()
    if all(torch.equal(a, b) for a, b in zip(before, (p for p in trainable if p.grad is not None), strict=True)):
        raise AssertionError("A training step moved no parameter.")
    return float(loss)


def export_error(built: Built) -> float:
    """Export the network in evaluation mode; returns by how much the exported one differs."""
    built.model.eval()
    kwargs = dict(built.kwargs)
    program = torch.export.export(built.model, built.args, kwargs, strict=False)
    with torch.no_grad():
        own = find_tensors(built.model(*built.args, **kwargs))
        exported = find_tensors(program.module()(*built.args, **kwargs))
    return relative_difference(exported, own)


def relative_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference over all tensors, each relative to its largest value.

    Raises:
        AssertionError: Shapes differ, or a value is not finite.
    """
    if [t.shape for t in actual] != [t.shape for t in expected]:
        raise AssertionError(f"Expected outputs of shapes {shapes_of(expected)}, but got {shapes_of(actual)}.")
    require_finite(actual)
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if a.numel() and a.is_floating_point()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs) if pairs else 0.0


def require_finite(tensors: list[Tensor]) -> None:
    if not all(t.isfinite().all() for t in tensors):
        raise AssertionError("A value is not finite.")


def shapes_of(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


def half_of(groups: ChannelGroups, wanted: Callable[[Any], bool]) -> PruningPlan:
    """Choose half of every wanted group's units at random; what is not a number is never chosen."""
    scores = torch.rand(groups.num_units, generator=torch.Generator().manual_seed(0))
    for group in groups:
        if not wanted(group):
            scores[group.first_unit : group.first_unit + group.num_channels] = math.nan
    return select(groups, scores, num_units=groups.num_units, max_pruning_ratio=RATIO)


@torch.no_grad()
def mask_readers_(model: nn.Module, plan: PruningPlan) -> None:
    """Set to zero, in place, every weight that reads a unit which the plan removes, and nothing else.

    Where units, roles and positions are right, the pruned network is what the units never touched.
    """
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, units in plan.removed.items():
        for found in plan.groups[name].slices:
            if found.role == "reader":
                removed = found.positions[np.isin(found.units, units)]
                tensors[found.tensor].index_fill_(found.dim, torch.tensor(removed), 0)
