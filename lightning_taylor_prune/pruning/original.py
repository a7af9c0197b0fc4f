"""The network before its first prune: analysed again, it has the same groups and units, whatever was removed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin
from lightning_taylor_prune.pruning.checkpoint import attributes_of, set_attributes_of, shapes_of
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.recorder import Trace


@dataclass(frozen=True)
class OriginalNetwork:
    """Sizes of a network before its first prune, and how it is called.

    Attributes:
        shapes: Shape of every parameter and buffer.
        attributes: Attributes that depend on shapes, by module and path.
        encoded_calls: The calls as plain data; ``None`` where their arguments hold other things than that.
        fixed: Names of parameters and buffers that keep their sizes.
        in_submodules: The network cannot be traced as a whole.
        by_step: What was analysed is the training step itself.
        answered: The calls depend on the values of tensors, and were run for real once.
        twins: Modules that follow others, and these.
    """

    shapes: Mapping[str, Sequence[int]]
    attributes: Mapping[str, Mapping[str, Any]]
    encoded_calls: Sequence[dict[str, Any]] | None
    fixed: tuple[str, ...]
    in_submodules: bool
    by_step: bool = False
    answered: bool = False
    twins: tuple[Twin, ...] = ()

    @staticmethod
    def of(model: nn.Module, groups: ChannelGroups) -> OriginalNetwork:
        """Note what an unpruned network is like.

        Args:
            model: The network, unpruned.
            groups: Its groups.
        """
        attributes = attributes_of(model)
        for rule in groups.analysis.changes.size_rules:
            attributes.setdefault(rule.module, {})[rule.path] = rule.original
        calls = encode_calls(groups.calls, device_of(model))
        in_submodules = any(call.is_submodule for call in groups.calls)
        return OriginalNetwork(
            shapes_of(model),
            attributes,
            calls,
            groups.fixed,
            in_submodules,
            by_step=any(call.method for call in groups.calls),
            answered=any(call.answers for call in groups.calls),
            twins=groups.twins,
        )

    def find_groups(
        self, model: nn.Module, calls: Sequence[Call], rewrite_hard_coded: bool, former: Sequence[Trace] = ()
    ) -> ChannelGroups:
        """Analyse a pruned network as it was before; the network comes out untouched.

        Args:
            model: The network as it is now.
            calls: How it is called.
            rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
            former: Traces of the network, if it has lost nothing yet.

        Returns:
            The groups of the unpruned network.
        """
        now = attributes_of(model)
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        try:
            set_attributes_of(model, self.attributes)
            return groups_of_calls(model, calls, shapes, rewrite_hard_coded, self.fixed, self.twins, former)
        finally:
            set_attributes_of(model, now)

    def calls(self, model: nn.Module) -> list[Call] | None:
        """Return how the network is called, if that could be written down."""
        return None if self.encoded_calls is None else decode_calls(self.encoded_calls, device_of(model))

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for a checkpoint."""
        return {
            "shapes": dict(self.shapes),
            "attributes": dict(self.attributes),
            "calls": self.encoded_calls,
            "fixed": list(self.fixed),
            "in_submodules": self.in_submodules,
            "by_step": self.by_step,
            "answered": self.answered,
            "twins": [list(twin) for twin in self.twins],
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> OriginalNetwork:
        """Read what :meth:`state_dict` returned."""
        changed = {
            "encoded_calls": state["calls"],
            "fixed": tuple(state["fixed"]),
            "twins": tuple(Twin(*names) for names in state["twins"]),
        }
        return OriginalNetwork(**{name: value for name, value in state.items() if name != "calls"} | changed)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
