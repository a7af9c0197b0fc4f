"""What lies beside a network and changes with it at a cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.holders import Copy, Holders
from lightning_taylor_prune.pruning.optimizers import unwrap


@dataclass(frozen=True, eq=False)
class Beside:
    """What lies beside a network and changes with it at a cut.

    Attributes:
        copies: What is cut along.
        holders: Objects in which parameters are exchanged.
        optimizers: Optimizers that the network's modules or these objects keep for themselves.
    """

    copies: tuple[Copy, ...]
    holders: tuple[object, ...]
    optimizers: tuple[Optimizer, ...]

    @staticmethod
    def of(network: nn.Module, copies: Iterable[object] = (), holders: Sequence[object] = ()) -> Beside:
        """Look for what belongs to a network's parameters.

        Args:
            network: The network.
            copies: What is to be cut along: modules, dictionaries, lists, or copies that were found already.
            holders: Objects that may hold parameters of the network, or optimizers.

        Raises:
            ArgumentError: A copy is none of this network.
        """
        found = Holders(network)
        known = tuple(c if isinstance(c, Copy) else copy_named(found, c) for c in copies)
        return Beside(known, tuple(holders), tuple(found.optimizers([network, *holders])))

    def with_optimizers(self, optimizers: Sequence[object] | object) -> list[object]:
        """Return optimizers, and the further ones that were found."""
        several = list(optimizers) if isinstance(optimizers, (list, tuple)) else [optimizers]
        known = {id(unwrap(optimizer)) for optimizer in several}
        return [*several, *(o for o in self.optimizers if id(unwrap(o)) not in known)]


def inside_and_beside(network: nn.Module, copies: Iterable[object]) -> tuple[list[str], list[object]]:
    """Return the names of those copies that are modules of the network itself, and the other copies."""
    names = {id(module): name for name, module in network.named_modules() if name}
    several = list(copies)
    return [names[id(c)] for c in several if id(c) in names], [c for c in several if id(c) not in names]


def copy_named(found: Holders, value: object) -> Copy:
    """Return what a user says is a copy, as one: also where an average wraps it.

    Raises:
        ArgumentError: It is none.
    """
    inner = [value, *value.children()] if isinstance(value, nn.Module) else [value]
    copy = next((copy for one in inner if (copy := found.as_copy(one)) is not None), None)
    if copy is None:
        raise ArgumentError(
            "Expected each of `copies` to be a copy of the network or of a submodule, a dictionary from names of its "
            "parameters to tensors of their shapes, or a list of tensors in the order of a module's parameters, but "
            f"got a {type(value).__name__} whose names or shapes are others. Was it made before the network was pruned?"
        )
    return copy
