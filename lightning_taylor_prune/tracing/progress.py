"""Say what an analysis is doing once it takes long."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

_log = logging.getLogger("lightning_taylor_prune")

_ANNOUNCED_AFTER, _EVERY = 2.0, 5.0
"""Seconds until an analysis says that it runs, and from one line on what it does to the next."""


class Progress:
    """Says what an analysis is doing: nothing in the first two seconds, then a line every five.

    Args:
        say: Takes a line.
    """

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say, self._started = say, time.monotonic()
        self._announced, self._last = False, 0.0
        self._doing = "tracing the network"

    def note(self, doing: str) -> None:
        """Note what begins now, for example ``"trying cuts"``, and say so if it is time to say something."""
        self._doing = doing
        self.tick()

    def tick(self) -> None:
        """Say what is being done, if it is time to say something."""
        elapsed = time.monotonic() - self._started
        if elapsed >= _ANNOUNCED_AFTER and not self._announced:
            self._announced = True
            self._say("Analysing the network to find out which channels can be removed ...")
        if elapsed - self._last >= _EVERY:
            self._last = elapsed
            self._say(f"Analysing the network for {elapsed:.0f} s: {self._doing}")


_CURRENT: ContextVar[Progress | None] = ContextVar("progress of the analysis", default=None)


@contextlib.contextmanager
def reporting(say: Callable[[str], Any] = _log.info) -> Iterator[None]:
    """Say what an analysis is doing within a block; one that has been begun around it goes on.

    Args:
        say: Takes a line; by default the logger ``lightning_taylor_prune`` does, at level INFO.
    """
    if _CURRENT.get() is not None:
        yield
        return
    token = _CURRENT.set(Progress(say))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def note(doing: str) -> None:
    """Note what begins now, where an analysis reports its progress."""
    if (progress := _CURRENT.get()) is not None:
        progress.note(doing)


def tick() -> None:
    """Give an analysis the chance to say that it is still at work: at every operator, that is."""
    if (progress := _CURRENT.get()) is not None:
        progress.tick()
