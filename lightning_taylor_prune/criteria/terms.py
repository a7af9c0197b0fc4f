"""Slices of parameters that take part in a unit's score, and sums of weight times gradient over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_taylor_prune.groups.group import Role
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.plan import Indices


@dataclass(frozen=True, eq=False)
class ParameterSlice:
    """One axis of one parameter that takes part in the score of some units.

    Attributes:
        name: The parameter's qualified name.
        parameter: The parameter.
        dim: The axis.
        units: Unit at each position, int64, shape ``[size]``; ``num_units`` where there is none.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    units: Tensor

    def per_position(self, values: Tensor) -> Tensor:
        """Sum a tensor of the parameter's shape over all axes but ``dim``; shape ``[size]``."""
        others = [d for d in range(values.dim()) if d != self.dim]
        return values.sum(others) if others else values


def parameter_slices(model: nn.Module, groups: ChannelGroups, role: Role) -> list[ParameterSlice]:
    """Return the terms of one role, for parameters only: those of averages, which get no gradient, say nothing."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [
        ParameterSlice(axis.tensor, parameter, axis.dim, _unit_index(units, groups.num_units, parameter.device))
        for axis, units in groups.axes(role)
        if axis.tensor not in groups.followers and (parameter := parameters.get(axis.tensor)) is not None
    ]


def _unit_index(units: Indices, num_units: int, device: torch.device) -> Tensor:
    index = torch.from_numpy(units)
    return torch.where(index < 0, num_units, index).to(device)


def signed_sums(terms: Sequence[ParameterSlice], num_units: int) -> Tensor:
    """Return every unit's sum of weight times gradient over its terms, signs kept.

    Over the weights that read a unit this is minus the first-order change of the loss if the unit went to zero. A unit
    that several layers read gets one sum over all of them: signs cancel as the effects do.

    Returns:
        Float32 (float64 for float64 parameters), shape ``[num_units]``. Parameters without gradient add nothing.
    """
    return _scatter(terms, num_units, lambda weight, gradient: weight * gradient)


def squared_sums(terms: Sequence[ParameterSlice], num_units: int) -> Tensor:
    """Return every unit's sum of (weight times gradient) squared, weight by weight; shape ``[num_units]``."""
    return _scatter(terms, num_units, lambda weight, gradient: (weight * gradient).square())


@torch.no_grad()
def _scatter(terms: Sequence[ParameterSlice], num_units: int, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum products of weights and gradients by unit; one layer's product is held at a time."""
    live = [term for term in terms if has_gradient(term.parameter)]
    if not live:
        return torch.zeros(num_units, device=terms[0].parameter.device if terms else None)
    device = live[0].parameter.device
    dtype = sum_dtype(live[0].parameter)
    values = [term.per_position(product(term.parameter.to(dtype), _gradient(term).to(dtype))) for term in live]
    sums = torch.zeros(num_units + 1, dtype=dtype, device=device)
    units = torch.cat([term.units.to(device) for term in live])
    return sums.index_add_(0, units, torch.cat([value.to(device) for value in values]))[:num_units]


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type to sum in: float64 for float64, or else float32, half precision included."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _gradient(term: ParameterSlice) -> Tensor:
    gradient = term.parameter.grad
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def has_gradient(parameter: nn.Parameter) -> bool:
    """Whether a parameter took part in the last backward pass; one that is toggled off may hold a stale gradient."""
    return parameter.requires_grad and parameter.grad is not None


def units_of_slices(terms: Sequence[ParameterSlice], num_units: int) -> Tensor:
    """Return which units some term touches; bool on the CPU, shape ``[num_units]``."""
    mask = torch.zeros(num_units + 1, dtype=torch.bool)
    for term in terms:
        mask[term.units.cpu()] = True
    return mask[:num_units]


def completed_by(
    terms: Sequence[ParameterSlice], others: Sequence[ParameterSlice], num_units: int
) -> list[ParameterSlice]:
    """Return terms, and of the others what touches units without any."""
    absent = torch.cat([~units_of_slices(terms, num_units), torch.zeros(1, dtype=torch.bool)])
    return [*terms, *(_only(term, absent) for term in others if absent[term.units.cpu()].any())]


def _only(term: ParameterSlice, wanted: Tensor) -> ParameterSlice:
    """Restrict a term to some units; ``wanted`` has one place more, for positions without a unit."""
    inside = wanted.to(term.units.device)[term.units]
    return replace(term, units=torch.where(inside, term.units, len(wanted) - 1))
