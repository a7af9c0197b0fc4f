"""Steps that are all done or all taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
from functools import partial
from typing import Any, Protocol


class Step(Protocol):
    """Part of a cut."""

    def commit(self) -> None:
        """Do it."""

    def rollback(self) -> None:
        """Take it back, also if it was done in part."""


class Assignment:
    """A step that gives an attribute another value.

    Args:
        owner: What has the attribute.
        name: Its name.
        value: The new value.
    """

    def __init__(self, owner: object, name: str, value: Any) -> None:
        self._owner, self._name = owner, name
        self._before, self._after = getattr(owner, name), value

    def commit(self) -> None:
        """Assign the new value."""
        setattr(self._owner, self._name, self._after)

    def rollback(self) -> None:
        """Assign the old value."""
        setattr(self._owner, self._name, self._before)


class Transaction:
    """Steps done so far, and how to take each back; as a context, it takes all back where one fails."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.undo()

    def do(self, step: Callable[[], Any], undo: Callable[[], Any]) -> None:
        """Do a step; its undo is noted first, so that a step that fails half-way is taken back as well."""
        self._undo.append(undo)
        step()

    def do_all(self, steps: Iterable[Step]) -> None:
        """Do steps in their order."""
        for step in steps:
            self.do(step.commit, step.rollback)

    def set_item(self, table: MutableMapping[Any, Any] | MutableSequence[Any], name: Any, value: Any) -> None:
        """Replace the value under a name (or at a position) that the table has."""
        self.do(partial(table.__setitem__, name, value), partial(table.__setitem__, name, table[name]))

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute that the owner has."""
        self.do(partial(setattr, owner, name, value), partial(setattr, owner, name, getattr(owner, name)))

    def change(self, owner: Any, change: Callable[[], Any]) -> None:
        """Do something that changes the attributes of an object."""
        self.do(change, partial(_restore, owner, dict(vars(owner))))

    def undo(self) -> None:
        """Take back all steps, the last one first."""
        while self._undo:
            self._undo.pop()()


def _restore(owner: Any, attributes: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(attributes)
