"""What a network costs with the channels that it still has."""

from __future__ import annotations

import math
from functools import cached_property

from lightning_taylor_prune.groups.analysis import Analysis
from lightning_taylor_prune.groups.families import layer_name
from lightning_taylor_prune.groups.shapes import KeepMask
from lightning_taylor_prune.groups.structure import Structure
from lightning_taylor_prune.labels.places import Axis


class CountedCosts:
    """The part of :class:`~lightning_taylor_prune.groups.groups.ChannelGroups` that counts; nothing is run for it."""

    analysis: Analysis
    kept: KeepMask

    @property
    def structure(self) -> Structure:
        """Every size in the network."""
        return self.analysis.structure

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer of the network as it is now, tied ones under their first name."""
        return self.structure.tensor_shapes(self.kept)

    @cached_property
    def params(self) -> int:
        """Number of parameters now; tied ones count once, buffers do not."""
        is_parameter = self.structure.propagation.traces[0].is_parameter
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name in is_parameter)

    @cached_property
    def macs(self) -> int:
        """MACs of one call with the captured input, batch included."""
        return self.structure.macs(self.kept)

    @cached_property
    def memory(self) -> int:
        """Bytes of all parameters and buffers in their dtypes; tied ones count once."""
        tensors = self.structure.propagation.traces[0].tensors
        return sum(math.prod(shape) * tensors[name].element_size() for name, shape in self.shapes.items())

    @cached_property
    def activation_memory(self) -> int:
        """Most bytes of activations that are alive at once in one call with the captured input, batch included.

        The call is that of the first trace, in the mode that the network was in. Each result of an operator is alive
        up to the last operator that uses it, as in inference; inputs, and what the network returns, up to the end.
        Views and operators that work in place allocate nothing. Parameters, buffers, and what an operator needs inside
        only (its workspace) are not counted, nor is what autograd keeps for the backward pass.
        """
        return self.structure.activation_memory(self.kept)

    @cached_property
    def filters(self) -> dict[str, int]:
        """Channels that the weights of each layer write now: filters of convolutions, units of linear layers."""
        found: dict[str, int] = {}
        for number in sorted(self.structure.propagation.writers):
            axis = self.structure.propagation.axes[number]
            if self._is_weight(axis):
                name = layer_name(axis.tensor)
                found[name] = found.get(name, 0) + self.shapes[axis.tensor][axis.dim]
        return found

    @cached_property
    def num_filters(self) -> int:
        """Number of filters now, units of linear layers included."""
        return sum(self.filters.values())

    def _is_weight(self, axis: Axis) -> bool:
        return len(self.shapes[axis.tensor]) > 1
