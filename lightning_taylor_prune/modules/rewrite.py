"""Give a module a `forward` whose integer constants are stored in an attribute, so that they can change with pruning.

The module keeps its class, name, hooks, parameters and the keys of its state dict. Only the instance gets a generated
`forward`, and a list of integers that this code reads.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

from torch import fx, nn

from lightning_taylor_prune.tracing.isolation import untouched

HELD = "_hard_coded"
"""Attribute of a rewritten module that holds the integers of its code."""


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _Imported(NamedTuple):
    """The name of a Python module that generated code uses: Python modules themselves cannot be pickled."""

    name: str


def _portable(globals_: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in globals_.items() if name != "__builtins__"}
    return {name: _Imported(v.__name__) if isinstance(v, ModuleType) else v for name, v in kept.items()}


class RewrittenForward:
    """The generated `forward` of one module; it reads parameters and children from the module at every call.

    It is copied and pickled with the module, and then compiled again from its source.

    Attributes:
        module: The module that it runs on.
        sources: Generated code by training flag.
        globals: Global names that the code uses (functions of torch), by training flag.
    """

    def __init__(
        self, module: nn.Module, sources: Mapping[bool, str], globals_: Mapping[bool, Mapping[str, Any]]
    ) -> None:
        self.module, self.sources, self.globals = module, dict(sources), {k: dict(v) for k, v in globals_.items()}
        self._functions = {training: self._compile(training) for training in self.sources}
        self.__code__ = type(module).forward.__code__  # torch.export asks where the code is from
        self.__signature__ = inspect.signature(type(module).forward.__get__(module))

    def _compile(self, training: bool) -> Any:
        namespace = {
            name: importlib.import_module(value.name) if isinstance(value, _Imported) else value
            for name, value in self.globals[training].items()
        }
        exec(compile(self.sources[training], f"<rewritten forward of {type(self.module).__name__}>", "exec"), namespace)
        return namespace["forward"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the code that was generated for the module's present mode."""
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        return self._functions[self.module.training](self.module, *bound.arguments.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenForward:
        return RewrittenForward(copy.deepcopy(self.module, memo), self.sources, self.globals)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.sources, self.globals), {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["module"], self.sources, self.globals)  # type: ignore[misc]


def _rebuilt(sources: Mapping[bool, str], globals_: Mapping[bool, Mapping[str, Any]]) -> RewrittenForward:
    """Return the object that pickle completes later: it refers to its module, and the module to it."""
    found = RewrittenForward.__new__(RewrittenForward)
    found.sources, found.globals = dict(sources), {k: dict(v) for k, v in globals_.items()}
    return found


def is_rewritten(module: nn.Module) -> bool:
    """Whether a module runs a generated `forward`."""
    return isinstance(module.__dict__.get("forward"), RewrittenForward)


def rewrite_(module: nn.Module) -> bool:
    """Give a module a generated `forward` that reads the integers of its code from an attribute, in place.

    Returns:
        Whether that was possible and the code has integers. It is impossible for code that :mod:`torch.fx` cannot
        trace (control flow that depends on values), that takes ``*args`` or ``**kwargs``, or that creates tensors.
    """
    if "forward" in module.__dict__ or not _has_plain_signature(module):
        return False
    in_training, in_evaluation = _traced(module, True), _traced(module, False)
    if in_training is None or in_evaluation is None:
        return False
    integers = _take_out_integers(in_training, 0)
    others = _take_out_integers(copy.deepcopy(in_evaluation), 0)
    if integers == others:  # the same sizes in both modes: what is inferred in one mode holds for the other
        _take_out_integers(in_evaluation, 0)
    else:
        integers = [*integers, *_take_out_integers(in_evaluation, len(integers))]
    if not integers:
        return False
    code = {True: in_training.python_code("self"), False: in_evaluation.python_code("self")}
    setattr(module, HELD, integers)
    globals_ = {training: _portable(c.globals) for training, c in code.items()}
    module.forward = RewrittenForward(module, {training: c.src for training, c in code.items()}, globals_)
    return True


def unrewrite_(module: nn.Module) -> None:
    """Undo :func:`rewrite_`."""
    del module.forward
    delattr(module, HELD)


@contextlib.contextmanager
def rewritten(root: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Rewrite modules for the duration of a block, except those that are rewritten already."""
    done = [module for name in names if not is_rewritten(module := root.get_submodule(name)) and rewrite_(module)]
    try:
        yield
    finally:
        for module in done:
            unrewrite_(module)


def _has_plain_signature(module: nn.Module) -> bool:
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def _traced(module: nn.Module, training: bool) -> fx.Graph | None:
    """Return the graph of a module's own code in one mode; ``None`` where torch.fx cannot trace it."""
    try:
        with untouched(module):  # modules with a cache would keep proxies in it
            module.__dict__["training"] = training
            graph = _ChildrenAreLeaves().trace(module)
    except Exception:  # the module's code may do anything with a proxy, which is not a tensor
        return None
    own = {name for name, _ in [*module.named_parameters(), *module.named_buffers(), *module.named_modules()]}
    constants = [n for n in graph.nodes if n.op == "get_attr" and n.target not in own]
    return None if constants else graph


def _take_out_integers(graph: fx.Graph, offset: int) -> list[int]:
    """Replace all integers from 2 upwards by reads of the module's list, from ``offset`` on; return them in order."""
    integers: list[int] = []
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue

        def replaced(value: Any, node: fx.Node = node) -> Any:
            if type(value) is int and value >= 2:
                integers.append(value)
                with graph.inserting_before(node):
                    return graph.create_node("call_function", _held_integer, (_self(graph), offset + len(integers) - 1))
            if isinstance(value, slice):
                return slice(*(replaced(v) for v in (value.start, value.stop, value.step)))
            if isinstance(value, (tuple, list)):
                return type(value)(replaced(v) for v in value)
            return value

        node.args = cast(Any, tuple(replaced(a) for a in node.args))
        node.kwargs = {k: replaced(v) for k, v in node.kwargs.items()}
    graph.lint()
    return integers


def _held_integer(held: list[int], index: int) -> int:
    return held[index]


def _self(graph: fx.Graph) -> fx.Node:
    """Return the node that reads the module's list."""
    found = next((n for n in graph.nodes if n.op == "get_attr" and n.target == HELD), None)
    if found is None:
        with graph.inserting_before(next(iter(graph.nodes))):
            found = graph.create_node("get_attr", HELD)
    return found
