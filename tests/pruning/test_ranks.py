"""Messages between ranks: whoever does not answer is named, and nobody else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lightning_taylor_prune.errors import PruningError
from lightning_taylor_prune.pruning.ranks import Ranks
from tests.distributed import run_ranks


def ask_all() -> None:
    """Ask all ranks, of which the second one dies and the last one comes late."""
    dist.init_process_group("gloo")
    ranks = Ranks("test", timeout=2)
    dist.barrier()
    if ranks.rank == 1:
        os._exit(1)
    time.sleep(1 if ranks.rank == 2 else 0)
    ranks.agree("the same")


def test_the_first_rank_keeps_the_store_until_a_late_one_has_given_up(tmp_path: Path) -> None:
    first, _, late = run_ranks(ask_all, tmp_path, 3, timeout=60)
    assert all("waited 2 s for ranks [1]" in result for result in (first, late))


class LosesItsHost:
    """A store of which the first rank's process ends while another one waits for some key."""

    def __init__(self, answered: list[int], clock: Callable[[float], None], after: float) -> None:
        self.answered, self.clock, self.after = answered, clock, after

    def add(self, key: str, number: int) -> int:
        return number

    def set(self, key: str, value: str) -> None: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        if int(keys[0][-1]) not in self.answered:
            self.clock(self.after)
            raise dist.DistNetworkError("Connection reset by peer")

    def get(self, key: str) -> bytes:
        return b"the same"


@pytest.mark.parametrize(
    ("answered", "after", "named"),
    [([], 10.0, 0), ([0], 0.5, 0), ([0], 9.0, 1)],
    ids=["has not answered", "dies after it has answered", "gives up first"],
)
def test_the_first_rank_is_named_only_if_it_has_died(
    answered: list[int], after: float, named: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    store: Any = LosesItsHost(answered, lambda seconds: now.__setitem__(0, now[0] + seconds), after)
    monkeypatch.setattr(Ranks, "_store", store)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ranks = Ranks("test", timeout=10)
    ranks.rank, ranks.count = 2, 3
    with pytest.raises(PruningError, match=rf"for ranks \[{named}\]"):
        ranks.agree("the same")
