"""Modules that follow others inside the network: momentum encoders, mean teachers, averages. Teachers do not follow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.labels.twins import used_tensors
from lightning_taylor_prune.modules.likeness import (
    Twin,
    TwinCandidate,
    is_inside,
    named_as_average,
    sums,
    twin_candidates,
)
from lightning_taylor_prune.modules.updates_in_code import is_updated_in_code
from lightning_taylor_prune.plan import Indices


class TwinWatch:
    """Tells modules that follow others from teachers, by whether their values change although no gradient reaches them.

    At first a module whose values are like those of a trained one is taken for its follower. By the first prune more is
    known: it has changed, or it has not and is called in training, and then is a teacher, unless its name says that it
    is an average, the user says that it follows, or the training's code updates it from its leader (a target network
    that is copied anew after many steps). One that is never called holds numbers for its leader's, one by one, and
    follows.

    Args:
        model: The network as training begins.

    Attributes:
        sums: Sum of every parameter as training began, by name.
        undecided: What :meth:`settled` took for teachers although their values are like those of what is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.sums: Mapping[str, float] = _sums_by_name(model)
        self.undecided: list[Twin] = []

    def settled(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        trained: Collection[str],
        named: Collection[str] = (),
        holders: Sequence[object] = (),
    ) -> list[Twin]:
        """Return what does follow.

        Args:
            model: The network, not pruned yet.
            groups: Its groups, in which what seems to follow is tied.
            trained: Names of the parameters that gradients have reached so far.
            named: Names of modules of which the user says that they follow.
            holders: Objects beside the network whose methods may update it (callbacks).
        """
        seemed = [TwinCandidate(twin, alike=True) for twin in groups.twins]
        found = {c.twin.follower: c for c in (*twin_candidates(model), *seemed)}
        used, now = used_tensors(groups.structure.propagation.traces), _sums_by_name(model)
        changed = {name for name, value in now.items() if value != self.sums.get(name, value)}
        free = [c for c in found.values() if not any(is_inside(name, c.twin.follower) for name in trained)]
        follow = [
            c.twin
            for c in free
            if any(is_inside(c.twin.follower, name) for name in named)
            or _follows(model, c, used, changed)
            or (c.alike and is_updated_in_code(c.twin, [model, *holders]))
        ]
        self.undecided = [c.twin for c in free if c.alike and c.twin not in follow]
        return follow


def _follows(model: nn.Module, candidate: TwinCandidate, used: Collection[str], changed: set[str]) -> bool:
    name = candidate.twin.follower
    is_called = any(is_inside(tensor, name) for tensor in used)
    if candidate.alike and (not is_called or named_as_average([name])):
        return True
    is_frozen = not any(parameter.requires_grad for parameter in model.get_submodule(name).parameters())
    return (is_frozen or candidate.alike) and any(is_inside(parameter, name) for parameter in changed)


def _sums_by_name(model: nn.Module) -> dict[str, float]:
    named = dict(model.named_parameters())
    return dict(zip(named, sums(named.values()).tolist(), strict=True))


def carried_scores(state: Mapping[str, Any], old: ChannelGroups, new: ChannelGroups) -> dict[str, Any]:
    """Return a criterion's state for the groups of a new analysis of the same network.

    Args:
        state: The criterion's state for the old groups.
        old: The groups so far.
        new: The groups from now on.
    """
    index = torch.from_numpy(_old_units(old, new))
    return {
        name: _carried(value, index) if isinstance(value, Tensor) and value.shape == (old.num_units,) else value
        for name, value in state.items()
    }


def _carried(values: Tensor, index: Tensor) -> Tensor:
    return torch.where(index >= 0, values[index.clamp(min=0)], torch.zeros_like(values[:1]))


def _old_units(old: ChannelGroups, new: ChannelGroups) -> Indices:
    """Return for every unit the old one at its place in a parameter, the leader's where one follows; -1 without one."""
    index = np.full(new.num_units, -1, dtype=np.int64)
    for number in _followers_first(old, new):
        before, after = old.units_on(number), new.units_on(number)
        both = (before >= 0) & (after >= 0)
        index[after[both]] = before[both]
    return index


def _followers_first(old: ChannelGroups, new: ChannelGroups) -> Iterator[int]:
    axes, followers = new.structure.propagation.axes, old.followers | new.followers
    numbers = [(axis.tensor not in followers, number) for number, axis in enumerate(axes)]
    yield from (number for _, number in sorted(numbers))
