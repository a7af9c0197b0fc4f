"""Find fake tensors that code keeps where nobody looked, and make it forget them."""

from __future__ import annotations

import functools
import gc
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import CellType, FrameType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.tracing.surroundings import Surroundings
from lightning_taylor_prune.tracing.undo import (
    Global,
    Slots,
    content_of,
    holds_fakes,
    kind_of,
    restore_container,
    slots_of,
)


class References:
    """References to fake tensors from our own containers.

    Attributes:
        count: How many there are of each tensor, by its number.
        containers: Numbers of the containers.
    """

    def __init__(self) -> None:
        self.count: dict[int, int] = {}
        self.containers: set[int] = set()

    def add(self, owned: Sequence[Any]) -> list[Tensor]:
        """Count the references from further containers, nested ones too; returns their tensors, each once."""
        found: dict[int, Tensor] = {}
        stack = [*owned]
        while stack:
            item = stack.pop()
            if id(item) in self.containers:
                continue
            children = item if isinstance(item, (list, tuple)) else item if isinstance(item, dict) else vars(item)
            self.containers.update((id(item), id(children)))
            for child in children.values() if isinstance(children, dict) else children:
                if type(child) is FakeTensor:
                    self.count[id(child)] = self.count.get(id(child), 0) + 1
                    found[id(child)] = child
                elif type(child) in _OWN_CONTAINERS or is_dataclass(type(child)):
                    stack.append(child)
        return list(found.values())


def forget_leaks(surroundings: Surroundings, owned: Sequence[Any], always: References | None = None) -> References:
    """Make the network's code forget the fake tensors of a run that it still holds.

    Memo tables made by :func:`functools.lru_cache` are emptied. Other holders are named in a warning, as what they held
    before is not known; from then on they are put back after every run.

    Args:
        surroundings: Where leaks are undone by themselves; holders that are found are added.
        owned: What of our own holds tensors of the run; what only we hold is no leak.
        always: References from what we hold of former runs.

    Returns:
        The references from ``owned``.
    """
    own, kept = _held_elsewhere(owned, always)
    for generation in (1, 2):  # what an exception passed through may hold itself in a circle
        if not kept or not surroundings.searching:
            return own
        del kept
        gc.collect(generation)
        own, kept = _held_elsewhere(owned, always)
    if kept:
        before = len(surroundings.found)
        containers = own.containers | (always.containers if always is not None else set())
        _Search(surroundings, {*containers, id(kept), id(owned)}).forget(kept)
        surroundings.searching = len(surroundings.found) > before
    return own


def clear_frames(error: BaseException | None) -> None:
    """Let go of the variables of the code that an exception passed through: they hold tensors."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            _ = frame.f_locals  # a dict of its variables that was made before is brought up to date
        error = error.__cause__ or error.__context__


def _held_elsewhere(owned: Sequence[Any], always: References | None) -> tuple[References, list[Tensor]]:
    own = References()
    tensors = own.add(owned)
    known = always.count if always is not None else {}
    return own, [t for t in tensors if _is_held_elsewhere(t, own.count[id(t)] + known.get(id(t), 0))]


def _is_held_elsewhere(tensor: Tensor, count: int) -> bool:
    """Whether something else than our containers refers to a tensor.

    The list of candidates, the variable that runs over it, the argument here and that of ``getrefcount`` refer to it
    too, and the autograd graph once, if it does.
    """
    in_graph: int = tensor._use_count() > 1  # type: ignore[attr-defined]
    return sys.getrefcount(tensor) > count + _OWN_VARIABLES + in_graph


class _Search:
    """Climbs from tensors to what holds them.

    Args:
        surroundings: Holders that are found are added to it.
        own: Numbers of our own containers, which are passed over.
    """

    def __init__(self, surroundings: Surroundings, own: set[int]) -> None:
        self._surroundings = surroundings
        self._own = own

    def forget(self, tensors: Sequence[Any], depth: int = 0) -> None:
        """Take tensors, or tuples that hold them, out of whatever holds them."""
        referrers = gc.get_referrers(*tensors)
        held = {id(t) for t in tensors}
        self._own.update((id(referrers), id(tensors)))
        climb = []
        for holder in referrers:
            if id(holder) not in self._own and not isinstance(holder, FrameType) and not self._take(holder, held):
                climb.append(holder)
        climb = [holder for holder in climb if isinstance(holder, tuple)]
        if climb and depth < _HIGHEST:
            self.forget(climb, depth + 1)

    def _take(self, holder: Any, held: set[int]) -> bool:
        """Make one holder forget; says whether it is one."""
        if isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, CellType):
            holder.cell_contents = None
            self._warn(holder, "a variable of a closure")
        elif not _is_of_the_user(holder):
            return True
        elif isinstance(holder, dict):
            return self._take_from_dict(holder, held)
        elif isinstance(holder, (list, deque)):
            kept = [item for item in content_of(holder)[1] if id(item) not in held]
            restore_container(holder, ([], kept))
            self._warn(holder, f"a {type(holder).__name__} {_owner(holder)}")
        elif isinstance(holder, set):
            set.difference_update(holder, [item for item in content_of(holder)[1] if id(item) in held])
            self._warn(holder, f"a set {_owner(holder)}")
        else:
            return self._take_from_object(holder, held)
        self._surroundings.found.append(holder)
        return True

    def _take_from_dict(self, holder: dict[Any, Any], held: set[int]) -> bool:
        if memo := _memo_of(holder):
            memo.cache_clear()
            self._surroundings.found.append(memo)
            return True
        keys, items = content_of(holder)
        for key in [key for key, value in zip(keys, items, strict=True) if id(value) in held]:
            kind_of(holder).__delitem__(holder, key)
            self._warn(holder, f"entry {str(key)[:40]!r} of a dict {_owner(holder)}")
        self._surroundings.found.append(holder)
        return True

    def _take_from_object(self, holder: Any, held: set[int]) -> bool:
        names = [name for name, value in getattr(holder, "__dict__", {}).items() if id(value) in held]
        names += [name for name in slots_of(holder) if id(getattr(holder, name, None)) in held]
        if isinstance(holder, Tensor) or not names:
            return False
        for name in names:
            object.__setattr__(holder, name, None)  # a frozen dataclass refuses its own way
            self._warn(None, f"`{name}` of a {type(holder).__name__}")
        self._surroundings.watch(holder)
        self._surroundings.found.append(holder)
        return True

    def _warn(self, holder: Any, what: str) -> None:
        if holder is not None:
            self._surroundings.watch(holder)
        warnings.warn(
            f"The network's code kept a tensor without values, made while the network was analysed, in {what}; it was "
            "taken out again. If the code expects something there, keep it in an attribute of a module.",
            PruningWarning,
            stacklevel=2,
        )


def _memo_of(holder: dict[Any, Any]) -> Any:
    """Return the memo whose table a dict is, if it is one."""
    memos = (r for r in gc.get_referrers(holder) if isinstance(r, functools._lru_cache_wrapper))
    return next((memo for memo in memos if holds_fakes(memo)), None)


def _is_of_the_user(holder: Any) -> bool:
    """Whether a holder belongs neither to torch or this package, nor to code that is running."""
    owners = [holder, *gc.get_referrers(holder)]
    packages = {
        (type(owner).__module__ or "").partition(".")[0] for owner in owners if not isinstance(owner, nn.Module)
    }
    running = any(isinstance(owner, FrameType) and owner.f_code.co_filename != __file__ for owner in owners)
    return packages.isdisjoint({"torch", __name__.partition(".")[0]}) and not running


def _owner(holder: Any) -> str:
    """Say where a container is: a name in a module, an attribute, a variable of a function, or only its kind."""
    for referrer in gc.get_referrers(holder):
        if isinstance(referrer, dict):
            name = next((key for key, value in referrer.items() if value is holder), None)
        else:
            name = _variable(referrer) if isinstance(referrer, CellType) else None
        if isinstance(name, str):
            return f"named `{name}`"
    return "of its own"


def _variable(cell: CellType) -> str | None:
    """Return the name of a closure's variable."""
    closures = [r for r in gc.get_referrers(cell) if isinstance(r, tuple)]
    functions = (f for f in gc.get_referrers(*closures) if isinstance(f, FunctionType)) if closures else ()
    found = (zip(f.__code__.co_freevars, f.__closure__ or (), strict=True) for f in functions)
    return next((name for pairs in found for name, other in pairs if other is cell), None)


def name_of_place(place: Any) -> str:
    """Say what a place around a network is: a container, a global, a variable of a closure, a class, an object."""
    if isinstance(place, Global):
        return f"the global `{place.name}`"
    if isinstance(place, CellType):
        return f"the variable `{_variable(place)}` of a closure"
    if isinstance(place, type):
        return f"an attribute of the class `{place.__name__}`"
    if isinstance(place, Slots):
        return f"an attribute of a `{type(place.holder).__name__}`"
    return f"a {type(place).__name__} {_owner(place)}"


_OWN_VARIABLES = 4

_OWN_CONTAINERS = (list, tuple, dict)

_HIGHEST = 4
