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
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

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


def _gradient(term: Term) -> Tensor:
    gradient = term.parameter.grad
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


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
    sees_backward = False
    """Whether hooks take in gradients during the backward pass, where fp16 scales them."""
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
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._scored: dict[str, bool] = {}

    def terms(self) -> Sequence[Term]:
        """Return the parameters that take part; a unit one of whose parameters never has a gradient is not scored."""
        return ()

    def is_live(self, term: Term) -> bool:
        """Whether the minibatch says something about a term."""
        return has_gradient(term.parameter)

    @abstractmethod
    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the score of every unit for the minibatch whose gradients are in place, shape ``[num_units]``.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
        """

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in one minibatch, after its backward pass. Without device synchronisation.

        A minibatch with NaN or infinity anywhere is left out; :attr:`skipped` counts them. One in which none of the
        terms has a gradient is no minibatch.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
            parameters: Identities of the parameters whose gradients are of this minibatch; by default all.
        """
        self.live = [
            term
            for term in self.terms()
            if self.is_live(term) and (parameters is None or id(term.parameter) in parameters)
        ]
        if self.terms() and not self.live:
            return
        self._scored.update((term.name, True) for term in self.live)
        self._add(self.minibatch(scale).detach())

    def _add(self, score: Tensor) -> None:
        """Add one minibatch's scores to the totals, unless they are not all finite."""
        if self.total is None or self.finite_steps is None or self.counts is None:
            dtype = torch.float64 if score.device.type != "mps" else score.dtype
            self.total = torch.zeros_like(score, dtype=dtype)
            self.finite_steps = torch.zeros((), dtype=torch.int64, device=score.device)
            self.counts = torch.zeros(self.num_units, dtype=torch.int64, device=score.device)
        finite = score.isfinite().all()
        counted = self._touched(score.device) & finite
        self.total += torch.where(counted, score, 0)
        self.counts += counted
        self.finite_steps += finite
        self.steps += 1

    def _touched(self, device: torch.device) -> Tensor:
        """Return which units this minibatch says something about."""
        return self._mask(self.live, device) if self.terms() else torch.ones((), dtype=torch.bool, device=device)

    def _mask(self, terms: Sequence[Term], device: torch.device) -> Tensor:
        """Return which units some term touches, made once for each choice of terms."""
        key = (device, *(id(term) for term in terms))
        if key not in self._masks:
            self._masks[key] = _units_of(terms, self.num_units).to(device)
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
        total, counts = self.over_ranks(self.total, self.counts)
        return (total.cpu().double() / counts.cpu()).masked_fill(self._unscored(), torch.nan)

    def over_ranks(self, total: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the totals of all ranks; gradients are the same on all of them already."""
        return total, counts

    def _unscored(self) -> Tensor:
        """Return which units miss a term, because its parameter is frozen or not used."""
        terms = self.terms()
        if not terms:
            return torch.zeros(self.num_units, dtype=torch.bool)
        missing = [term for term in terms if not self._scored.get(term.name)]
        return _units_of(missing, self.num_units) | ~_units_of(terms, self.num_units)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, as plain data and tensors."""
        return {"steps": self.steps, "scored": dict(self._scored)} | {
            name: None if (value := getattr(self, name)) is None else value.to("cpu", copy=True) for name in _STATE
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from scores that were accumulated before, for the same groups."""
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self.steps = state["steps"]
        self._scored.update(state["scored"])
        for name in _STATE:
            setattr(self, name, None if state[name] is None else state[name].to(device, copy=True))

    def discard(self) -> None:  # noqa: B027 - most criteria hold nothing between updates
        """Forget the backward passes since the last update: they are not to count."""

    def close(self) -> None:  # noqa: B027 - most criteria have nothing to let go of
        """Let go of the network (hooks, for criteria that need them)."""


_STATE = ("total", "finite_steps", "counts")


def _units_of(terms: Sequence[Term], num_units: int) -> Tensor:
    """Return which units some term touches; bool on the CPU, shape ``[num_units]``."""
    mask = torch.zeros(num_units + 1, dtype=torch.bool)
    for term in terms:
        mask[term.units.cpu()] = True
    return mask[:num_units]


def _or_else(terms: Sequence[Term], others: Sequence[Term], num_units: int) -> list[Term]:
    """Return terms, and of the others what touches units without any."""
    absent = torch.cat([~_units_of(terms, num_units), torch.zeros(1, dtype=torch.bool)])
    return [*terms, *(_only(term, absent) for term in others if absent[term.units.cpu()].any())]


def _only(term: Term, wanted: Tensor) -> Term:
    """Restrict a term to some units; ``wanted`` has one place more, for positions without a unit."""
    inside = wanted.to(term.units.device)[term.units]
    return replace(term, units=torch.where(inside, term.units, len(wanted) - 1))


class ReaderCriterion(Criterion):
    """Base of criteria that look at the weights which read a unit.

    A unit that no weight reads (its channels are averaged, say) is judged by the weights that write it.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        readers, writers = find_terms(model, groups, "reader"), find_terms(model, groups, "writer")
        self._terms = _or_else(readers, writers, self.num_units)

    def terms(self) -> Sequence[Term]:
        """Return the reading weights."""
        return self._terms


@register_criterion("taylor")
class Taylor(ReaderCriterion):
    r"""First-order Taylor expansion at the weights that read a unit, one term per minibatch.

    .. math:: s_u = \operatorname{mean}_b \Big(\sum_{w \in R(u)} w \cdot \partial L_b / \partial w\Big)^2

    with :math:`R(u)` the slices of all weights that read unit :math:`u`, and :math:`L_b` the loss of minibatch
    :math:`b`. It equals the squared gate gradient of Molchanov et al. 2019 (Importance Estimation for Neural Network
    Pruning, section 3.2) placed where the unit is consumed, and needs no gate: parameters and gradients say all.

    Near a minimum the mean gradient vanishes and the mean of squares measures its variance, a Fisher estimate; a single
    minibatch says little. All scores are squared changes of the loss, so that groups are compared as they are, without
    normalisation. Under data parallelism gradients, and so scores, are those of all ranks.

    Where BatchNorm follows the reader, its statistics follow the unit, so that the sum over a whole minibatch feels the
    unit less than the sum over any part of it does: :class:`TaylorExamples` ranks better, and needs hooks.
    """

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the squared sums of this minibatch."""
        return (signed_sums(self.live, self.num_units) * scale).square()


class ExampleCriterion(ReaderCriterion):
    """Base of criteria that tell the examples of a minibatch apart, by hooks.

    Under data parallelism every rank sees its own examples; :meth:`compute` adds them up and must be called on all.
    """

    sees_backward = True
    fold: Callable[[Tensor], Tensor]

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        readers = find_terms(model, groups, "reader")
        self._examples = ExampleSums(model, readers, self.num_units, type(self).fold)

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in the backward passes since the last call."""
        super().update(scale, parameters)
        self._examples.discard()

    def over_ranks(self, total: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Add up what all ranks saw, each of its own examples; all must call."""
        if not (dist.is_available() and dist.is_initialized()):
            return total, counts
        both = torch.stack([total, counts.to(total.dtype)])
        dist.all_reduce(both)
        return both[0], both[1]

    def discard(self) -> None:
        """Forget the backward passes since the last update."""
        self._examples.discard()

    def close(self) -> None:
        """Remove the hooks."""
        self._examples.close()


@register_criterion("taylor_examples")
class TaylorExamples(ExampleCriterion):
    r"""First-order Taylor expansion where a unit is read, example by example.

    .. math:: s_u = \operatorname{mean}_n \Big(\sum_{r \in R(u)} \sum_{hw} a_r \cdot \partial L_n / \partial a_r\Big)^2

    over examples :math:`n`, with :math:`R(u)` the layers that read unit :math:`u` and :math:`a_r` the activation that
    layer :math:`r` reads: :class:`Taylor`, with examples for minibatches. It ranks units better, and after few
    minibatches, at the price of one product per reading layer. Of a minibatch of more than :data:`MAX_EXAMPLES`
    examples every second is looked at, or every third, as long as there are as many left.

    Units that something else than a convolution or linear layer reads (a weight used by a function, attention) are
    summed over the minibatch as :class:`Taylor` does, on the same scale, and so are all units in a minibatch whose
    forward pass came before this criterion.
    """

    fold = staticmethod(torch.square)

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the mean squares over the examples of this minibatch."""
        sums, count = self._examples.folded()
        unseen = [term for term in self.live if (term.name, term.dim) not in self._examples.seen]
        if not unseen:
            assert sums is not None
            return sums * (count * scale**2)
        whole = signed_sums(self.live, self.num_units).square()
        if sums is not None:
            whole = torch.where(self._mask(unseen, whole.device), whole, sums)
        return whole * (max(count, 1) * scale**2)


@register_criterion("taylor_gate")
class TaylorGate(Taylor):
    r"""The 2019 gate after normalisation (Molchanov et al. 2019, section 4).

    .. math:: s_u = \operatorname{mean}_b \Big(\sum_{(\gamma, \beta) \in N(u)} \gamma\,g_\gamma + \beta\,g_\beta\Big)^2

    with :math:`N(u)` the affine parameters of the normalisations that unit :math:`u` passes, and :math:`g` their
    gradients. It is exactly the sum over batch and space of activation times gradient at the output of the
    normalisation. Units without a normalisation of their own use the weights that read them.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        gates = [term for term in find_terms(model, groups, "affine") if _is_normalisation(model, term.name)]
        self._terms = _or_else(gates, self._terms, self.num_units)


def _is_normalisation(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm))


@register_criterion("taylor_weight")
class TaylorWeight(Criterion):
    r"""Molchanov et al. 2019, equation 8, summed over the weights that write a unit.

    .. math:: s_u = \operatorname{mean}_b \sum_{w \in W(u)} (w \cdot \partial L_b / \partial w)^2

    Squares of single weights do not cancel, as the signed sum over a filter before BatchNorm does: that one is zero.
    A unit that no weight writes is judged by the weights that read it.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        readers, writers = find_terms(model, groups, "reader"), find_terms(model, groups, "writer")
        self._terms = _or_else(writers, readers, self.num_units)

    def terms(self) -> Sequence[Term]:
        """Return the writing weights."""
        return self._terms

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the sums of squares of this minibatch."""
        return squared_sums(self.live, self.num_units) * scale**2


@register_criterion("taylor_activation")
class TaylorActivation(ExampleCriterion):
    r"""Molchanov et al. 2017 (Pruning Convolutional Neural Networks for Resource Efficient Inference), section 2.2.

    .. math:: s_u = \operatorname{mean}_n \Big|\sum_{hw} a_{nu} \cdot \partial L_n / \partial a_{nu}\Big|

    over examples :math:`n`, with :math:`a` the activation as the layers that read the unit see it: after normalisation
    and ReLU, signed and summed over those layers where there are several. The paper takes the mean over space, and an
    l2 norm per layer to make up for what that does to layers of different size; the sum is the change of the loss
    itself and needs neither.

    Units that something else than a convolution or linear layer reads (a weight used by a function, attention) are not
    scored. Examples are told apart as in :class:`TaylorExamples`.
    """

    fold = staticmethod(torch.abs)

    def is_live(self, term: Term) -> bool:
        """Whether the activation that a term reads got a gradient."""
        return (term.name, term.dim) in self._examples.seen

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the sum over examples, since the gradient of a mean loss carries one over their number."""
        sums, _ = self._examples.folded()
        assert sums is not None
        return sums * scale


MAX_EXAMPLES = 64
"""How many examples of a minibatch are looked at, at least; of one twice as large every second, and so on."""


class ExampleSums:
    """Watches what layers read, and sums activation times gradient for every example and unit.

    Forward hooks on convolutions and linear layers see the activations, which autograd holds anyway; each layer reads a
    view of its own, so that what flows back into it is that layer's share.

    Args:
        model: The network.
        readers: The weights that read units.
        num_units: Number of units.
        fold: Applied to the sums before they are added over examples.

    Attributes:
        seen: Names and axes of the weights whose layers took part in the backward passes so far.
    """

    def __init__(
        self, model: nn.Module, readers: Sequence[Term], num_units: int, fold: Callable[[Tensor], Tensor]
    ) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._num_units = num_units
        self._apply = fold
        self._task = -1
        self._sums: dict[int, Tensor] = {}
        self._folded: Tensor | None = None
        self._most = self._count = 0
        layers: dict[int, dict[nn.Module, None]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            layers.setdefault(id(parameter), {})[model.get_submodule(_layer(name))] = None
        # A parametrized layer may read with several parameters, and has one input.
        terms: dict[tuple[nn.Module, ...], list[Term]] = {}
        for term in readers:
            terms.setdefault((*layers[id(term.parameter)],), []).append(term)
        self._handles = [
            module.register_forward_pre_hook(self._watcher(several, axis))
            for modules, several in terms.items()
            for module in modules
            if (axis := _channel_axis(module, several[0])) is not None
        ]

    def folded(self) -> tuple[Tensor | None, int]:
        """Return the sums over examples, shape ``[num_units]``, and the number of examples."""
        self._fold()
        return self._folded, self._count

    def discard(self) -> None:
        """Forget what was seen."""
        self.seen.clear()
        self._sums.clear()
        self._folded, self._most, self._count = None, 0, 0

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _watcher(self, terms: Sequence[Term], axis: int) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            x = args[0] if args else None
            if type(x) is not Tensor or not x.requires_grad or not torch.is_grad_enabled():
                return None  # the network's input, an evaluation, or the fake tensors of a dry run
            if x.shape[axis] != len(terms[0].units):
                return None
            own = x.view_as(x)
            own.register_hook(lambda gradient: self._take(terms, x.detach(), gradient, axis % x.dim()))
            return (own, *args[1:])

        return hook

    def _take(self, terms: Sequence[Term], activation: Tensor, gradient: Tensor, axis: int) -> None:
        """Add one layer's activation times gradient to its units."""
        if (task := torch._C._current_graph_task_id()) != self._task:
            self._fold()  # another backward pass: other examples
            self._task = task
        if axis == 0:  # no batch
            activation, gradient, axis = activation.unsqueeze(0), gradient.unsqueeze(0), 1
        self._most = max(self._most, len(activation))
        step = max(len(activation) // MAX_EXAMPLES, 1)
        dtype = sum_dtype(activation)
        products = activation[::step].to(dtype) * gradient[::step].to(dtype)
        space = [d for d in range(1, products.dim()) if d != axis]
        self._add(len(activation), terms[0].units, products.sum(space) if space else products)
        self.seen.update((term.name, term.dim) for term in terms)

    def _add(self, count: int, units: Tensor, products: Tensor) -> None:
        """Add products of shape ``[examples looked at, channels]`` to the sums of layers with as many examples."""
        sums = self._sums.get(count)
        if sums is None:
            sums = self._sums[count] = products.new_zeros(len(products), self._num_units + 1)
        sums.index_add_(1, units.to(sums.device), products.to(sums))

    def _fold(self) -> None:
        """Close the books of a backward pass that is complete."""
        for count, sums in self._sums.items():
            folded = self._apply(sums[:, : self._num_units]).sum(0) * (count / len(sums))
            self._folded = folded if self._folded is None else self._folded + folded
        self._sums.clear()
        self._count += self._most
        self._most = 0


def _layer(name: str) -> str:
    """Return the module that a parameter belongs to, parametrized or not."""
    return name.rpartition(".")[0].partition("parametrizations.")[0].rstrip(".")


def _channel_axis(module: nn.Module, term: Term) -> int | None:
    """Return the axis of the module's input that a term reads, or ``None`` where that is not known."""
    if isinstance(module, nn.Linear):
        return -1 if term.dim == 1 else None
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size) if term.dim == (0 if module.transposed else 1) else None
    return None


@register_criterion("magnitude")
class Magnitude(Criterion):
    r"""L2 norm :math:`\|W(u)\|_2` of the weights that write a unit, for comparison; needs no data."""

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
        """Return the norms, float64 on the CPU, shape ``[num_units]``; NaN for units that no weight writes."""
        terms = find_terms(self.model, self.groups, "writer")
        sums = torch.zeros(self.num_units + 1, dtype=torch.float64)
        for term in terms:
            squares = term.parameter.to(sum_dtype(term.parameter)).square()
            sums.index_add_(0, term.units.cpu(), term.per_position(squares).cpu().double())
        return sums[: self.num_units].sqrt().masked_fill(~_units_of(terms, self.num_units), torch.nan)


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
