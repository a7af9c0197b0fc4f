"""What a criterion is: running means of every unit's importance over minibatches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_taylor_prune.criteria.inputs import InputSums
from lightning_taylor_prune.criteria.terms import (
    ParameterSlice,
    completed_by,
    parameter_slices,
    units_of_slices,
)
from lightning_taylor_prune.groups.groups import ChannelGroups

CRITERIA: dict[str, type[Criterion]] = {}
"""Criteria by name; :func:`register_criterion` adds to it."""


def register_criterion(name: str) -> Callable[[type[Criterion]], type[Criterion]]:
    """Register a :class:`Criterion` under a name.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> @register_criterion("gradient_norm")
        ... class GradientNorm(Criterion):
        ...     def minibatch(self, scale):
        ...         terms = parameter_slices(self.model, self.groups, "writer")
        ...         sums = torch.zeros(self.num_units + 1)
        ...         for term in terms:
        ...             sums.index_add_(0, term.units, term.per_position((term.parameter.grad * scale).square()))
        ...         return sums[:-1]
        >>> CRITERIA.pop("gradient_norm").__name__  # `TaylorPruningCallback(criterion="gradient_norm")` would use it
        'GradientNorm'
    """

    def decorate(cls: type[Criterion]) -> type[Criterion]:
        if name in CRITERIA:
            raise ValueError(f"There is a criterion `{name}` already: {CRITERIA[name].__name__}.")
        CRITERIA[name] = cls
        return cls

    return decorate


class Criterion(ABC):
    """Accumulates the importance of every unit over minibatches.

    Subclasses implement :meth:`minibatch`, or :meth:`compute` where no gradient is needed.

    Args:
        model: The network.
        groups: Its groups as it is now.

    Example:
        >>> from lightning_taylor_prune import find_groups
        >>> model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 5)
        >>> criterion = CRITERIA["taylor"](model, find_groups(model, x))
        >>> model(x).square().mean().backward()
        >>> criterion.update()
        >>> criterion.compute().shape
        torch.Size([4])
    """

    needs_gradients = True
    sees_backward = False
    """Whether hooks take in gradients during the backward pass, where fp16 scales them."""
    differs_by_rank = False
    """Whether each rank of a job sums over examples of its own."""
    normalize_default = "none"

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        self.model = model
        self.groups = groups
        self.num_units = groups.num_units
        self.steps = 0
        self.total: Tensor | None = None
        self.finite_steps: Tensor | None = None
        self.counts: Tensor | None = None
        self.live: Sequence[ParameterSlice] = ()
        self._masks: dict[tuple[Any, ...], Tensor] = {}
        self._scored: dict[str, bool] = {}

    def terms(self) -> Sequence[ParameterSlice]:
        """Return the parameters that take part; a unit one of whose parameters never has a gradient is not scored."""
        return ()

    def is_live(self, term: ParameterSlice) -> bool:
        """Whether the minibatch says something about a term."""
        return term.has_gradient

    @abstractmethod
    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the score of every unit for the minibatch whose gradients are in place, shape ``[num_units]``.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
        """

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in one minibatch, after its backward pass. Without device synchronisation.

        A minibatch with NaN or infinity anywhere is skipped; :attr:`skipped` counts them. One in which none of the
        terms has a gradient does not count as a minibatch.

        Args:
            scale: What gradients must be multiplied with to be those of the mean loss.
            parameters: Identities of the parameters whose gradients are of this minibatch; by default all.
        """
        self.live = [
            term for term in self.terms() if self.is_live(term) and (parameters is None or _is_of(term, parameters))
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

    def _mask(self, terms: Sequence[ParameterSlice], device: torch.device) -> Tensor:
        """Return which units some term touches, made once for each choice of terms."""
        key = (device, *(id(term) for term in terms))
        if key not in self._masks:
            self._masks[key] = units_of_slices(terms, self.num_units).to(device)
        return self._masks[key]

    @property
    def skipped(self) -> int:
        """Number of minibatches skipped because of NaN or infinity."""
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
        return units_of_slices(missing, self.num_units) | ~units_of_slices(terms, self.num_units)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, as plain data and tensors."""
        return {"steps": self.steps, "scored": dict(self._scored)} | {
            name: None if (value := getattr(self, name)) is None else value.to("cpu", copy=True) for name in _STATE
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from scores that were accumulated before, for the same groups."""
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self.steps = state["steps"]
        self._scored.update(state["scored"])
        for name in _STATE:
            setattr(self, name, None if state[name] is None else state[name].to(device, copy=True))

    def discard(self) -> None:  # noqa: B027 - most criteria hold nothing between updates
        """Forget the backward passes since the last update: they are not to count."""

    def close(self) -> None:  # noqa: B027 - most criteria have nothing to release
        """Release the network: criteria that have hooks on it remove them."""


def _is_of(term: ParameterSlice, parameters: Collection[int]) -> bool:
    """Whether a term belongs to an optimizer; a frozen weight belongs to every one."""
    return id(term.parameter) in parameters or not term.parameter.requires_grad


_STATE = ("total", "finite_steps", "counts")


class ReaderCriterion(Criterion):
    """Base of criteria that look at the weights which read a unit.

    A unit that no weight reads (its channels are averaged, say) is judged by the weights that write it. Where a reading
    weight is frozen, the activation that it reads and the gradient of that say the same.

    Attributes:
        inputs: Sums over what layers with frozen weights read.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        readers, writers = parameter_slices(model, groups, "reader"), parameter_slices(model, groups, "writer")
        self._terms = completed_by(self._preferred(readers), writers, self.num_units)
        reading = {(term.name, term.dim) for term in readers}
        self.inputs = InputSums(model, [t for t in self._terms if (t.name, t.dim) in reading], self.num_units)

    def _preferred(self, readers: Sequence[ParameterSlice]) -> Sequence[ParameterSlice]:
        """Return the terms that units are judged by, as far as they have any."""
        return readers

    def terms(self) -> Sequence[ParameterSlice]:
        """Return the reading weights."""
        return self._terms

    def is_live(self, term: ParameterSlice) -> bool:
        """Whether a term has a gradient, or what it reads."""
        return self.inputs.has(term) or super().is_live(term)

    def update(self, scale: float | Tensor = 1.0, parameters: Collection[int] | None = None) -> None:
        """Take in the backward passes since the last call."""
        self.inputs.agree()
        super().update(scale, parameters)
        self.discard()

    def discard(self) -> None:
        """Forget the backward passes since the last update."""
        self.inputs.discard()

    def close(self) -> None:
        """Remove the hooks."""
        self.inputs.close()
