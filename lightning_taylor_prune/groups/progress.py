"""Say what an analysis is doing once it takes long."""

from __future__ import annotations

import logging
import time

_log = logging.getLogger("lightning_taylor_prune")

_ANNOUNCED_AFTER, _EVERY = 2.0, 5.0
"""Seconds until an analysis says that it runs, and from one line on what it does to the next."""


class Progress:
    """Logs at level INFO what an analysis is doing: nothing in the first two seconds, then a line every five."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._announced = False
        self._last = 0.0

    def note(self, doing: str) -> None:
        """Say what is being done, if it is time to say something.

        Args:
            doing: What begins now, for example ``"trying cuts"``.
        """
        elapsed = time.monotonic() - self._started
        if elapsed >= _ANNOUNCED_AFTER and not self._announced:
            self._announced = True
            _log.info("Analysing the network to find out which channels can be removed ...")
        if elapsed - self._last >= _EVERY:
            self._last = elapsed
            _log.info("Analysing the network for %.0f s: %s", elapsed, doing)
