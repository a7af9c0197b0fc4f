"""Watch what the layers that read units get, and the gradient that flows back into it: weights need none for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_taylor_prune.criteria.terms import ParameterSlice, real_product, signed_sums, sum_dtype
from lightning_taylor_prune.tracing.own_hook import OwnHook

Take = Callable[[Sequence[ParameterSlice], Tensor, Tensor, int], None]
"""Gets the terms of a layer, its input, the gradient of that, and the axis of the channels."""


class ReaderInputs:
    """Hooks on convolutions and linear layers that read units.

    Each layer reads a view of its own, so that what flows back into it is that layer's share. Copies of a layer, deep
    or shallow, are not watched.

    Args:
        layers: The layers, and the weights by which each reads units.
        take: Called in the backward pass for every layer.
    """

    def __init__(self, layers: Iterable[tuple[nn.Module, Sequence[ParameterSlice]]], take: Take) -> None:
        self._take = take
        self._overwritten: set[nn.Module] = set()
        self._outer: dict[int, int] = {}
        self._handles = [
            module.register_forward_pre_hook(OwnHook(self._watcher(module, terms, axis)))
            for module, terms in layers
            if (axis := _channel_axis(module, terms)) is not None
        ]

    def __bool__(self) -> bool:
        """Whether any layer is watched."""
        return bool(self._handles)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _watcher(self, watched: nn.Module, terms: Sequence[ParameterSlice], axis: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            x = args[0] if args else None
            if module is not watched or type(x) is not Tensor or not x.requires_grad or not torch.is_grad_enabled():
                return None  # a copy, the network's input, an evaluation, or the fake tensors of a dry run
            if x.shape[axis] != len(terms[0].units):
                return None
            own, read, outer = x.view_as(x), self._kept(module, x), self._note_recomputation()

            def arrived(gradient: Tensor) -> None:
                self._outer[torch._C._current_graph_task_id()] = outer
                self._take(terms, read(), gradient, axis % x.dim())

            own.register_hook(arrived)
            return (own, *args[1:])

        return hook

    def _note_recomputation(self) -> int:
        """Return the backward pass in which a layer runs, as a checkpointed one does again; -1 in a forward pass."""
        running = torch._C._current_graph_task_id()
        if running < 0:
            self._outer.clear()
        return running

    def backward_pass(self) -> int:
        """Return a number of the backward pass that the user has started: reentrant checkpoints start others in it."""
        number = torch._C._current_graph_task_id()
        while (outer := self._outer.get(number, -1)) not in (-1, number):
            number = outer
        return number

    def _kept(self, module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
        """Return what returns the input as the layer reads it; NaN if it is overwritten, which is then expected.

        A frozen layer needs no input for its backward pass, so that the network may go on to overwrite it.
        """
        kept = x.detach().clone() if module in self._overwritten else x.detach()
        version = kept._version

        def read() -> Tensor:
            if kept._version == version:
                return kept
            self._overwritten.add(module)
            return torch.full_like(kept, torch.nan)

        return read


class InputSums:
    """Signed sums of activation times gradient over whole minibatches, for what gradients of weights do not tell.

    That is so for layers with frozen weights (a base with adapters), and for those that compute their weight from
    others (spectral normalisation). The sum equals that of weight times gradient over the weight which the layer uses.

    Args:
        model: The network.
        readers: The weights that read units.
        num_units: Number of units.

    Attributes:
        seen: Names and axes of the weights whose layers took part in the backward passes so far.
    """

    def __init__(self, model: nn.Module, readers: Sequence[ParameterSlice], num_units: int) -> None:
        self.seen: set[tuple[str, int]] = set()
        self._num_units = num_units
        self._sums: Tensor | None = None
        self._like = readers[0].parameter if readers else None
        silent = [(m, terms) for m, terms in layers_reading(model, readers) if any(_is_silent(m, t) for t in terms)]
        self._inputs = ReaderInputs(silent, self._take)

    def has(self, term: ParameterSlice) -> bool:
        """Whether the sums hold what a term adds."""
        return (term.name, term.dim) in self.seen

    def agree(self) -> None:
        """Take the mean over all ranks, as gradients of weights are; all must call."""
        if self._inputs and dist.is_available() and dist.is_initialized():
            sums = self._zeros() if self._sums is None else self._sums
            dist.all_reduce(sums)
            self._sums = sums / dist.get_world_size()

    def signed_sums(self, terms: Sequence[ParameterSlice]) -> Tensor:
        """Return every unit's sum over all its terms, those that only gradients of weights tell included.

        Args:
            terms: The terms that took part.

        Returns:
            Shape ``[num_units]``.
        """
        sums = signed_sums([term for term in terms if not self.has(term)], self._num_units)
        return sums if self._sums is None else sums.to(self._sums.device) + self._sums[: self._num_units]

    def discard(self) -> None:
        """Forget what was seen."""
        self.seen.clear()
        self._sums = None

    def close(self) -> None:
        """Remove the hooks."""
        self._inputs.close()

    def _zeros(self) -> Tensor:
        assert self._like is not None
        return torch.zeros(self._num_units + 1, dtype=sum_dtype(self._like), device=self._like.device)

    def _take(self, terms: Sequence[ParameterSlice], activation: Tensor, gradient: Tensor, axis: int) -> None:
        """Add one layer's activation times gradient to its units."""
        if self._sums is None:
            self._sums = self._zeros()
        products = real_product(activation, gradient)
        others = [dim for dim in range(products.dim()) if dim != axis]
        values = products.sum(others) if others else products
        self._sums.index_add_(0, terms[0].units.to(self._sums.device), values.to(self._sums))
        self.seen.update((term.name, term.dim) for term in terms)


def layers_reading(
    model: nn.Module, readers: Sequence[ParameterSlice]
) -> list[tuple[nn.Module, Sequence[ParameterSlice]]]:
    """Return the layers whose weights read units, each with its weight's term and those that read the same units.

    A parametrized layer, or one with adapters in it, may read with several parameters, and has one input.
    """
    layers: dict[int, dict[nn.Module, None]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layers.setdefault(id(parameter), {})[model.get_submodule(_layer(name))] = None
    terms: dict[tuple[nn.Module, ...], list[ParameterSlice]] = {}
    for term in readers:
        terms.setdefault((*layers[id(term.parameter)],), []).append(term)
    reading = [(modules, _of_input(several)) for modules, several in terms.items()]
    return [(module, several) for modules, several in reading if several for module in modules]


def _of_input(terms: Sequence[ParameterSlice]) -> list[ParameterSlice]:
    """Return a layer's terms that read its input: its weight's first, and those of the same units."""
    weight = next((t for t in terms if _is_weight(t.name)), None)
    if weight is None:
        return []
    same = weight.units.unique()
    return [weight, *(t for t in terms if t is not weight and t.units.unique().equal(same))]


def _is_weight(name: str) -> bool:
    """Whether a parameter is a layer's weight, or what a parametrization or a hook (``weight_orig``) makes it of."""
    parts = name.rpartition("parametrizations.")[2].split(".")
    return "weight" in parts or parts[-1].startswith("weight_")


def _is_silent(module: nn.Module, term: ParameterSlice) -> bool:
    """Whether the gradient of a parameter does not tell what a gate on the layer's input would."""
    is_computed = term.gain is None and "weight" not in module._parameters
    return is_computed or not all(p.requires_grad for p in (term.parameter, term.gain) if p is not None)


def _layer(name: str) -> str:
    """Return the module that a parameter belongs to, parametrized or not."""
    return name.rpartition(".")[0].partition("parametrizations.")[0].rstrip(".")


def _channel_axis(module: nn.Module, terms: Sequence[ParameterSlice]) -> int | None:
    """Return the axis of the module's input that its weights read, or ``None`` where that is not known."""
    dim = terms[0].dim
    if isinstance(module, nn.Linear):
        return -1 if dim == 1 else None
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size) if dim == (0 if module.transposed else 1) else None
    return None
