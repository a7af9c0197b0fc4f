"""Slices of parameters that take part in a unit's score, and sums of weight times gradient over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

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
        gain: What the parameter, a direction, is scaled with under weight normalisation: ``gain * w / |w|``, the norm
            taken over all axes along which the gain has one position.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    units: Tensor
    gain: nn.Parameter | None = None

    @property
    def has_gradient(self) -> bool:
        """Whether all that the weight is made of took part in the last backward pass."""
        return has_gradient(self.parameter) and (self.gain is None or has_gradient(self.gain))

    def weight(self) -> Tensor:
        """Return the weight as the layer uses it, to sum with; shape of the parameter."""
        weight = _wide(self.parameter)
        return weight if self.gain is None else weight * (_wide(self.gain) / _norm_like(weight, self.gain))

    def product(self) -> Tensor:
        """Return weight times gradient, elementwise and real; shape of the parameter.

        Of a complex weight this is the derivative along its own direction, as a real gate on it has.
        """
        weight = _wide(self.parameter)
        product = real_product(weight, gradient_of(self.parameter))
        if self.gain is None:
            return product
        share = (weight.abs() / _norm_like(weight, self.gain)).square()
        return product + real_product(_wide(self.gain), gradient_of(self.gain)) * share

    def per_position(self, values: Tensor) -> Tensor:
        """Sum a tensor of the parameter's shape over all axes but ``dim``; shape ``[size]``."""
        others = [d for d in range(values.dim()) if d != self.dim]
        return values.sum(others) if others else values


def parameter_slices(model: nn.Module, groups: ChannelGroups, role: Role) -> list[ParameterSlice]:
    """Return the terms of one role, for parameters only: those of averages, which get no gradient, say nothing."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for axis, units in groups.axes(role):
        direction, gain = _normed(model, axis.tensor)
        if axis.tensor not in groups.followers and (parameter := parameters.get(direction)) is not None:
            index = _unit_index(units, groups.num_units, parameter.device)
            found.append(ParameterSlice(direction, parameter, axis.dim, index, gain))
    return found


def _normed(model: nn.Module, name: str) -> tuple[str, nn.Parameter | None]:
    """Return the direction of a weight under `weight_norm`, given that or its length, and the length.

    This is the parametrization, with none beside it, or the hook of old. Any other parameter is returned as it is.
    """
    owner, _, leaf = name.rpartition(".")
    holder = model.get_submodule(owner)
    for hook in holder._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and leaf in (f"{hook.name}_g", f"{hook.name}_v"):
            return _as_direction(owner, f"{hook.name}_v", getattr(holder, f"{hook.name}_g"))
    is_one = isinstance(holder, ParametrizationList) and len(holder) == 1 and isinstance(holder[0], _WeightNorm)
    return _as_direction(owner, "original1", holder.original0) if is_one else (name, None)


def _as_direction(owner: str, leaf: str, gain: object) -> tuple[str, nn.Parameter | None]:
    return f"{owner}.{leaf}" if owner else leaf, gain if isinstance(gain, nn.Parameter) else None


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
    return _scatter(terms, num_units, lambda product: product)


def squared_sums(terms: Sequence[ParameterSlice], num_units: int) -> Tensor:
    """Return every unit's sum of (weight times gradient) squared, weight by weight; shape ``[num_units]``."""
    return _scatter(terms, num_units, torch.square)


@torch.no_grad()
def _scatter(terms: Sequence[ParameterSlice], num_units: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum products of weights and gradients by unit; one layer's product is held at a time."""
    live = [term for term in terms if term.has_gradient]
    if not live:
        return torch.zeros(num_units, device=terms[0].parameter.device if terms else None)
    device = live[0].parameter.device
    dtype = sum_dtype(live[0].parameter)
    values = [term.per_position(function(term.product()).to(dtype)) for term in live]
    sums = torch.zeros(num_units + 1, dtype=dtype, device=device)
    units = torch.cat([term.units.to(device) for term in live])
    return sums.index_add_(0, units, torch.cat([value.to(device) for value in values]))[:num_units]


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the real type to sum in: float64 for float64 and its complex pairs, or else float32."""
    return torch.float64 if tensor.dtype in (torch.float64, torch.complex128) else torch.float32


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in the type to sum in; complex if it is."""
    dtype = sum_dtype(tensor)
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def real_product(value: Tensor, gradient: Tensor) -> Tensor:
    """Return value times gradient, elementwise, as a real gate on the value is derived: real, in the type to sum in.

    The gradient of a complex number is that by its real part plus i times that by its imaginary part.
    """
    value, gradient = _wide(value), _wide(gradient)
    if not value.is_complex():
        return value * (gradient.real if gradient.is_complex() else gradient)
    return value.real * gradient.real + (value.imag * gradient.imag if gradient.is_complex() else 0)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, which it must have; dense."""
    gradient = parameter.grad
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def _norm_like(weight: Tensor, gain: Tensor) -> Tensor:
    """Return the norm of a weight over the axes along which its gain has one position; it broadcasts over both."""
    axes = [axis for axis, size in enumerate(gain.shape) if size < weight.shape[axis]] if gain.dim() else None
    return weight.abs() if axes == [] else torch.linalg.vector_norm(weight, dim=axes, keepdim=True)


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
