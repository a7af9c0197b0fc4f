"""What is recorded of a forward pass on fake tensors, and the mode that sees its operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.tracing.call import Call, tree_fake
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.hooks import Onlookers
from lightning_taylor_prune.tracing.known_results import ResultsByShape
from lightning_taylor_prune.tracing.leaks import References, forget_leaks
from lightning_taylor_prune.tracing.surroundings import Surroundings
from lightning_taylor_prune.tracing.tensors import named_tensors, scripted_tensors

OnCall = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class Recorder(ProxyTorchDispatchMode):  # torch's metaclass hook has no types
    """Hands every operator, before torch decomposes it, to a function that runs it.

    torch allows only proxy modes on its pre-dispatch stack: hence the base class, of which nothing else is used.
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
        """Hand the operator on, or those that a transform makes of it; none that only reads the device of a tensor."""
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        if _is_transformed(args, kwargs):
            with _InTransform(self._on_call):
                return func(*args, **(kwargs or {}))
        return self._on_call(func, args, kwargs or {})


def in_transform() -> bool:
    """Whether the code that is running is a function that `vmap`, `grad` or the like transforms."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_transformed(args: Any, kwargs: Any) -> bool:
    """Whether an operator is called within `vmap`, `grad` and the like, or with tensors that these have wrapped."""
    if in_transform():
        return True
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(t, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(t) for t in leaves)


class _InTransform(TorchDispatchMode):
    """Hands on the operators that a transform (`vmap`, `grad`) makes of one: their tensors are not wrapped any more.

    Args:
        on_call: Runs an operator.
    """

    def __init__(self, on_call: OnCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_call = on_call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hand the operator on, unless it only reads the device of a tensor."""
        if func is torch.ops.prim.device.default:
            return func(*args, **(kwargs or {}))
        result = self._on_call(func, args, kwargs or {})
        if func._schema.is_mutable:
            return result
        return tree_map_only(Tensor, torch.Tensor.detach, result)  # autograd takes none that it has seen before


def transposed(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Stands in a graph for a view that autograd saved without an operator that could be recorded."""
    return tensor.permute(*dims)


class StoredTensor(NamedTuple):
    """A tensor that a forward pass stored where it outlives the pass.

    Attributes:
        place: Where: a qualified attribute in backticks, or a description.
        node: What computed it.
        attribute: Name of the module attribute in which it took the place of a tensor that the pass never read.
    """

    place: str
    node: Node
    attribute: str | None


@dataclass(eq=False)
class Trace:
    """One recorded forward pass.

    Attributes:
        call: The call that was traced, its tensors fake.
        training: Training flag of every module while tracing, by module name.
        mode: The fake tensor mode that owns every tensor here.
        tensors: Parameters and buffers by qualified name, fake; tied tensors are the same object.
        surroundings: Where the network's code can keep something besides its modules.
        graph: The fx graph. Placeholders are parameters and buffers (``meta["tensor"]`` holds the qualified
            name), inputs and constants; every node has ``meta["val"]``, and operators have ``meta["source"]``
            (file and line of the user's code) and ``meta["module"]``.
        ops: The operator nodes in the order of execution.
        outputs: Nodes whose values the network returns.
        cached: Those of them that it returns in a cache of keys and values.
        entries: Those of them that it returns by name, with these names.
        stored: Tensors that the network stored in attributes of its modules or around them.
        is_parameter: Names of the tensors that are parameters, not buffers.
        aliases: All names of the modules that have several, by the first of them.
        classes: Class of every module, by each of its names.
        onlookers: Forward hooks that are not run.
        draws_in_python: The code drew random numbers in Python or NumPy: with others it may take another path.
        draws_in_torch: The code asked for values that come from torch's random generator.
        scripted: Names of the tensors that scripted modules hold.
        refused: Operators whose kernels for fake tensors refused what the real ones take.
        known: What operators gave, here and in other traces.
    """

    call: Call
    training: Mapping[str, bool]
    mode: FakeTensorMode
    tensors: dict[str, Tensor]
    surroundings: Surroundings
    graph: Graph = field(default_factory=Graph)
    ops: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    cached: frozenset[Node] = frozenset()
    entries: Mapping[Node, str] = field(default_factory=dict)
    stored: list[StoredTensor] = field(default_factory=list)
    is_parameter: frozenset[str] = frozenset()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    onlookers: Onlookers = field(default_factory=Onlookers)
    draws_in_python: bool = False
    draws_in_torch: bool = False
    scripted: frozenset[str] = frozenset()
    refused: frozenset[Any] = frozenset()
    known: ResultsByShape = field(default_factory=ResultsByShape)
    _references: References | None = None

    @cached_property
    def situation(self) -> tuple[Any, ...]:
        """What is called, in which mode and with what, sizes aside: traces of one situation are paths of one code."""
        leaves, structure = tree_flatten((self.call.args, dict(self.call.kwargs)))
        values = tuple(None if isinstance(leaf, Tensor) else repr(leaf)[:100] for leaf in leaves)
        return self.call.module, self.call.method, tuple(self.training.items()), str(structure), values

    @cached_property
    def places(self) -> list[tuple[Any, str, str]]:
        """Operator, line and module of every call of an operator; to be read once all are recorded."""
        return [(node.target, node.meta["source"], node.meta["module"]) for node in self.ops]

    @property
    def draws_numbers(self) -> bool:
        """Whether the code may take another path with other random numbers."""
        return self.draws_in_python or (self.draws_in_torch and bool(self.call.answers))

    @cached_property
    def calls_by_line(self) -> dict[tuple[Any, str], list[int]]:
        """Positions in ``ops`` of the calls of each operator on each line; to be read once all are recorded."""
        found: dict[tuple[Any, str], list[int]] = {}
        for op, node in enumerate(self.ops):
            found.setdefault((node.target, node.meta["source"]), []).append(op)
        return found

    def names_of(self, module: str) -> tuple[str, ...]:
        """Return all names of a module, given the first of them."""
        return self.aliases.get(module, (module,))

    def forget_leaks(self, owned: Sequence[Any]) -> None:
        """Make the network's code forget the fake tensors of the last run, but for those that are ours.

        Args:
            owned: What holds tensors of this run besides the trace, which itself is looked at once it is recorded.
        """
        if self._references is not None:
            forget_leaks(self.surroundings, owned, self._references)
            return
        metas = [node.meta for node in self.graph.nodes]
        mine = [metas, self.tensors, self.call.args, self.call.kwargs]
        self._references = forget_leaks(self.surroundings, mine)

    def signature(self) -> list[Any]:
        """Return operators, arguments and shapes, without operators on 0-d tensors only (step counters).

        Two traces with equal signatures tie and lock the same channels.
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
        stored = [(entry.place, numbers.get(entry.node)) for entry in self.stored]
        return [*lines, [numbers.get(n) for n in self.outputs], stored]


def fake_trace(
    root: nn.Module, call: Call, training: Mapping[str, bool], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Trace:
    """Return a trace that has its fake tensors (of other ``shapes``, where given) but no recorded operators yet."""
    mode = FakeMode()
    return Trace(
        call=tree_fake(call, mode),
        training=training,
        mode=mode,
        tensors=_fake_tensors(root, mode, shapes or {}),
        is_parameter=frozenset(name for name, _ in root.named_parameters()),
        aliases=_aliases(root),
        classes={name: type(module) for name, module in root.named_modules(remove_duplicate=False)},
        scripted=frozenset(scripted_tensors(root)),
        surroundings=Surroundings(root),
    )


def training_flags(root: nn.Module) -> dict[str, bool]:
    """Return the training flag of every module by qualified name, by each of them where it has several."""
    return {name: module.training for name, module in root.named_modules(remove_duplicate=False)}


def _aliases(root: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {several[0]: tuple(several) for several in names.values() if len(several) > 1}


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
