r"""First-order Taylor criteria that need nothing but parameters and their gradients.

The first-order Taylor expansion of the loss :math:`L` when a unit's contribution :math:`a` goes to zero is
:math:`\Delta L \approx -\sum a \cdot \partial L / \partial a`. Where the unit is read by a weight :math:`w`, the
same number is :math:`\sum w \cdot \partial L / \partial w` over the slice that reads it, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_taylor_prune.criteria.criterion import Criterion, ReaderCriterion, register_criterion
from lightning_taylor_prune.criteria.terms import (
    ParameterSlice,
    completed_by,
    parameter_slices,
    squared_sums,
)
from lightning_taylor_prune.groups.groups import ChannelGroups


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

    Of a complex weight, :math:`w \cdot \partial L / \partial w` is the derivative by a real gate on it; of a weight
    that is computed from others (weight or spectral normalisation), it is that of the computed one. Where a reading
    weight is frozen, hooks sum activation times gradient over what it reads, which is the same, as long as gradients
    flow back through it.

    Where BatchNorm follows the reader, its statistics follow the unit, so that the sum over a whole minibatch feels the
    unit less than the sum over any part of it does: :class:`TaylorExamples` ranks better, and needs hooks.
    """

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the squared sums of this minibatch."""
        return (self.inputs.signed_sums(self.live) * scale).square()


@register_criterion("taylor_gate")
class TaylorGate(Taylor):
    r"""The 2019 gate after normalisation (Molchanov et al. 2019, section 4).

    .. math:: s_u = \operatorname{mean}_b \Big(\sum_{(\gamma, \beta) \in N(u)} \gamma\,g_\gamma + \beta\,g_\beta\Big)^2

    with :math:`N(u)` the affine parameters of the normalisations that unit :math:`u` passes, and :math:`g` their
    gradients. It is exactly the sum over batch and space of activation times gradient at the output of the
    normalisation. Units without a normalisation of their own, or with a frozen one, use the weights that read them.
    """

    def _preferred(self, readers: Sequence[ParameterSlice]) -> Sequence[ParameterSlice]:
        """Return the affine parameters of trained normalisations, and what reads units without."""
        found = parameter_slices(self.model, self.groups, "affine")
        gates = [term for term in found if _is_normalisation(self.model, term.name)]
        frozen = {_owner(term.name) for term in gates if not term.parameter.requires_grad}
        return completed_by([term for term in gates if _owner(term.name) not in frozen], readers, self.num_units)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _is_normalisation(model: nn.Module, name: str) -> bool:
    owner = model.get_submodule(_owner(name))
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
        readers, writers = parameter_slices(model, groups, "reader"), parameter_slices(model, groups, "writer")
        self._terms = completed_by(writers, readers, self.num_units)

    def terms(self) -> Sequence[ParameterSlice]:
        """Return the writing weights."""
        return self._terms

    def minibatch(self, scale: float | Tensor) -> Tensor:
        """Return the sums of squares of this minibatch."""
        return squared_sums(self.live, self.num_units) * scale**2
