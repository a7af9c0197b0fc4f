"""What each Lightning strategy needs after parameters changed shape, and which strategies are refused."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_taylor_prune.errors import PruningError

# By name: strategies that shard parameters subclass DDP's, and `pytorch_lightning` has classes of its own.
SINGLE_DEVICE = "SingleDeviceStrategy"
DDP = "DDPStrategy"


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that cannot follow a change of shapes.

    Sharded strategies (FSDP2 and ModelParallel, DeepSpeed) keep every parameter as a slice of a flat or distributed
    tensor, and an optimizer built over those slices. A cut would have to gather each tensor, cut it, shard it anew over
    the same device mesh, and slice optimizer state the same way; nothing here does that yet.

    Raises:
        PruningError: The strategy is not supported.
    """
    name = type(strategy).__name__
    if name not in (SINGLE_DEVICE, DDP):
        raise PruningError(
            f"Expected the strategy for one device or `ddp`, but got {name}, which holds parameters in ways that do "
            "not follow a change of their shapes. Train with `devices=1` or `strategy='ddp'`."
        )
    state = getattr(strategy, "_ddp_comm_state", None)
    if type(state).__name__ == "PostLocalSGDState" or getattr(strategy, "_model_averager", None) is not None:
        raise PruningError(
            "Post-local SGD lets the ranks' weights drift apart, so that they would prune different filters. Use `ddp` "
            "without `model_averaging_period`."
        )


class Rewrap:
    """Have DDP forget the parameters that were replaced: its reducer is built anew, as at the start of training.

    One step of a cut, that can be taken back like the others.

    Args:
        strategy: The Trainer's strategy; for one device there is nothing to do.
        pl_module: The module that it wraps.
    """

    def __init__(self, strategy: Any, pl_module: Any) -> None:
        self._strategy, self._module = strategy, pl_module
        self._wrapped = strategy.model
        self._delayed = getattr(strategy, "_pl_static_graph_delay_done", None)

    def commit(self) -> None:
        """Wrap the module anew."""
        strategy = self._strategy
        if type(strategy).__name__ != DDP or self._wrapped is self._module:
            return
        state = getattr(strategy, "_ddp_comm_state", None)
        for name in ("error_dict", "p_memory_dict", "q_memory_dict"):  # PowerSGD's memory has the old shapes
            if isinstance(memory := getattr(state, name, None), dict):
                memory.clear()
        strategy.model = self._module
        strategy.configure_ddp()
        if self._delayed is not None:
            strategy._pl_static_graph_delay_done = False

    def rollback(self) -> None:
        """Take up the old wrapper, whose reducer holds the old parameters."""
        self._strategy.model = self._wrapped
        if self._delayed is not None:
            self._strategy._pl_static_graph_delay_done = self._delayed


class Ranks:
    """Messages between the ranks of a job over its key-value store, with a time limit: a lost rank cannot hang us.

    Args:
        name: What the messages are about, the same on all ranks and different for each user.
        timeout: Seconds to wait for other ranks.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._timeout = timedelta(seconds=timeout)
        self._round = 0
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
        return json.loads(self._wait(key, [0])[0])

    def agree(self, message: str) -> None:
        """Check that all ranks have the same message.

        Raises:
            PruningError: They do not, or some did not answer in time; the error names the ranks.
        """
        if self.count == 1:
            return
        key = self._next_key()
        self._store.set(f"{key}/{self.rank}", message)
        messages = self._wait(key, list(range(self.count)), suffix=True)
        if len(set(messages)) > 1:
            groups: dict[str, list[int]] = {}
            for rank, text in enumerate(messages):
                groups.setdefault(text, []).append(rank)
            described = "; ".join(f"ranks {ranks}: {text[:300]}" for text, ranks in groups.items())
            raise PruningError(f"The ranks disagree on what to prune, so that nothing was pruned. {described}")

    def _next_key(self) -> str:
        self._round += 1
        return f"lightning_taylor_prune/{self._name}/{self._training}/{self._round}"

    @property
    def _store(self) -> Any:
        return dist.distributed_c10d._get_default_store()

    def _wait(self, key: str, ranks: list[int], suffix: bool = False) -> list[str]:
        """Read the messages of ranks; names those that are missing."""
        messages: list[str] = []
        missing: list[int] = []
        for rank in ranks:
            name = f"{key}/{rank}" if suffix else key
            try:
                self._store.wait([name], timedelta(seconds=0.001) if missing else self._timeout)
                messages.append(self._store.get(name).decode())
            except (RuntimeError, ValueError):  # torch's DistStoreError is a RuntimeError
                missing.append(rank)
        if missing:
            raise PruningError(
                f"Rank {self.rank} waited {self._timeout.total_seconds():.0f} s for ranks {missing}, which did not "
                "reach this prune: they have died, or take another path through the training."
            )
        return messages
