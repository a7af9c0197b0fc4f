"""Which parameters gradients reach: parts that none reaches (a teacher) are not pruned by themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from lightning_taylor_prune.criteria.terms import has_gradient, parameter_slices, units_of_slices
from lightning_taylor_prune.groups.groups import ChannelGroups


class TrainedParameters:
    """Names of the parameters that gradients have reached so far.

    Args:
        names: Those that are known already.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self.names = set(names)

    def note(self, model: nn.Module, parameters: Collection[int] | None = None) -> None:
        """Note the parameters that have a gradient now.

        Args:
            model: The network.
            parameters: Identities of the parameters to look at; by default all.
        """
        self.names.update(
            name
            for name, parameter in model.named_parameters()
            if has_gradient(parameter) and (parameters is None or id(parameter) in parameters)
        )

    def without_frozen(self, scores: Tensor, model: nn.Module, groups: ChannelGroups) -> Tensor:
        """Return scores with NaN, which is never chosen, for units that no gradient reaches.

        A network (or target) of which no parameter is trained at all is meant to be pruned, and keeps its scores.

        Args:
            scores: Shape ``[groups.num_units]``.
            model: The network.
            groups: Its groups.
        """
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trained = self.names & trainable or trainable
        if not any(parameter.requires_grad for parameter in _parameters_of_calls(model, groups)):
            return scores
        slices = [s for role in ("writer", "reader", "affine") for s in parameter_slices(model, groups, role)]
        reached = units_of_slices([s for s in slices if s.name in trained], groups.num_units)
        return scores.masked_fill(~reached, torch.nan)


def _parameters_of_calls(model: nn.Module, groups: ChannelGroups) -> Iterator[nn.Parameter]:
    for name in dict.fromkeys(call.module for call in groups.calls):
        yield from model.get_submodule(name).parameters()
