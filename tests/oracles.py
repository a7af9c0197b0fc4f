"""What "right" means: the pruned network computes what the masked one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import PruningPlan
from lightning_taylor_prune.pruning.prune import prune_

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def randomize_norms_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every normalisation random statistics and affine parameters, so that nothing hides behind 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not any(word in type(module).__name__ for word in ("Norm", "PReLU")):
                continue
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor.is_floating_point() and tensor.numel() > 1:
                    low = -0.3 if name in ("bias", "running_mean") else 0.5
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model


def to_dtype(values: Any, dtype: torch.dtype) -> Any:
    """Return nested arguments with their floating point tensors cast."""
    return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, values)


def flatten(output: Any) -> list[Tensor]:
    """Return the tensors in a nested output: containers, dataclasses, named tuples."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = vars(output)
    values = output.values() if isinstance(output, Mapping) else output
    return [] if values is None else [tensor for value in values for tensor in flatten(value)]


def relative_error(actual: Any, expected: Any) -> float:
    """Return the largest difference over all output tensors, each relative to its largest value."""
    pairs = list(zip(flatten(actual), flatten(expected), strict=True))
    assert all(a.shape == b.shape and a.isfinite().all() for a, b in pairs)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


def evaluate(model: nn.Module, example: Sequence[Any], seed: int = 0) -> Any:
    """Return the output in evaluation mode, with a fixed random state; the model's modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        output = model(*example)
    for module, mode in modes:
        module.training = mode
    return output


def mask_readers_(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Set to zero, in place, every weight that reads a channel which the plan removes, and nothing else.

    If groups, roles and positions are right then what is left is all that the removed channels never touched.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    groups: ChannelGroups = plan.groups
    with torch.no_grad():
        for name, units in plan.removed.items():
            for found in groups[name].slices:
                if found.role == "reader":
                    gone = found.positions[np.isin(found.units, units)]
                    tensors[found.tensor].index_fill_(found.dim, torch.tensor(gone), 0)
    return model


def zero_(model: nn.Module, plan: PruningPlan) -> None:
    """Set to zero, in place, what a plan would remove: the masked network that pruning must agree with."""
    removed = dict(plan.by_tensor())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, cuts in removed.items():
            tensor = tensors[name]
            for cut in cuts:
                gone = torch.ones(cut.size, dtype=torch.bool, device=tensor.device)
                gone[torch.tensor(cut.keep, device=tensor.device)] = False
                tensor.index_fill_(cut.dim, gone.nonzero().flatten(), 0)


def masked_error(model: nn.Module, masked: nn.Module, plan: PruningPlan, example: Sequence[Any]) -> float:
    """Prune ``model`` in place, and return by how much it differs from its twin, which is masked."""
    prune_(model, plan)
    return relative_error(evaluate(model, example), evaluate(mask_readers_(masked, plan), example))


def random_units(groups: ChannelGroups, ratio: float = 0.3, seed: int = 0) -> dict[str, list[int]]:
    """Choose a share of every group at random: at least one unit wherever one can leave."""
    rng = np.random.default_rng(seed)
    counts = {g.name: min(max(1, round(ratio * g.num_channels)), g.num_channels - 1) for g in groups}
    return {g.name: sorted(rng.permutation(g.num_channels)[: counts[g.name]].tolist()) for g in groups}


def prepared(model: nn.Module, example: Any, dtype: torch.dtype) -> tuple[nn.Module, Any, ChannelGroups]:
    """Cast a model and its arguments, randomize normalisations, and find groups."""
    model, example = randomize_norms_(model).to(dtype), to_dtype(example, dtype)
    return model, example, find_groups(model, example)


def training_step(model: nn.Module, example: Sequence[Any], optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Do one step of descent on the mean square of all outputs; returns the output."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.SGD(trainable, lr=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        output = model(*example)
    optimizer.zero_grad()
    torch.stack([t.square().mean() for t in flatten(output)]).sum().backward()
    optimizer.step()
    return output


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything a careless tool might change: bits, modes, flags, hooks, attributes, identities."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "bits": {name: t.detach().clone() for name, t in tensors},
        "grads": {name: None if t.grad is None else t.grad.clone() for name, t in tensors},
        "ids": {name: id(t) for name, t in tensors},
        "flags": {name: (t.requires_grad, t.dtype, t.stride()) for name, t in tensors},
        "modules": [(name, id(m), type(m), m.training) for name, m in model.named_modules()],
        "attributes": {name: _plain(m.__dict__) for name, m in model.named_modules()},
    }


def _plain(value: Any) -> Any:
    """Return containers by content and everything else by identity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs between two states of :func:`state_of`; bits and gradients bit by bit."""
    found = [key for key in ("ids", "flags", "modules", "attributes") if before[key] != after[key]]
    for key in ("bits", "grads"):
        for name in before[key].keys() | after[key].keys():
            a, b = before[key].get(name), after[key].get(name)
            if (a is None) != (b is None) or (a is not None and not (a.shape == b.shape and torch.equal(a, b))):
                found.append(f"{key}: {name}")
    return found
