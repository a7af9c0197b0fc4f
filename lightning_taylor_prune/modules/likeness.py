"""Modules with parameters of the same names and shapes: copies of one another, or a teacher and its student."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Signature = tuple[tuple[str, tuple[int, ...]], ...]

ALIKE = 0.2
"""Correlation from which on the weights of two modules are called alike: those drawn apart have about none."""


MOST_COMPARED = 100_000
"""Numbers of one tensor that tell whether two are alike."""


class Twin(NamedTuple):
    """Names of two modules of a network that have parameters of the same names and shapes.

    Attributes:
        follower: The one that no gradient reaches.
        leader: The one that is trained.
    """

    follower: str
    leader: str


@dataclass(frozen=True)
class TwinCandidate:
    """Two modules that may be twins.

    Attributes:
        twin: Their names.
        alike: Whether their values correlate.
    """

    twin: Twin
    alike: bool


def signature(module: nn.Module, sizes: bool = True) -> Signature:
    """Return names and shapes of a module's parameters; without ``sizes`` only how many axes each has."""
    named = [(name, p) for name, p in module.named_parameters() if is_comparable(p)]
    return tuple((name, tuple(p.shape) if sizes else (p.dim(),)) for name, p in named)


def names_by_signature(root: nn.Module, sizes: bool = True) -> dict[Signature, list[str]]:
    """Return the names of all modules that have parameters, the root's included, by their signature."""
    found: dict[Signature, list[str]] = {}
    for name, module in root.named_modules():
        if own := signature(module, sizes):
            found.setdefault(own, []).append(name)
    return found


def twin_candidates(root: nn.Module) -> list[TwinCandidate]:
    """Find modules that no gradient reaches beside one that is trained, outermost first; some may follow it."""
    same = names_by_signature(root)
    found: list[TwinCandidate] = []
    for name, module in root.named_modules():
        if any(is_inside(name, one.twin.follower) for one in found) or not _gets_no_gradient(module):
            continue
        others = [other for other in same.get(signature(module), ()) if _may_lead(root, other, name)]
        if others:
            likeness = [correlation(root.get_submodule(other).parameters(), module.parameters()) for other in others]
            most = max(likeness)
            found.append(TwinCandidate(Twin(name, others[likeness.index(most)]), most > ALIKE))
    return found


def likely_twins(root: nn.Module) -> list[Twin]:
    """Find modules that no gradient reaches and whose values are like those of one that is trained."""
    return [candidate.twin for candidate in twin_candidates(root) if candidate.alike]


def named_as_average(owners: Iterable[str]) -> bool:
    """Whether names of attributes or classes say that something is an average.

    Example:
        >>> named_as_average(["ModelEmaV3", "module"]), named_as_average(["teacher"])
        (True, False)
    """
    words = {word.lower() for name in owners for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return not words.isdisjoint(
        {"ema", "average", "averaged", "averaging", "swa", "shadow", "polyak", "momentum", "target"}
    )


def is_inside(name: str, module: str) -> bool:
    """Whether a name is that of a module or of something in it; everything is in the module ``""``."""
    return not module or name == module or name.startswith(f"{module}.")


def twin_names(names: Iterable[str], twins: Iterable[Twin]) -> Iterator[tuple[str, str]]:
    """Yield the name of every tensor in a follower with the name of the leader's, where there is one."""
    known = set(names)
    for twin in twins:
        for name in known:
            if is_inside(name, twin.follower) and (other := twin.leader + name[len(twin.follower) :]) in known:
                yield name, other


def _gets_no_gradient(module: nn.Module) -> bool:
    """Whether no parameter is trained, or none was reached by the last backward pass."""
    return not any(parameter.requires_grad and parameter.grad is not None for parameter in module.parameters())


def _may_lead(root: nn.Module, leader: str, follower: str) -> bool:
    """Whether one module may be what another, that gets no gradient, follows: it is trained, and lies apart."""
    if is_inside(leader, follower) or is_inside(follower, leader):
        return False
    first, second = list(root.get_submodule(leader).parameters()), list(root.get_submodule(follower).parameters())
    if not {id(p) for p in first}.isdisjoint(id(p) for p in second) or not any(p.requires_grad for p in first):
        return False
    is_frozen = not any(parameter.requires_grad for parameter in second)
    return is_frozen or any(parameter.grad is not None for parameter in first)


def is_comparable(value: object) -> bool:
    """Whether something is a tensor that has a shape and lies densely in memory."""
    return isinstance(value, Tensor) and not is_lazy(value) and value.layout == torch.strided


@torch.no_grad()
def correlation(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    """Return how far the deviations of tensors from their means point the same way, -1 to 1; 0 if all are constant.

    Of large tensors the first :data:`MOST_COMPARED` numbers are looked at.

    Args:
        first: Tensors.
        second: As many, of the same shapes.
    """
    products = [torch.zeros(3)]
    for a, b in zip(first, second, strict=True):
        if all(is_comparable(v) and v.is_floating_point() and v.numel() > 1 for v in (a, b)):
            x, y = (v.detach().flatten()[:MOST_COMPARED].to(a.device, torch.float32) for v in (a, b))
            x, y = x - x.mean(), y - y.mean()
            products.append(torch.stack([x @ y, x @ x, y @ y]).cpu())
    product, left, right = torch.stack(products).double().sum(0).tolist()
    return float(product / (left * right) ** 0.5) if left * right > 0 else 0.0


@torch.no_grad()
def sums(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of every tensor, float64 on the CPU, shape ``[tensors]``: it changes where values do."""
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    count = 0
    for number, tensor in enumerate(tensors):
        count = number + 1
        if is_comparable(tensor):
            by_device.setdefault(tensor.device, []).append((number, _sum(tensor)))
    found = torch.zeros(count, dtype=torch.float64)
    for several in by_device.values():  # one transfer for each device
        found[[number for number, _ in several]] = torch.stack([value for _, value in several]).cpu().double()
    return found


def _sum(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.detach().sum(dtype=torch.float32 if tensor.device.type == "mps" else torch.float64)
