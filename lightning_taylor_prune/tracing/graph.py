"""Record a network's forward pass as an fx graph of ATen operators."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.tracing.arrays import numpy_recorded
from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.fakes import fake_tensor_log_off
from lightning_taylor_prune.tracing.hooks import Onlookers
from lightning_taylor_prune.tracing.isolation import Snapshot, Stored
from lightning_taylor_prune.tracing.known_results import ResultsByShape
from lightning_taylor_prune.tracing.leaks import clear_frames, name_of_place
from lightning_taylor_prune.tracing.recorder import StoredTensor, Trace, fake_trace, training_flags, transposed
from lightning_taylor_prune.tracing.runs import PreparedRun, source_line, user_line
from lightning_taylor_prune.tracing.tensors import find_caches, find_tensors, memory_of, named_tensors
from lightning_taylor_prune.tracing.values import KnownValues, value_of


def trace(
    root: nn.Module,
    call: Call,
    training: Mapping[str, bool] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    known: ResultsByShape | None = None,
) -> Trace:
    """Record one forward pass of ``root`` (or of the submodule that ``call`` names).

    The modes, buffers and attributes of the modules are unchanged afterwards, and so is the random state.

    Args:
        root: The network.
        call: Which module is called and with what.
        training: Training flag of every module by name; by default the present ones.
        shapes: Shapes by name, for the parameters and buffers that shall have other shapes than now.
        known: Results of operators that are known from other traces.

    Raises:
        TraceError: The forward pass failed, or depends on the values of tensors.
    """
    onlookers, known = Onlookers(), known or ResultsByShape()
    while True:
        before = len(onlookers.ids)
        try:
            recorded = _trace_once(root, call, training or training_flags(root), shapes, onlookers, known)
        except TraceError:
            if known.give_up():
                continue
            raise
        if len(onlookers.ids) == before and not known.give_up():  # else what these hooks began with was recorded
            return recorded


def _trace_once(
    root: nn.Module,
    call: Call,
    training: Mapping[str, bool],
    shapes: Mapping[str, tuple[int, ...]] | None,
    onlookers: Onlookers,
    known: ResultsByShape,
) -> Trace:
    recorded = fake_trace(root, call, training, shapes)
    recorded.onlookers, recorded.known = onlookers, known
    real = value_of(dict(named_tensors(root)), recorded.tensors)
    values = KnownValues(recorded.mode, recorded.tensors, real, call.answers, by_shape=known)
    builder = _GraphBuilder(root, recorded, values)
    prepared = PreparedRun(root, recorded, Snapshot(root))
    try:
        with numpy_recorded(builder.record), fake_tensor_log_off():
            result, stored = prepared.run(recorded.tensors, builder.record)
        recorded.outputs = list(dict.fromkeys(builder.find_nodes(result)))
        named = result.items() if isinstance(result, Mapping) else ()
        recorded.entries = {node: str(name) for name, value in named for node in builder.find_nodes(value)}
        recorded.cached = frozenset(builder.find_nodes(find_caches(result)))
        recorded.stored = list(builder.find_stored(stored))
        del result, stored, named
    except Exception as error:
        clear_frames(error)
        builder.forget()
        recorded.forget_leaks([])
        raise TraceError(_explain(error, call), in_forward=True) from error
    recorded.graph.output(tuple(recorded.outputs))
    recorded.call = replace(recorded.call, answers=tuple(values.used))
    recorded.refused = frozenset(values.refused)
    recorded.draws_in_python, recorded.draws_in_torch = prepared.has_drawn, values.random
    builder.forget()
    recorded.forget_leaks([])
    return recorded


class _GraphBuilder:
    """Turns recorded operators into fx nodes."""

    def __init__(self, root: nn.Module, recorded: Trace, values: KnownValues) -> None:
        self._trace, self._values = recorded, values
        self._nodes: dict[int, Node] = {}
        self._places: dict[Hashable, Node] = {}  # `.data` and some factories return a new object for the same memory
        self._by_storage: dict[int, list[Node]] = {}
        self._kept: list[Any] = []  # an id is only unique while its tensor exists
        self._module_names = {id(m): name for name, m in root.named_modules()}
        for name, tensor in recorded.tensors.items():
            if id(tensor) not in self._nodes:
                self._placeholder(tensor, "tensor", name)
        for tensor in find_tensors([recorded.call.args, recorded.call.kwargs]):
            self._placeholder(tensor, "input", True)

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and append its node."""
        node_args, node_kwargs = tree_map(self._as_node, (args, kwargs))
        result = self._values.call(func, args, kwargs)
        self._values.note(func, args, kwargs, result)
        node = self._trace.graph.call_function(func, node_args, node_kwargs)
        node.meta.update(val=result, shapes=_shapes(result), source=source_line(), module=self._module_name())
        self._trace.ops.append(node)
        self._kept.append(result)
        if isinstance(result, Tensor):
            self._remember(result, node)
        elif isinstance(result, (tuple, list)):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    item_node = self._trace.graph.call_function(getitem, (node, i))
                    item_node.meta["val"] = item
                    self._remember(item, item_node)
        return result

    def forget(self) -> None:
        """Let go of all tensors: no more operator is recorded."""
        self._kept.clear()
        self._values.forget()

    def _remember(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = node
        self._places[memory_of(tensor)] = node
        if tensor.layout == torch.strided:
            self._by_storage.setdefault(tensor.untyped_storage()._cdata, []).append(node)

    def _find(self, tensor: Tensor) -> Node | None:
        return self._nodes.get(id(tensor)) or self._places.get(memory_of(tensor))

    def find_nodes(self, result: Any) -> list[Node]:
        """Return the nodes of all tensors in a nested structure of containers and objects."""
        return [node for t in find_tensors(result) if (node := self._find(t)) is not None]

    def find_stored(self, values: Sequence[Stored]) -> Iterator[StoredTensor]:
        """Yield all tensors among stored values but parameters and buffers: modules hold these under several names.

        Of what lies outside of the modules only tensors with a gradient count: what is detached is looked at, not used.
        """
        for place, value, replaced in values:
            of_module = isinstance(place, str)
            for tensor in find_tensors(value) if of_module else _tensors_with_gradient(value):
                node = self._find(tensor)
                if node is None or "tensor" in node.meta:
                    continue
                anew = tensor is value and isinstance(replaced, Tensor) and self._find(replaced) is None
                where = f"`{place}`" if of_module else name_of_place(place)
                yield StoredTensor(where, node, place if anew else None)

    def _placeholder(self, tensor: Tensor, kind: str, value: Any) -> Node:
        node = self._trace.graph.placeholder(f"{kind}_{len(self._nodes)}")
        node.meta.update({"val": tensor, kind: value})
        self._remember(tensor, node)
        self._kept.append(tensor)
        return node

    def _as_node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if (node := self._find(value) or self._transposed(value)) is not None:
            return node
        with self._trace.graph.inserting_before():  # at the very beginning
            node = self._placeholder(value, "constant", True)
            node.meta["of_input"] = self._values.reads_arrays  # what was computed in NumPy may be in it
            return node

    def _transposed(self, tensor: Tensor) -> Node | None:
        """Return a new node for a tensor that has the axes of a known one in another order, in the same memory."""
        if tensor.layout != torch.strided or tensor.dim() < 2:
            return None
        axes = [*zip(tensor.shape, tensor.stride(), strict=True)]
        for node in self._by_storage.get(tensor.untyped_storage()._cdata, ()):
            other = node.meta["val"]
            known = [*zip(other.shape, other.stride(), strict=True)]
            if sorted(known) == sorted(axes) and other.storage_offset() == tensor.storage_offset():
                found = self._trace.graph.call_function(transposed, (node, [known.index(axis) for axis in axes]))
                found.meta["val"] = tensor
                self._kept.append(tensor)
                self._remember(tensor, found)
                return found
        return None

    def _module_name(self) -> str:
        frame: Any = sys._getframe(2)
        while frame is not None:
            if "self" in frame.f_code.co_varnames:
                name: str | None = self._module_names.get(id(frame.f_locals.get("self")))
                if name is not None:
                    return name
            frame = frame.f_back
        return ""


def _tensors_with_gradient(value: Any) -> list[Tensor]:
    """Return the tensors in a value, or in plain containers there, through which gradients flow."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _shapes(result: Any) -> list[tuple[int, ...]]:
    """Return the present shapes of all results, before in-place operators change them; ``()`` for other values."""
    values = result if isinstance(result, (tuple, list)) else [result]
    return [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]


def _explain(error: Exception, call: Call) -> str:
    where = f"`{call.name}`" if call.name else "the network"
    text = f"Cannot trace {where}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    if line := user_line(error):
        text += f" ({line})"
    if type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
        text += (
            ". The forward pass depends on the values of tensors, and fake tensors have none; move that code out of "
            "the pruned module, or prune a submodule with `target=`."
        )
    return text
