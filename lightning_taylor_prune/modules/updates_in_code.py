"""Whether a training's own code updates one module from another one: seen in its source, before it happens."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator

from lightning_taylor_prune.modules.likeness import Twin

_RUN_IN_TRAINING = (
    *("forward", "training_step", "on_train_batch", "on_train_epoch", "on_before", "on_after", "on_validation"),
    *("optimizer_", "backward"),
)
"""How the names of methods begin that run while a network is trained, again and again; not once as it is built."""

_ASK_FOR_PARAMETERS = frozenset({"parameters", "named_parameters", "state_dict", "load_state_dict", "buffers"})


def is_updated_in_code(twin: Twin, holders: Iterable[object]) -> bool:
    """Whether a method that runs in training takes the parameters of both modules, or hands both to a function.

    Args:
        twin: The modules.
        holders: The network and other objects (callbacks) whose methods are read.
    """
    follower, leader = set(twin.follower.split(".")), set(twin.leader.split("."))
    names = follower - leader, leader - follower
    return any(
        all(any(name in taken for name in several) for several in names)
        for holder in holders
        for taken in map(_taken, _functions_of(type(holder)))
    )


def _functions_of(cls: type) -> Iterator[ast.AST]:
    """Yield the source of all methods that run in training, and of those that they call."""
    pending = [name for name in dir(cls) if name.startswith(_RUN_IN_TRAINING)]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        source = _parsed(inspect.getattr_static(cls, name, None))
        if source is not None:
            yield source
            pending += [node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)]


def _parsed(function: object) -> ast.AST | None:
    """Return the syntax tree of a user's function; ``None`` for anything else, and where the source is not there."""
    inner: object = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    if not inspect.isfunction(inner) or inner.__module__.partition(".")[0] in _LIBRARIES:
        return None
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(inner))))
    except (OSError, TypeError, SyntaxError):
        return None


_LIBRARIES = frozenset({"torch", "lightning", "pytorch_lightning"})


def _taken(function: ast.AST) -> set[str]:
    """Return the attributes whose parameters a function asks for, or which it hands to another one."""
    taken: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr in _ASK_FOR_PARAMETERS:
            taken |= _names_in(node.value)
        elif isinstance(node, ast.Call):
            taken.update(name for argument in node.args for name in _names_in(argument))
    return taken


def _names_in(value: ast.AST) -> set[str]:
    """Return the attributes along a chain such as ``self.other.target``."""
    found: set[str] = set()
    while isinstance(value, (ast.Attribute, ast.Subscript)):
        if isinstance(value, ast.Attribute):
            found.add(value.attr)
        value = value.value
    return found
