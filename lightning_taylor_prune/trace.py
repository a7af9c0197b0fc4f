"""Run a network on fake tensors and record it as an fx graph of ATen operators.

Nothing is computed and nothing is allocated: parameters, buffers and inputs are ``FakeTensor`` s, and Python control
flow runs as it does in eager mode. The operators are recorded before autograd and decompositions see them
(``aten.conv2d``, ``aten.linear``, ``aten.batch_norm``), exactly as ``make_fx(pre_dispatch=True)`` would list them, but
several times faster, so that the same recorder also verifies every cut.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only

from lightning_taylor_prune.errors import TraceError

_TORCH_DIR = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep

OnCall = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """One way a network is called in training.

    Attributes:
        module: Qualified name of the called module, ``""`` for the network itself.
        args: Positional arguments; tensors in them may be real or fake.
        kwargs: Keyword arguments, likewise.
        autocast: Device type and dtype, if the call is made under autocast.
        piece: The call is one of several that are traced in place of a network that cannot be traced as a whole.
    """

    module: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    autocast: tuple[str, torch.dtype] | None = None
    piece: bool = False


@dataclass(eq=False)
class Trace:
    """One recorded forward pass.

    Attributes:
        call: The call that was traced, its tensors fake.
        training: Training flag of every module while tracing, by module name.
        mode: The fake tensor mode that owns every tensor here.
        tensors: Parameters and buffers by qualified name, fake; tied ones are one object.
        graph: The fx graph. Placeholders are parameters and buffers (``meta["tensor"]`` holds the qualified
            name), inputs and constants; every node has ``meta["val"]``, and operators have ``meta["source"]``
            (file and line of the user's code) and ``meta["module"]``.
        ops: The operator nodes in the order of execution.
        outputs: Nodes whose values leave the network.
        is_parameter: Names of the tensors that are parameters, not buffers.
        resized: Fake tensors of other shapes, from the last verification.
        replay: Per operator, its last call while verifying and what came of it.
    """

    call: Call
    training: Mapping[str, bool]
    mode: FakeTensorMode
    tensors: dict[str, Tensor]
    graph: Graph = field(default_factory=Graph)
    ops: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    is_parameter: frozenset[str] = frozenset()
    resized: dict[str, Tensor] = field(default_factory=dict)
    replay: dict[int, Any] = field(default_factory=dict)

    def signature(self) -> list[Any]:
        """Return operators, arguments and shapes, but for what only works on single numbers (step counters).

        Two traces with the same signature say the same about channels.
        """
        numbers: dict[Node, int] = {}
        lines: list[Any] = []
        for node in self.graph.nodes:
            tensors = [n.meta["val"] for n in [node, *node.all_input_nodes] if isinstance(n.meta.get("val"), Tensor)]
            if node.op == "call_function" and tensors and all(t.dim() == 0 for t in tensors):
                continue
            numbers[node] = len(numbers)
            if node.op == "call_function":
                inputs = [numbers.get(n) for n in node.all_input_nodes]
                lines.append((node.target, inputs, [tuple(t.shape) for t in tensors]))
        return [*lines, [numbers.get(n) for n in self.outputs]]


class Recorder(ProxyTorchDispatchMode):
    """Hands every operator, before any decomposition, to a function that runs it.

    Only proxy modes may sit on torch's pre-dispatch stack, hence the base class; of it nothing but the type is used.
    """

    def __init__(self, on_call: OnCall) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)
        self._mode_key = torch._C._TorchDispatchModeKey.PROXY
        self.enter_stack = []
        self.pre_dispatch = True
        self._on_call = on_call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass the operator on, except for the ones that only ask a tensor for its device."""
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        return self._on_call(func, args, kwargs or {})


def trace(
    root: nn.Module,
    call: Call,
    training: Mapping[str, bool] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Trace:
    """Record one forward pass of ``root`` (or of the submodule that ``call`` names).

    The module comes out untouched: same modes, buffers, attributes and random state.

    Args:
        root: The network.
        call: Which module is called and with what.
        training: Training flag of every module by name; by default as they are.
        shapes: Shapes of parameters and buffers by name, where they are to be others than now.

    Raises:
        TraceError: The forward pass failed, or depends on the values of tensors.
    """
    recorded = fake_trace(root, call, training or training_flags(root), shapes)
    builder = _GraphBuilder(root, recorded)
    try:
        result, leaked = run(root, recorded, recorded.tensors, builder.record)
    except Exception as error:
        raise TraceError(_explain(error, call), in_forward=True) from error
    recorded.outputs = builder.find_nodes([result, leaked])
    recorded.graph.output(tuple(recorded.outputs))
    return recorded


def fake_trace(
    root: nn.Module, call: Call, training: Mapping[str, bool], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Trace:
    """Return a trace with fake tensors in place, of other ``shapes`` where given, and nothing recorded yet."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return Trace(
        call=tree_fake(call, mode),
        training=training,
        mode=mode,
        tensors=_fake_tensors(root, mode, shapes or {}),
        is_parameter=frozenset(name for name, _ in root.named_parameters()),
    )


def run(root: nn.Module, recorded: Trace, tensors: Mapping[str, Tensor], on_call: OnCall) -> tuple[Any, list[Any]]:
    """Run the traced call again with other (fake) parameters; every operator goes through ``on_call``.

    Returns:
        The result, and the values that the forward pass left in attributes of its modules.
    """
    module = root.get_submodule(recorded.call.module)
    prefix = f"{recorded.call.module}." if recorded.call.module else ""
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    with untouched(root) as leaked:
        for name, submodule in root.named_modules():
            submodule.training = recorded.training[name]
            # Hooks on the backward pass add operators to the forward pass that say nothing about channels.
            submodule.__dict__.update(_backward_hooks=OrderedDict(), _backward_pre_hooks=OrderedDict())
        with _tracing_context(recorded.call), recorded.mode, enable_python_dispatcher(), Recorder(on_call):
            # Python control flow that draws (LayerDrop, say) must repeat itself when the cut is verified.
            random.seed(0)
            np.random.seed(0)
            result = functional_call(module, own, recorded.call.args, dict(recorded.call.kwargs))
    return result, leaked


def training_flags(root: nn.Module) -> dict[str, bool]:
    """Return the training flag of every module by qualified name."""
    return {name: module.training for name, module in root.named_modules()}


def tree_fake(call: Call, mode: FakeTensorMode) -> Call:
    """Return the call with its tensors replaced by fake ones, so that no memory is held."""

    def fake(tensor: Tensor) -> Tensor:
        if isinstance(tensor, torch._subclasses.FakeTensor):
            with mode:
                return torch.empty_strided(
                    tensor.shape,
                    tensor.stride(),
                    dtype=tensor.dtype,
                    device=tensor.device,
                    requires_grad=tensor.requires_grad,
                )
        return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)

    args, kwargs = tree_map_only(Tensor, fake, (call.args, dict(call.kwargs)))
    return replace(call, args=args, kwargs=kwargs)


def current_autocast() -> tuple[str, torch.dtype] | None:
    """Return device type and dtype of the autocast region that is active here, if any."""
    for device in ("cuda", "cpu", "mps", "xpu"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device)
    return None


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[list[Any]]:
    """Undo whatever a forward pass leaves behind in modules and random generators.

    Yields:
        A list that holds, afterwards, every attribute value that had been set or replaced.
    """
    leaked: list[Any] = []
    saved = [(module, dict(module.__dict__), _contents(module)) for module in root.modules()]
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield leaked
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
        for module, attributes, contents in saved:
            leaked.extend(_restore(module, attributes, contents))


_CONTAINERS = (dict, list, set, deque)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """Return every container among a module's attributes, nested ones too, with a copy (``None`` for an empty one)."""
    found: dict[int, tuple[Any, Any]] = {}
    stack = list(module.__dict__.values())
    while stack:
        value = stack.pop()
        if isinstance(value, _CONTAINERS) and id(value) not in found:
            found[id(value)] = (value, value.copy() if value else None)
        elif not isinstance(value, tuple):
            continue
        stack.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _restore(module: nn.Module, attributes: Mapping[str, Any], contents: Sequence[tuple[Any, Any]]) -> list[Any]:
    leaked = [value for key, value in module.__dict__.items() if key not in attributes or attributes[key] is not value]
    for value, content in contents:
        if value or content:
            leaked.extend(_restore_container(value, content))
    module.__dict__.clear()
    module.__dict__.update(attributes)
    return leaked


def _restore_container(value: Any, content: Any) -> list[Any]:
    if value == content if isinstance(value, set) else _same_items(value, content):
        return []
    leaked = list(value.values()) if isinstance(value, dict) else list(value)
    value.clear()
    if content:
        value.extend(content) if isinstance(value, (list, deque)) else value.update(content)
    return leaked


def _same_items(value: Any, content: Any) -> bool:
    if content is None or len(value) != len(content):
        return False
    if isinstance(value, dict):
        return all(k in content and content[k] is v for k, v in value.items())
    return all(a is b for a, b in zip(value, content, strict=True))


@contextlib.contextmanager
def _tracing_context(call: Call) -> Iterator[None]:
    """Grad mode on, attention's fused inference path off, autocast as in training: all decide what is called.

    Batch normalisation that synchronises over ranks runs as the ordinary one: tracing sends no messages.
    """
    fastpath, synchronised = torch.backends.mha.get_fastpath_enabled(), nn.SyncBatchNorm.forward
    torch.backends.mha.set_fastpath_enabled(False)
    nn.SyncBatchNorm.forward = _BatchNorm.forward  # type: ignore[method-assign]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if call.autocast is not None:
                device, dtype = call.autocast
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        nn.SyncBatchNorm.forward = synchronised  # type: ignore[method-assign]


def named_tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters, then buffers, by qualified name; tied ones under each of their names."""
    return [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]


def _fake_tensors(root: nn.Module, mode: FakeTensorMode, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    fakes: dict[int, Tensor] = {}
    named = named_tensors(root)
    for name, tensor in named:
        if is_lazy(tensor):
            raise TraceError(f"Parameter `{name}` is not initialized; run one batch through the network first.")
        if id(tensor) not in fakes:
            fake: Tensor = mode.from_tensor(tensor.detach())
            if tuple(tensor.shape) != (shape := tuple(shapes.get(name, tensor.shape))):
                fake = fake.new_empty(shape)
            fakes[id(tensor)] = fake.requires_grad_(tensor.requires_grad)
    return {name: fakes[id(tensor)] for name, tensor in named}


class _GraphBuilder:
    """Turns recorded operators into fx nodes."""

    def __init__(self, root: nn.Module, recorded: Trace) -> None:
        self._trace = recorded
        self._nodes: dict[int, Node] = {}
        self._places: dict[Any, Node] = {}  # factories and `.data` hand out another object for the same memory
        self._alive: list[Any] = []  # ids are only unique among living tensors
        self._module_names = {id(m): name for name, m in root.named_modules()}
        for name, tensor in recorded.tensors.items():
            if id(tensor) not in self._nodes:
                self._placeholder(tensor, "tensor", name)
        for tensor in find_tensors([recorded.call.args, recorded.call.kwargs]):
            self._placeholder(tensor, "input", True)

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and append its node."""
        node_args, node_kwargs = tree_map(self._as_node, (args, kwargs))
        result = func(*args, **kwargs)
        node = self._trace.graph.call_function(func, node_args, node_kwargs)
        node.meta.update(val=result, shapes=_shapes(result), source=_source_line(), module=self._module_name())
        self._trace.ops.append(node)
        self._alive.append(result)
        if isinstance(result, Tensor):
            self._remember(result, node)
        elif isinstance(result, (tuple, list)):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    part = self._trace.graph.call_function(getitem, (node, i))
                    part.meta["val"] = item
                    self._remember(item, part)
        return result

    def _remember(self, tensor: Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = node
        self._places[memory_of(tensor)] = node

    def _find(self, tensor: Tensor) -> Node | None:
        return self._nodes.get(id(tensor)) or self._places.get(memory_of(tensor))

    def find_nodes(self, result: Any) -> list[Node]:
        """Return the nodes of all tensors in a nested structure of any kind."""
        return [node for t in find_tensors(result) if (node := self._find(t)) is not None]

    def _placeholder(self, tensor: Tensor, kind: str, value: Any) -> Node:
        node = self._trace.graph.placeholder(f"{kind}_{len(self._nodes)}")
        node.meta.update({"val": tensor, kind: value})
        self._remember(tensor, node)
        self._alive.append(tensor)
        return node

    def _as_node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if (node := self._find(value)) is not None:
            return node
        with self._trace.graph.inserting_before(next(iter(self._trace.graph.nodes))):
            return self._placeholder(value, "constant", True)

    def _module_name(self) -> str:
        frame: Any = sys._getframe(2)
        while frame is not None:
            if "self" in frame.f_code.co_varnames:
                name = self._module_names.get(id(frame.f_locals.get("self")))
                if name is not None:
                    return name
            frame = frame.f_back
        return ""


def memory_of(tensor: Tensor) -> Any:
    """Return what says where a tensor lies in memory, and how."""
    if tensor.layout != torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def find_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a structure of containers, dataclasses and plain objects, each once."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            found.setdefault(id(item), item)
        elif id(item) not in seen and not isinstance(item, (str, bytes, int, float, type, nn.Module)):
            seen.add(id(item))
            stack.extend(_children(item))
    return list(reversed(found.values()))


def _children(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return list(item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    slots = getattr(type(item), "__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [*vars(item).values()] if hasattr(item, "__dict__") else [getattr(item, n, None) for n in names]


def _shapes(result: Any) -> list[tuple[int, ...]]:
    """Return the shapes of all results as they are now (in-place operators may change them); ``()`` for no tensor."""
    values = result if isinstance(result, (tuple, list)) else [result]
    return [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]


def _source_line() -> str:
    """Return ``file:line`` of the innermost frame of the network's own code, ``""`` where all of it is torch's."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code is not run.__code__:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH_DIR, _HERE)):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def user_line(error: BaseException) -> str:
    """Return ``file:line`` of the innermost traceback entry outside torch and this package."""
    line, tb = "", error.__traceback__
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not name.startswith((_TORCH_DIR, _HERE)):
            line = f"{name}:{tb.tb_lineno}"
        tb = tb.tb_next
    return line


def _explain(error: Exception, call: Call) -> str:
    where = f"`{call.module}`" if call.module else "the network"
    text = f"Cannot trace {where}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    if line := user_line(error):
        text += f" ({line})"
    if type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
        text += (
            ". The forward pass depends on the values of tensors, which tracing does not have; move that code out of "
            "the pruned module, or prune a submodule with `target=`."
        )
    return text
