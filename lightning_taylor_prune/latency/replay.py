"""Run a trace once more on fake tensors, in evaluation mode, another dtype or memory format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.fakes import fake_tensor_log_off
from lightning_taylor_prune.tracing.packing import call_operator
from lightning_taylor_prune.tracing.recorder import Trace
from lightning_taylor_prune.tracing.tensors import memory_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Layout:
    """Type and memory format of a network and its input.

    Attributes:
        dtype: Of all that are floating point numbers; ``None``: as it was traced.
        channels_last: Whether channels of images are innermost in memory; ``None``: as it was traced.
    """

    dtype: torch.dtype | None = None
    channels_last: bool | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return a parameter, buffer or input in this type and memory format."""
        dtype = self.dtype if self.dtype is not None and tensor.is_floating_point() else tensor.dtype
        if self.channels_last is None or tensor.dim() != 4:
            return tensor.to(dtype)
        return tensor.to(dtype, memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def autocast_of(self, call: Call) -> tuple[str, torch.dtype] | None:
        """Return device type and dtype of the autocast region in which a network runs so."""
        return call.autocast if self.dtype is None else None


def autocast(settings: tuple[str, torch.dtype] | None) -> AbstractContextManager[Any]:
    """Return the context of an autocast region, or of none."""
    return nullcontext() if settings is None else torch.autocast(*settings)


def values_of(trace: Trace, layout: Layout) -> dict[Node, Any]:
    """Return the value of every node of a trace, in another layout: fake tensors, and what else operators give.

    What fails in that layout has the value that was recorded.
    """
    values: dict[Node, Any] = {}
    with torch.no_grad(), trace.mode, autocast(layout.autocast_of(trace.call)), fake_tensor_log_off():
        for node in trace.graph.nodes:
            if node.op == "placeholder":
                values[node] = layout.of(node.meta["val"].detach())
            elif node.target is getitem:
                values[node] = values[node.args[0]][node.args[1]]
            elif node.op == "call_function":
                values[node] = _value(node, values, layout)
    return values


def _value(node: Node, values: Mapping[Node, Any], layout: Layout) -> Any:
    args, kwargs = evaluated(node)
    if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point and not node.all_input_nodes:
        kwargs["dtype"] = layout.dtype or kwargs["dtype"]  # a state of zeros, say, of the type of the input
    try:
        return call_operator(node.target, *map_arg((args, kwargs), values.__getitem__))
    except Exception:  # such as a convolution that has no kernel for this dtype, or a mixture of dtypes
        return node.meta["val"]


_FLAGS: Mapping[str, Any] = {"training": False, "train": False, "dropout_p": 0.0}


def evaluated(node: Node) -> Arguments:
    """Return the arguments that an operator has in evaluation mode."""
    args, kwargs = list(node.args), dict(node.kwargs)
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    if "running_mean" in names and args[names.index("running_mean")] is None:
        return tuple(args), kwargs  # statistics of the batch are used in both modes
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name in _FLAGS and position < len(args):
            args[position] = _FLAGS[argument.name]
        elif argument.name in _FLAGS and argument.name in kwargs:
            kwargs[argument.name] = _FLAGS[argument.name]
    return tuple(args), kwargs


def changes_operands(target: Any) -> bool:
    """Whether an operator works in place."""
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def is_view(node: Node, values: Mapping[Node, Any]) -> bool:
    """Whether an operator copies nothing: its result is the memory of an operand, which it does not change."""
    result = values[node]
    if changes_operands(node.target):
        return False
    results = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, Tensor)]
    memory = {storage_of(values[n]) for n in node.all_input_nodes if isinstance(values[n], Tensor)}
    return bool(results) and all(storage_of(r) in memory for r in results)


def storage_of(tensor: Tensor) -> Any:
    """Return a key for the memory that a tensor lies in, equal for all its views."""
    memory = memory_of(tensor)
    return memory[0] if isinstance(memory, tuple) else memory


def axes_in_memory(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of a tensor from the outermost to the innermost in memory, and those that are expanded."""
    if tensor.layout != torch.strided:
        return tuple(range(tensor.dim())), ()
    expanded = tuple(a for a in range(tensor.dim()) if tensor.stride(a) == 0 and tensor.shape[a] > 1)
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    return tuple(order), expanded


def nodes_in_order(trace: Trace) -> Iterator[tuple[int, Node]]:
    """Yield every operator that works on more than single numbers (such as counters of steps), with its position."""
    for index, node in enumerate(trace.ops):
        tensors = [n.meta["val"] for n in [node, *node.all_input_nodes] if isinstance(n.meta.get("val"), Tensor)]
        if not tensors or any(t.dim() for t in tensors):
            yield index, node
