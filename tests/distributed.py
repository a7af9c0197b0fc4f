"""Run a function in several processes that form one job, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    function: Callable[..., Any], folder: Path, ranks: int = 2, nodes: int = 1, timeout: float = 120.0, **kwargs: Any
) -> list[Any]:
    """Call ``function(**kwargs)`` in every rank; returns what each returned, or its error as text.

    Args:
        function: Importable from its module.
        folder: Where results are passed on.
        ranks: Number of processes in all.
        nodes: Number of nodes that they are spread over evenly; all are on this host.
        timeout: Seconds after which processes that still run are killed (their result is then ``None``).
        kwargs: Arguments of the function.
    """
    context = mp.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(function, str(folder), rank, ranks, nodes, port, kwargs))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
    files = [folder / f"rank{rank}.pt" for rank in range(ranks)]
    return [torch.load(f, weights_only=False) if f.exists() else None for f in files]


def _rank(
    function: Callable[..., Any], folder: str, rank: int, ranks: int, nodes: int, port: int, kwargs: dict[str, Any]
) -> None:
    per_node = ranks // nodes
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank % per_node),
        GROUP_RANK=str(rank // per_node),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(per_node),
        TORCHELASTIC_RUN_ID="tests",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    try:
        result = function(**kwargs)
    except BaseException:
        result = "error: " + traceback.format_exc()
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    # The process group has done its part; waiting for its threads to wind down can hang if a rank has died.
    os._exit(0)
