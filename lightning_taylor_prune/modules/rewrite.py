"""Give a module a `forward` whose integer constants are stored in an attribute, so that they can change with pruning.

The module keeps its name, hooks, parameters and the keys of its state dict: the instance gets a subclass of its class,
of the same name, with a generated `forward`, and a list of integers that the generated code reads.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import importlib
import inspect
import linecache
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import getitem
from types import ModuleType
from typing import Any, NamedTuple, cast, get_type_hints

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


class _Code(NamedTuple):
    """A generated `forward`: its source by training flag, and what that refers to beyond the module, likewise."""

    sources: dict[bool, str]
    globals: dict[bool, dict[str, Any]]


class _Rewritten:
    """Marks the classes with a generated `forward`: each is a subclass, of the same name, of the module's own class."""

    __slots__ = ()  # the generated class must have the layout of the module's own
    _own_class: type[nn.Module]
    _code: _Code

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle as the module's own class does; the generated one is made again."""
        generated, module = type(self), cast(Any, self)
        module.__class__ = generated._own_class
        try:
            make, args, *rest = module.__reduce_ex__(protocol)
        finally:
            module.__class__ = generated
        return (_made_again, (generated._code, make, args), *rest)


def _made_again(code: _Code, make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    module = make(*args)
    module.__class__ = _generated_class(type(module), code)
    return module


def _generated_class(cls: type[nn.Module], code: _Code) -> type[nn.Module]:
    """Return a subclass whose `forward` is generated; :mod:`torch.fx` and TorchScript read its source as any other."""
    methods = {"_own_class": cls, "_code": code, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if code.sources[True] == code.sources[False]:
        methods["forward"] = _compiled(cls, code, True, code.sources[True])
    else:
        for training, name in _NAMES.items():
            methods[name] = _compiled(
                cls, code, training, code.sources[training].replace("def forward(", f"def {name}(")
            )
        methods["forward"] = _compiled(cls, code, True, _dispatch(code.sources[True]))
    methods["__reduce_ex__"] = _Rewritten.__reduce_ex__
    metaclass: Any = type(cls)  # the module's own class comes first: Python takes the layout of the first base
    return cast(type[nn.Module], metaclass(cls.__name__, (cls, _Rewritten), methods))


_NAMES = {True: "_forward_in_training", False: "_forward_in_evaluation"}


def _dispatch(source: str) -> str:
    """Return the source of a `forward` that runs the code generated for the module's present mode."""
    head = next((line for line in source.splitlines() if line.startswith("def forward(")), "def forward(self):")
    names = [a.arg for a in ast.parse(f"{head} pass").body[0].args.args[1:]]  # type: ignore[attr-defined]
    calls = {training: f"return self.{name}({', '.join(names)})" for training, name in _NAMES.items()}
    return f"{head}\n    if self.training:\n        {calls[True]}\n    else:\n        {calls[False]}\n"


def _compiled(cls: type[nn.Module], code: _Code, training: bool, source: str) -> Any:
    """Compile a function, and keep its source where :mod:`inspect` looks for it."""
    namespace = {
        name: importlib.import_module(value.name) if isinstance(value, _Imported) else value
        for name, value in code.globals[training].items()
    }
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<rewritten forward of {cls.__name__} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return next(
        (f for f in namespace.values() if getattr(f, "__code__", None) and f.__code__.co_filename == filename), None
    )


def is_rewritten(module: nn.Module) -> bool:
    """Whether a module runs a generated `forward`."""
    return isinstance(module, _Rewritten)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return a module's class as its author wrote it, whether the module is rewritten or not."""
    return module._own_class if isinstance(module, _Rewritten) else type(module)


def rewrite_(module: nn.Module) -> bool:
    """Give a module a generated `forward` that reads the integers of its code from an attribute, in place.

    Returns:
        Whether that was possible and the code has integers. It is impossible for code that :mod:`torch.fx` cannot
        trace (control flow that depends on values), that takes ``*args`` or ``**kwargs``, or that creates tensors.
    """
    if "forward" in module.__dict__ or is_rewritten(module) or not _has_plain_signature(module):
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
    module.__class__ = _generated_class(type(module), _Code({t: c.src for t, c in code.items()}, globals_))
    return True


def unrewrite_(module: nn.Module) -> None:
    """Take :func:`rewrite_` back."""
    module.__class__ = own_class(module)
    module.__dict__.pop(HELD, None)


@contextlib.contextmanager
def rewritten(root: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Module]]:
    """Rewrite modules for the duration of a block, except those that are rewritten already.

    Yields:
        The modules that were rewritten.
    """
    done = [module for name in names if not is_rewritten(module := root.get_submodule(name)) and rewrite_(module)]
    try:
        yield done
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
    _resolve_annotations(module, graph)
    return None if constants else graph


def _resolve_annotations(module: nn.Module, graph: fx.Graph) -> None:
    """Replace annotations that are strings by types: generated code does not see the names of the module's file."""
    try:
        hints = get_type_hints(type(module).forward)
    except NameError:  # a name that is imported for type checkers only
        hints = {}
    for node in graph.nodes:
        if isinstance(node.type, str):
            node.type = hints.get("return" if node.op == "output" else str(node.target))


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
                    return graph.create_node("call_function", getitem, (_self(graph), offset + len(integers) - 1))
            if isinstance(value, slice):
                return slice(*(replaced(v) for v in (value.start, value.stop, value.step)))
            if isinstance(value, (tuple, list)):
                return type(value)(replaced(v) for v in value)
            return value

        node.args = cast(Any, tuple(replaced(a) for a in node.args))
        node.kwargs = {k: replaced(v) for k, v in node.kwargs.items()}
    graph.lint()
    return integers


def _self(graph: fx.Graph) -> fx.Node:
    """Return the node that reads the module's list."""
    found = next((n for n in graph.nodes if n.op == "get_attr" and n.target == HELD), None)
    if found is None:
        with graph.inserting_before():  # at the very beginning
            found = graph.create_node("get_attr", HELD)
    return found
