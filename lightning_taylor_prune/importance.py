r"""How much the loss would change if a unit left: criteria, and their running means over minibatches.

The first-order Taylor expansion of the loss :math:`L` when a unit's contribution :math:`a` goes to zero is
:math:`\Delta L \approx -\sum a \cdot \partial L / \partial a`. Where the unit is read by a weight :math:`w`, the
same number is :math:`\sum w \cdot \partial L / \partial w` over the slice that reads it, exactly: parameters and their
gradients are all that is needed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups import ChannelGroups, Role

CRITERIA: dict[str, type[Criterion]] = {}
"""Criteria by name; :func:`register_criterion` adds to it."""


def register_criterion(name: str) -> Callable[[type[Criterion]], type[Criterion]]:
    """Register a :class:`Criterion` under a name.

    Raises:
        ValueError: The name is taken.
    """

    def decorate(cls: type[Criterion]) -> type[Criterion]:
        if name in CRITERIA:
            raise ValueError(f"There is a criterion `{name}` already: {CRITERIA[name].__name__}.")
        CRITERIA[name] = cls
        return cls

    return decorate


@dataclass(frozen=True, eq=False)
class Term:
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


def find_terms(model: nn.Module, groups: ChannelGroups, role: Role) -> list[Term]:
    """Return the terms of one role, for parameters only."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [
        Term(axis.tensor, parameter, axis.dim, _unit_index(units, groups.num_units, parameter.device))
        for axis, units in groups.axes(role)
        if (parameter := parameters.get(axis.tensor)) is not None
    ]


def _unit_index(units: Any, num_units: int, device: torch.device) -> Tensor:
    index = torch.from_numpy(units)
    return torch.where(index < 0, num_units, index).to(device)


def signed_sums(terms: Sequence[Term], num_units: int) -> Tensor:
    """Return every unit's sum of weight times gradient over its terms, signs kept.

    Over the weights that read a unit this is minus the first-order change of the loss if the unit went to zero. A unit
    that several layers read gets one sum over all of them: signs cancel as the effects do.

    Returns:
        Float32 (float64 for float64 parameters), shape ``[num_units]``. Parameters without gradient add nothing.
    """
    return _scatter(terms, num_units, lambda weight, gradient: weight * gradient)


def squared_sums(terms: Sequence[Term], num_units: int) -> Tensor:
    """Return every unit's sum of (weight times gradient) squared, weight by weight; shape ``[num_units]``."""
    return _scatter(terms, num_units, lambda weight, gradient: (weight * gradient).square())


@torch.no_grad()
def _scatter(terms: Sequence[Term], num_units: int, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    live = [term for term in terms if has_gradient(term.parameter)]
    if not live:
        return torch.zeros(num_units)
    first = live[0].parameter
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    sums = torch.zeros(num_units + 1, dtype=dtype, device=first.device)
    for term in live:
        gradient = term.parameter.grad
        assert gradient is not None
        values = product(term.parameter.to(dtype), gradient.to(dtype))
        sums.index_add_(0, term.units, term.per_position(values).to(first.device))
    return sums[:num_units]


def has_gradient(parameter: nn.Parameter) -> bool:
    """Whether a parameter took part in the last backward pass; one that is toggled off may hold a stale gradient."""
    return parameter.requires_grad and parameter.grad is not None


class Criterion(ABC):
    """Accumulates the importance of every unit over minibatches.

    Subclasses implement :meth:`minibatch`, or :meth:`compute` where no gradient is needed.

    Args:
        model: The network.
        groups: Its groups as it is now.
    """

    needs_gradients = True
    normalize_default = "none"

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        self.model = model
        self.groups = groups
        self.num_units = groups.num_units
        self.steps = 0
        self.total: Tensor | None = None
        self.finite_steps: Tensor | None = None
        self.counts: Tensor | None = None
        self.live: Sequence[Term] = ()
        self._masks: dict[tuple[str, ...], Tensor] = {}
        self._scored: dict[str, bool] = {term.name: False for term in self.terms()}

    def terms(self) -> Sequence[Term]:
        """Return the parameters that take part; a unit one of whose parameters never has a gradient is not scored."""
        return ()

    @abstractmethod
    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the score of every unit for the minibatch whose gradients are in place, shape ``[num_units]``.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
        """

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in one minibatch, after its backward pass. Without device synchronisation.

        A minibatch with NaN or infinity anywhere is left out; :attr:`skipped` counts them.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
            parameters: Identities of the parameters whose gradients are of this minibatch; by default all.
        """
        self.live = [
            term
            for term in self.terms()
            if has_gradient(term.parameter) and (parameters is None or id(term.parameter) in parameters)
        ]
        self._scored.update((term.name, True) for term in self.live)
        score = self.minibatch(scale).detach()
        finite = score.isfinite().all()
        if self.total is None or self.finite_steps is None or self.counts is None:
            dtype = torch.float64 if score.device.type != "mps" else score.dtype
            self.total = torch.zeros_like(score, dtype=dtype)
            self.finite_steps = torch.zeros((), dtype=torch.int64, device=score.device)
            self.counts = torch.zeros(self.num_units, dtype=torch.int64, device=score.device)
        self.total += torch.where(finite, score, torch.zeros_like(score))
        self.finite_steps += finite
        self.counts += self._touched().to(score.device) & finite
        self.steps += 1

    def _touched(self) -> Tensor:
        """Return which units this minibatch says something about."""
        key = tuple(term.name for term in self.live)
        if key not in self._masks:
            mask = torch.zeros(self.num_units + 1, dtype=torch.bool) | (not self.terms())
            for term in self.live:
                mask[term.units.cpu()] = True
            self._masks[key] = mask[: self.num_units]
        return self._masks[key]

    @property
    def skipped(self) -> int:
        """Number of minibatches left out because of NaN or infinity."""
        return self.steps - (0 if self.finite_steps is None else int(self.finite_steps))

    @property
    def ready(self) -> bool:
        """Whether there is anything to prune upon."""
        return not self.needs_gradients or self.steps > self.skipped

    def compute(self) -> Tensor:
        """Return the mean score of every unit, float64 on the CPU, shape ``[num_units]``; NaN for units not scored."""
        if self.total is None or self.counts is None:
            return torch.full((self.num_units,), torch.nan, dtype=torch.float64)
        mean = (self.total / self.counts).cpu().double()
        mean[self._unscored()] = torch.nan
        return mean

    def _unscored(self) -> Tensor:
        """Return which units miss a term, because its parameter is frozen or not used."""
        missing = torch.zeros(self.num_units + 1, dtype=torch.bool)
        covered = torch.zeros(self.num_units + 1, dtype=torch.bool)
        for term in self.terms():
            (covered if self._scored[term.name] else missing)[term.units.cpu()] = True
        return (missing | ~covered)[: self.num_units] if len(self.terms()) else missing[: self.num_units] & False

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, as plain data and tensors."""
        return {"steps": self.steps, "scored": dict(self._scored)} | {
            name: None if (value := getattr(self, name, None)) is None else value.cpu() for name in _STATE
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from scores that were accumulated before, for the same groups."""
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self.steps = state["steps"]
        self._scored.update(state["scored"])
        for name in _STATE:
            setattr(self, name, None if state[name] is None else state[name].to(device))

    def close(self) -> None:  # noqa: B027 - most criteria have nothing to let go of
        """Let go of the network (hooks, for criteria that need them)."""


_STATE = ("total", "finite_steps", "counts")


@register_criterion("taylor")
class Taylor(Criterion):
    r"""First-order Taylor expansion at the weights that read a unit.

    :math:`s_u = \operatorname{mean}_b\big(\sum_{w \in R(u)} w \cdot \partial L_b / \partial w\big)^2`, with :math:`R(u)`
    the slices of all weights that read unit :math:`u`. It equals the squared gate gradient of Molchanov et al. 2019
    (Importance Estimation for Neural Network Pruning, section 3.2) placed where the unit is consumed, and needs no gate.
    Near a minimum the mean gradient vanishes and the mean of squares measures its variance, a Fisher estimate.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        readers = find_terms(model, groups, "reader")
        # A unit that no weight reads (its channels are averaged, say) is judged by what writes it.
        read = torch.zeros(groups.num_units + 1, dtype=torch.bool)
        for term in readers:
            read[term.units.cpu()] = True
        unread = ~read[: groups.num_units]
        self._terms = readers if not unread.any() else [*readers, *_only(find_terms(model, groups, "writer"), unread)]
        super().__init__(model, groups)

    def terms(self) -> Sequence[Term]:
        """Return the reading weights."""
        return self._terms

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the squared sums of this minibatch."""
        return (signed_sums(self.live, self.num_units) * scale).square()


def _only(terms: Sequence[Term], wanted: Tensor) -> list[Term]:
    """Restrict terms to some units."""
    table = torch.cat([wanted, torch.zeros(1, dtype=torch.bool)])
    kept = []
    for term in terms:
        inside = table[term.units.cpu()].to(term.units.device)
        if inside.any():
            units = torch.where(inside, term.units, len(wanted))
            kept.append(Term(term.name, term.parameter, term.dim, units))
    return kept


@register_criterion("taylor_gate")
class TaylorGate(Taylor):
    r"""The 2019 gate after normalisation: :math:`\operatorname{mean}_b(\gamma\,g_\gamma + \beta\,g_\beta)^2`.

    For a batch-normalised channel this is exactly the sum over batch and space of activation times gradient at the
    output of the normalisation. Units without a normalisation of their own use the weights that read them.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        gates = [t for t in find_terms(model, groups, "affine") if _is_normalisation(model, t.name)]
        gated = torch.zeros(self.num_units + 1, dtype=torch.bool)
        for term in gates:
            gated[term.units.cpu()] = True
        self._terms = [*gates, *_only(self._terms, ~gated[: self.num_units])]
        self._scored = {term.name: False for term in self._terms}


def _is_normalisation(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))


@register_criterion("taylor_weight")
class TaylorWeight(Criterion):
    r"""Molchanov et al. 2019, equation 8, summed over the weights that write a unit.

    :math:`s_u = \operatorname{mean}_b \sum_{w \in W(u)} (w \cdot \partial L_b / \partial w)^2`.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        self._terms = find_terms(model, groups, "writer")
        super().__init__(model, groups)

    def terms(self) -> Sequence[Term]:
        """Return the writing weights."""
        return self._terms

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the sums of squares of this minibatch."""
        return squared_sums(self.live, self.num_units) * scale**2


@register_criterion("taylor_activation")
class TaylorActivation(Criterion):
    r"""Molchanov et al. 2017 (Pruning Convolutional Neural Networks for Resource Efficient Inference), section 2.2.

    :math:`s_u = \operatorname{mean}_n \big|\operatorname{mean}_{hw}\, a_{nu} \cdot \partial L / \partial a_{nu}\big|` with
    :math:`a` the output of the layer that writes the unit, signed and summed over the layers where there are several,
    then divided by the l2 norm over the group. Hooks on those layers see activations and their gradients.
    """

    normalize_default = "l2"

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        self._products: list[tuple[Tensor, Tensor]] = []
        self._handles = []
        for term in find_terms(model, groups, "writer"):
            module = model.get_submodule(term.name.rpartition(".")[0].partition(".parametrizations.")[0])
            self._handles.append(module.register_forward_hook(self._forward_hook(term)))

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the scores of this minibatch from what the hooks saw."""
        by_batch: dict[int, Tensor] = {}
        for product, units in self._products:
            sums = by_batch.setdefault(len(product), product.new_zeros(len(product), self.num_units + 1))
            sums.index_add_(1, units, product)
        self._products.clear()
        if not by_batch:
            return torch.zeros(self.num_units)
        # The gradient of a mean loss carries 1 / batch; the paper's is per example.
        scores = [(sums * scale * len(sums)).abs().mean(0) for sums in by_batch.values()]
        return torch.stack(scores).sum(0)[: self.num_units]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _forward_hook(self, term: Term) -> Callable[..., None]:
        def forward_hook(module: nn.Module, args: Any, output: Any) -> None:
            if type(output) is Tensor and output.requires_grad and module.training:  # not the fake ones of a dry run
                output.register_hook(self._backward_hook(term, output.detach()))

        return forward_hook

    def _backward_hook(self, term: Term, activation: Tensor) -> Callable[[Tensor], None]:
        def backward_hook(gradient: Tensor) -> None:
            axis = 1 if term.parameter.dim() > 2 else activation.dim() - 1
            dtype = torch.float64 if activation.dtype == torch.float64 else torch.float32
            others = [d for d in range(activation.dim()) if d not in (0, axis)]
            product = activation.to(dtype) * gradient.to(dtype)
            self._products.append((product.mean(others) if others else product, term.units))

        return backward_hook


@register_criterion("magnitude")
class Magnitude(Criterion):
    r"""L2 norm of the weights that write a unit, for comparison; needs no data."""

    needs_gradients = False

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return nothing of use: weights say all."""
        return torch.zeros(self.num_units)

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Count the minibatch; there is nothing to take in."""
        self.steps += 1

    @property
    def skipped(self) -> int:
        """No minibatch is left out."""
        return 0

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Return the norms, float64 on the CPU, shape ``[num_units]``."""
        sums = torch.zeros(self.num_units + 1, dtype=torch.float64)
        for term in find_terms(self.model, self.groups, "writer"):
            sums.index_add_(0, term.units.cpu(), term.per_position(term.parameter.double().square()).cpu())
        return sums[: self.num_units].sqrt()


@register_criterion("random")
class Random(Magnitude):
    """Random order, for comparison; drawn anew for every prune from torch's seed and the network's size."""

    def compute(self) -> Tensor:
        """Return uniform numbers, float64, shape ``[num_units]``."""
        generator = torch.Generator().manual_seed((torch.initial_seed() + self.num_units) % 2**63)
        return torch.rand(self.num_units, generator=generator, dtype=torch.float64)


def normalize_scores(scores: Tensor, groups: ChannelGroups, how: str = "none", macs_weight: float = 0.0) -> Tensor:
    """Make scores of different groups comparable.

    Args:
        scores: Shape ``[num_units]``.
        groups: The groups.
        how: ``"none"``, or divide by each group's ``"mean"``, ``"l2"`` norm or ``"max"``.
        macs_weight: Take this much, times the share of all MACs that a unit costs, off its score
            (Molchanov et al. 2017, section 2.3). 0 for no preference.

    Returns:
        Shape ``[num_units]``.
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"`normalize` must be one of {', '.join(NORMALIZATIONS)}, but got {how!r}.")
    parts = []
    for part in scores.split([g.num_channels for g in groups]):
        divisor = NORMALIZATIONS[how](part[part.isfinite()]) if part.isfinite().any() else torch.ones(())
        parts.append(part / divisor if divisor > 0 else part)
    normalized = torch.cat(parts) if parts else scores
    if macs_weight:
        normalized = normalized - macs_weight * unit_macs(groups) / groups.macs
    return normalized


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda part: torch.ones((), dtype=part.dtype),
    "mean": torch.mean,
    "l2": torch.linalg.vector_norm,
    "max": torch.max,
}


def unit_macs(groups: ChannelGroups) -> Tensor:
    """Return the MACs that leave with one unit of each group, for every unit; float64, shape ``[num_units]``."""
    saved = []
    for group in groups:
        if group.num_channels > 1:
            plan = groups.plan({group.name: [0]})
            saved += [float(groups.macs - groups.after(plan).macs)] * group.num_channels
        else:
            saved.append(0.0)
    return torch.tensor(saved, dtype=torch.float64)


def warn_unscored(scores: Tensor, groups: ChannelGroups) -> None:
    """Say which groups cannot be judged because the weights that matter have no gradient."""
    names = [
        group.name
        for group, part in zip(groups, scores.split([g.num_channels for g in groups]), strict=True)
        if part.isnan().all()
    ]
    if names:
        warnings.warn(
            f"{len(names)} groups have no score, since weights that matter for them get no gradient (frozen, or not "
            f"used in the loss), and are left as they are: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
            PruningWarning,
            stacklevel=2,
        )
