"""Which parameters gradients reach: parts that none reaches (a teacher) are not pruned by themselves."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from lightning_taylor_prune.criteria.terms import has_gradient, parameter_slices, units_of_slices
from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.group import ChannelGroup
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import is_inside, twin_candidates


class TrainedParameters:
    """Names of the parameters that gradients have reached so far.

    Args:
        names: Those that are known already.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self.names = set(names)
        self._warned: set[str] = set()

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

    def warn_unscored(self, scores: Tensor, model: nn.Module, groups: ChannelGroups) -> None:
        """Say, of each group once, that it cannot be judged because the weights that matter have no gradient.

        Teachers are not spoken of: a network inside the network that is frozen whole, or is built as a part that is
        trained, is so on purpose.

        Args:
            scores: Shape ``[groups.num_units]``.
            model: The network.
            groups: Its groups.
        """
        parts = zip(groups, scores.split_with_sizes([g.num_channels for g in groups]), strict=True)
        unscored = [group for group, part in parts if part.isnan().all() and group.name not in self._warned]
        teachers = _teachers(model) if unscored else []
        names = [group.name for group in unscored if not _is_inside_one(group, model, teachers)]
        self._warned.update(group.name for group in unscored)
        if names:
            warnings.warn(
                f"{len(names)} groups have no score, since weights that matter for them get no gradient (frozen, or "
                f"not used in the loss), and are not pruned: {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
                PruningWarning,
                stacklevel=2,
            )


def _teachers(model: nn.Module) -> list[str]:
    return [*(candidate.twin.follower for candidate in twin_candidates(model)), *_frozen_networks(model)]


def _is_inside_one(group: ChannelGroup, model: nn.Module, parts: Collection[str]) -> bool:
    """Whether all parameters of a group lie in one of some modules."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    touched = [piece.tensor for piece in group.slices if piece.tensor in parameters]
    return any(all(is_inside(name, part) for name in touched) for part in parts)


def _frozen_networks(model: nn.Module) -> Iterator[str]:
    """Yield the names of modules of several layers that are frozen whole."""
    for name, module in model.named_modules():
        layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
        if name and len(layers) > 1 and not any(p.requires_grad for p in module.parameters()):
            yield name


def _parameters_of_calls(model: nn.Module, groups: ChannelGroups) -> Iterator[nn.Parameter]:
    for name in dict.fromkeys(call.module for call in groups.calls):
        yield from model.get_submodule(name).parameters()
