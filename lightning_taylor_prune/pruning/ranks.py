"""Messages between the ranks of a job: all of them prune the same, or none does."""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lightning_taylor_prune.errors import PruningError

MOST_PATIENCE = timedelta(seconds=60)
"""How long the first rank waits at most, having given up itself, for others to do so: it holds what they wait at."""


class Ranks:
    """Messages between the ranks of a job over its key-value store, with a time limit: a lost rank cannot hang us.

    Args:
        name: What the messages are about, the same on all ranks and different for each user.
        timeout: Seconds to wait for other ranks.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._timeout = timedelta(seconds=timeout)
        self._round = self._asked = 0
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.count = dist.get_world_size() if active else 1
        # The store outlives a training: each one counts its own messages apart from those before.
        self._training = self._store.add(f"lightning_taylor_prune/{name}/{self.rank}", 1) if self.count > 1 else 0

    def from_first(self, message: Any) -> Any:
        """Return rank 0's message (anything that JSON holds) on every rank.

        Raises:
            PruningError: Rank 0 did not answer in time.
        """
        if self.count == 1:
            return message
        key = self._next_key()
        if self.rank == 0:
            self._store.set(key, json.dumps(message))
            return message
        return json.loads(self._wait(key, [0], self._timeout)[0])

    def from_all(self, message: str) -> list[str]:
        """Return the messages of all ranks, in their order.

        Raises:
            PruningError: Some ranks did not answer in time.
        """
        if self.count == 1:
            return [message]
        key = self._next_key()
        self._store.set(f"{key}/{self.rank}", message)
        return self._wait(key, list(range(self.count)), self._timeout, suffix=True)

    def agree(self, message: str) -> None:
        """Check that all ranks have the same message.

        Raises:
            PruningError: They do not, or some did not answer in time; the error names the ranks.
        """
        messages = self.from_all(message)
        if len(set(messages)) > 1:
            groups: dict[str, list[int]] = {}
            for rank, text in enumerate(messages):
                groups.setdefault(text, []).append(rank)
            described = "; ".join(f"ranks {ranks}: {text[:300]}" for text, ranks in groups.items())
            raise PruningError(f"The ranks disagree on what to prune, so that nothing was pruned. {described}")

    def all_of(self, message: str, at_most: float = math.inf) -> list[str] | None:
        """Return the messages of all ranks, in order; ``None`` where some did not answer in time.

        Counted apart from the other messages, so that a rank that asks alone does not get out of step.

        Args:
            message: This rank's.
            at_most: Seconds to wait, where that is less than the time limit.
        """
        self._asked += 1
        key = f"lightning_taylor_prune/{self._name}/{self._training}/all"
        self._store.set(f"{key}/{self._asked}/{self.rank}", message)
        self._store.delete_key(f"{key}/{self._asked - 2}/{self.rank}")  # all ranks have read it
        timeout = timedelta(seconds=min(at_most, self._timeout.total_seconds()))
        try:
            return self._wait(f"{key}/{self._asked}", list(range(self.count)), timeout, suffix=True)
        except PruningError:
            return None

    def _next_key(self) -> str:
        self._round += 1
        return f"lightning_taylor_prune/{self._name}/{self._training}/{self._round}"

    @property
    def _store(self) -> Any:
        return dist.distributed_c10d._get_default_store()

    def _wait(self, key: str, ranks: list[int], timeout: timedelta, suffix: bool = False) -> list[str]:
        """Read the messages of ranks; names those that are missing."""
        messages: dict[int, str] = {}
        missing: list[int] = []
        began = time.monotonic()
        for rank in ranks:
            name = f"{key}/{rank}" if suffix else key
            try:
                if missing and not self._store.check([name]):
                    missing.append(rank)
                    continue
                self._store.wait([name], timeout)
                messages[rank] = self._store.get(name).decode()
            except dist.DistNetworkError:  # the store is gone, and with it the first rank, which holds it
                in_time = time.monotonic() - began < timeout.total_seconds() / 2
                missing = missing or [0 if in_time or 0 not in messages else rank]
                break
            except (RuntimeError, ValueError):  # torch's DistStoreError is a RuntimeError
                missing.append(rank)
        if missing:
            self._let_others_find_out(key, messages)
            raise PruningError(
                f"Rank {self.rank} waited {timeout.total_seconds():.0f} s for ranks {missing}, which did not "
                "reach this prune: they have died, or take another path through the training."
            )
        return list(messages.values())

    def _let_others_find_out(self, key: str, answered: Collection[int]) -> None:
        """Say that this rank gives up; the first one, which holds the store, ends only when all that wait have too."""
        try:
            self._store.set(f"{key}/gave up/{self.rank}", "")
            if self.rank == 0 and (others := [f"{key}/gave up/{rank}" for rank in answered if rank]):
                self._store.wait(others, min(self._timeout, MOST_PATIENCE))
        except RuntimeError:  # the store is gone, or one of them has died meanwhile
            return


def to_text(content: Any) -> str:
    """Write what a checkpoint may hold as text, for a message to other ranks."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def from_text(text: str) -> Any:
    """Read what :func:`to_text` wrote."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
