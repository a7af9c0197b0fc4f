"""What each Lightning strategy needs after parameters changed shape, and which strategies are refused."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.errors import PruningError
from lightning_taylor_prune.pruning.ranks import Ranks

# By name: `pytorch_lightning` has classes of its own.
SINGLE_DEVICE = "SingleDeviceStrategy"

DDP = "DDPStrategy"

SHARDED = frozenset(
    {"DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"}
)
"""Strategies that are refused with all their subclasses, some of which are subclasses of those that are accepted."""


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that cannot follow a change of shapes; subclasses of the others are accepted.

    Sharded strategies (FSDP2 and ModelParallel, DeepSpeed) keep every parameter as a slice of a flat or distributed
    tensor, and an optimizer built over those slices. A cut would have to gather each tensor, cut it, shard it anew over
    the same device mesh, and slice optimizer state the same way; nothing here does that yet.

    Raises:
        PruningError: The strategy is not supported.
    """
    names = _names(strategy)
    if not names & {SINGLE_DEVICE, DDP} or names & SHARDED:
        raise PruningError(
            f"Expected the strategy for one device or `ddp`, but got {type(strategy).__name__}, which holds parameters "
            "in ways that do not follow a change of their shapes. Train with `devices=1` or `strategy='ddp'`."
        )
    state = getattr(strategy, "_ddp_comm_state", None)
    if type(state).__name__ == "PostLocalSGDState" or getattr(strategy, "_model_averager", None) is not None:
        raise PruningError(
            "Post-local SGD lets the ranks' weights drift apart, so that they would prune different filters. Use `ddp` "
            "without `model_averaging_period`."
        )


def _names(strategy: Any) -> set[str]:
    """Return the names of a strategy's class and of all that it is derived from."""
    return {cls.__name__ for cls in type(strategy).__mro__}


class Rewrap:
    """Have DDP forget the parameters that were replaced: its reducer is built anew, as at the start of training.

    One step of a cut, that can be taken back like the others.

    Args:
        strategy: The Trainer's strategy; for one device there is nothing to do.
        pl_module: The module that it wraps.
        ranks: The ranks of the job: all must have got here, as none can wrap alone.
    """

    def __init__(self, strategy: Any, pl_module: Any, ranks: Ranks | None = None) -> None:
        self._strategy, self._module, self._ranks = strategy, pl_module, ranks
        self._wrapped = strategy.model
        self._delayed = getattr(strategy, "_pl_static_graph_delay_done", None)

    def commit(self) -> None:
        """Wrap the module anew."""
        strategy = self._strategy
        if DDP not in _names(strategy) or self._wrapped is self._module:
            return
        if self._ranks is not None:
            self._ranks.agree("wraps the network anew")
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
