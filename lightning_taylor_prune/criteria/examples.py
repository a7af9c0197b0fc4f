"""Taylor criteria that tell the examples of a minibatch apart, by hooks on the layers that read units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_taylor_prune.criteria.criterion import ReaderCriterion, register_criterion
from lightning_taylor_prune.criteria.inputs import ReaderInputs, layers_reading
from lightning_taylor_prune.criteria.terms import ParameterSlice, parameter_slices, real_product
from lightning_taylor_prune.groups.groups import ChannelGroups


class ExampleCriterion(ReaderCriterion):
    """Base of criteria that tell the examples of a minibatch apart, by hooks.

    Under data parallelism every rank sees its own examples; :meth:`compute` adds them up and must be called on all.
    """

    sees_backward = differs_by_rank = True
    fold: Callable[[Tensor], Tensor]

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        super().__init__(model, groups)
        readers = parameter_slices(model, groups, "reader")
        self._examples = PerExampleSums(model, readers, self.num_units, type(self).fold)

    def _found(self, sums: Tensor | None) -> Tensor:
        """Return sums over examples; zeros where no weight reads or writes a unit, so that none was watched."""
        return torch.zeros(self.num_units) if sums is None else sums

    def over_ranks(self, total: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Add up what all ranks saw, each of its own examples; all must call."""
        if not (dist.is_available() and dist.is_initialized()):
            return total, counts
        both = torch.stack([total, counts.to(total.dtype)])
        dist.all_reduce(both)
        return both[0], both[1]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from sums so far; if they are of all ranks, the first rank has them and the others begin at zero."""
        super().load_state_dict(state)
        if state.get("of_all_ranks") and dist.is_available() and dist.is_initialized() and dist.get_rank() > 0:
            self.total, self.counts = (None if s is None else torch.zeros_like(s) for s in (self.total, self.counts))

    def discard(self) -> None:
        """Forget the backward passes since the last update."""
        super().discard()
        self._examples.discard()

    def close(self) -> None:
        """Remove the hooks."""
        super().close()
        self._examples.close()


@register_criterion("taylor_examples")
class TaylorExamples(ExampleCriterion):
    r"""First-order Taylor expansion where a unit is read, example by example.

    .. math:: s_u = \operatorname{mean}_n \Big(\sum_{r \in R(u)} \sum_{hw} a_r \cdot \partial L_n / \partial a_r\Big)^2

    over examples :math:`n`, with :math:`R(u)` the layers that read unit :math:`u` and :math:`a_r` the activation that
    layer :math:`r` reads: :class:`Taylor`, with examples for minibatches. It ranks units better, and after few
    minibatches, at the price of one product per reading layer. Of a minibatch of more than :data:`MAX_EXAMPLES`
    examples every second is looked at, or every third, as long as at least that many remain.

    Units that something else than a convolution or linear layer reads (a weight used by a function, attention) are
    summed over the minibatch as :class:`Taylor` does, on the same scale, and so are all units in a minibatch whose
    forward pass came before this criterion. A frozen weight takes part if what it reads gets a gradient.
    """

    fold = staticmethod(torch.square)

    def is_live(self, term: ParameterSlice) -> bool:
        """Whether the activation that a term reads got a gradient, or the term itself."""
        return (term.name, term.dim) in self._examples.seen or super().is_live(term)

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the mean squares over the examples of this minibatch."""
        sums, count = self._examples.folded()
        unseen = [term for term in self.live if (term.name, term.dim) not in self._examples.seen]
        if not unseen:
            return self._found(sums) * (count * scale**2)
        whole = self.inputs.signed_sums(self.live).square()
        if sums is not None:
            whole = torch.where(self._mask(unseen, whole.device), whole, sums)
        return whole * (max(count, 1) * scale**2)


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

    def is_live(self, term: ParameterSlice) -> bool:
        """Whether the activation that a term reads got a gradient."""
        return (term.name, term.dim) in self._examples.seen

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the sum over examples, since the gradient of a mean loss carries one over their number."""
        sums, _ = self._examples.folded()
        return self._found(sums) * scale


MAX_EXAMPLES = 64
"""How many examples of a minibatch are looked at, at least; of one twice as large every second, and so on."""


class PerExampleSums:
    """Watches what layers read, and sums activation times gradient for every example and unit.

    Forward hooks on convolutions and linear layers see the activations, which autograd holds anyway unless the layer is
    frozen: see :class:`~lightning_taylor_prune.criteria.inputs.ReaderInputs`.

    Args:
        model: The network.
        readers: The weights that read units.
        num_units: Number of units.
        fold: Applied to the sums before they are added over examples.

    Attributes:
        seen: Names and axes of the weights whose layers took part in the backward passes so far.
    """

    def __init__(
        self, model: nn.Module, readers: Sequence[ParameterSlice], num_units: int, fold: Callable[[Tensor], Tensor]
    ) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._num_units = num_units
        self._apply = fold
        self._task = -1
        self._sums: dict[int, Tensor] = {}
        self._folded: Tensor | None = None
        self._most = self._count = 0
        self._inputs = ReaderInputs(layers_reading(model, readers), self._take)

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
        self._inputs.close()

    def _take(self, terms: Sequence[ParameterSlice], activation: Tensor, gradient: Tensor, axis: int) -> None:
        """Add one layer's activation times gradient to its units."""
        if (task := self._inputs.backward_pass()) != self._task:
            self._fold()  # another backward pass: other examples
            self._task = task
        if axis == 0:  # no batch
            activation, gradient, axis = activation.unsqueeze(0), gradient.unsqueeze(0), 1
        self._most = max(self._most, len(activation))
        step = max(len(activation) // MAX_EXAMPLES, 1)
        products = real_product(activation[::step], gradient[::step])
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
        """Add a complete backward pass to the result."""
        for count, sums in self._sums.items():
            folded = self._apply(sums[:, : self._num_units]).sum(0) * (count / len(sums))
            self._folded = folded if self._folded is None else self._folded + folded
        self._sums.clear()
        self._count += self._most
        self._most = 0
