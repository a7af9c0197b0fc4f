"""The network as it was before anything was removed, frozen, to teach the pruned one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.loading import make_loadable


class Teacher:
    """A frozen network in evaluation mode that is called without gradients, wherever and however small it is kept.

    It is no module, so that a module that holds it neither trains nor saves it.

    Args:
        network: The network; it is frozen and used as it is. :meth:`copy_of` takes a copy.
        device: Where it is kept and run, such as ``"cpu"`` to save memory of the GPU; ``None`` for where it is.
        dtype: A floating-point type to keep it in, such as ``torch.bfloat16``; ``None`` for its own.

    Attributes:
        network: The network.

    Raises:
        ArgumentError: ``dtype`` is no floating-point type.

    Example:
        >>> network = nn.Linear(4, 2)
        >>> teacher = Teacher.copy_of(network)
        >>> torch.equal(teacher(torch.ones(1, 4)), network(torch.ones(1, 4))), teacher(torch.ones(1, 4)).requires_grad
        (True, False)
    """

    def __init__(self, network: nn.Module, device: Any = None, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ArgumentError(f"Expected argument `dtype` to be a floating-point type, but got {dtype!r}.")
        self.network = network.eval().requires_grad_(False)
        self._device, self._dtype = device, dtype
        self.network.to(device=device, dtype=dtype)

    @staticmethod
    def copy_of(network: nn.Module, device: Any = None, dtype: torch.dtype | None = None) -> Teacher:
        """Return the teacher that a network is now; the network is not changed."""
        return Teacher(copy.deepcopy(network), device, dtype)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network returns, on the device and in the types of the arguments."""
        return self.part("", args, kwargs)

    def part(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a submodule returns; ``""`` names the network itself."""
        module, given = self.network.get_submodule(name), _first_tensor(args, kwargs)
        own = next(module.parameters(), None)
        with torch.no_grad():
            if own is None or given is None:
                return module(*args, **kwargs)
            args, kwargs = self._moved((args, dict(kwargs)), own.device, self._dtype)
            with _own_precision(own.device) if self._dtype else contextlib.nullcontext():
                output = module(*args, **kwargs)
            return self._moved(output, given.device, given.dtype if self._dtype else None)

    def to(self, device: Any) -> Teacher:
        """Move it to where the pruned network is, unless it was given a place of its own."""
        if self._device is None:
            self.network.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the network's weights, in the type that it is kept in."""
        state: dict[str, Any] = self.network.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the weights and shapes of another one's state: it may have been taken from a pruned network."""
        handle = make_loadable(self.network)
        try:
            self.network.load_state_dict(state)
        finally:
            handle.remove()
        self.network.requires_grad_(False)

    @staticmethod
    def _moved(values: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return tree_map_only(Tensor, move, values)


def _own_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Run in the type of the weights, also where the Trainer's autocast is on."""
    return torch.autocast(device.type, enabled=False)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, (args, dict(kwargs)))
    return next((t for t in found if t.is_floating_point()), found[0] if found else None)
