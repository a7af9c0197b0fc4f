"""Show how far long work is: a bar on a terminal, lines of the logger elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

_log = logging.getLogger("lightning_taylor_prune")

_EVERY = 10.0
"""Seconds from one line of the logger to the next."""


def steps(items: Sequence[Item], title: str, progress: bool = True) -> Iterator[Item]:
    """Yield items one by one, and show how many are done and how long the others will take.

    Args:
        items: The items.
        title: What is done.
        progress: Whether to show anything.
    """
    if not progress:
        yield from items
    elif sys.stderr.isatty() and (track := _rich_track()) is not None:
        yield from track(items, title)
    else:
        yield from _logged(items, title)


def _rich_track() -> Callable[[Sequence[Item], str], Iterable[Item]] | None:
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return None
    return lambda items, title: track(items, title, console=Console(stderr=True))


def _logged(items: Sequence[Item], title: str) -> Iterator[Item]:
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= _EVERY:
            last = now
            rest = (now - began) / done * (len(items) - done)
            _log.info("%s: %d of %d done, about %.0f s to go", title, done, len(items), rest)
        yield item
    _log.info("%s: all %d done in %.0f s", title, len(items), time.monotonic() - began)
