"""Hooks that this package puts on other people's modules: copies and pickles of a module do not carry them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class OwnHook:
    """A hook; in a copy or pickle of the module that it is on, one that does nothing stands in its place.

    Args:
        function: What the hook does.

    Example:
        >>> import copy
        >>> hook = OwnHook(lambda module, args: print("called"))
        >>> hook(None, ()), copy.deepcopy(hook)(None, ())
        called
        (None, None)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the hook does."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnHook, (_nothing,)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""
