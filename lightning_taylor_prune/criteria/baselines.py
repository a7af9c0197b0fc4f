"""Criteria to compare with: magnitude and random order."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from lightning_taylor_prune.criteria.criterion import Criterion, register_criterion
from lightning_taylor_prune.criteria.terms import parameter_slices, units_of_slices


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
        """No minibatch is skipped."""
        return 0

    @torch.no_grad()
    def compute(self) -> Tensor:
        """Return the norms, float64 on the CPU, shape ``[num_units]``; NaN for units that no weight writes."""
        terms = parameter_slices(self.model, self.groups, "writer")
        sums = torch.zeros(self.num_units + 1, dtype=torch.float64)
        for term in terms:
            squares = term.weight().abs().square()
            sums.index_add_(0, term.units.cpu(), term.per_position(squares).cpu().double())
        return sums[: self.num_units].sqrt().masked_fill(~units_of_slices(terms, self.num_units), torch.nan)


@register_criterion("random")
class Random(Magnitude):
    """Random order, for comparison; drawn anew for every prune from torch's seed and the network's size."""

    def compute(self) -> Tensor:
        """Return uniform numbers, float64, shape ``[num_units]``."""
        generator = torch.Generator().manual_seed((torch.initial_seed() + self.num_units) % 2**63)
        return torch.rand(self.num_units, generator=generator, dtype=torch.float64)
