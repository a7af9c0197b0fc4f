"""What each Lightning strategy needs after parameters changed shape, and which strategies are refused."""

from __future__ import annotations

from typing import Any

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
