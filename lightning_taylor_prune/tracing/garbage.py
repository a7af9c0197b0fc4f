"""Python's garbage collection during an analysis."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_NEVER = 2**31 - 1


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """Have Python look for garbage among young objects only.

    To look at all objects of a process that has loaded torch takes up to half a second, and an analysis, which makes
    many small objects, would have Python do so again and again.
    """
    young, middle, full = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, full)
