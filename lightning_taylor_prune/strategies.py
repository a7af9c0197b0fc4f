"""What each Lightning strategy needs after parameters changed shape, and which strategies are refused."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.errors import PruningError

# By name: strategies that shard parameters subclass DDP's, and `pytorch_lightning` has classes of its own.
_SUPPORTED = ("SingleDeviceStrategy",)


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that cannot follow a change of shapes.

    Raises:
        PruningError: The strategy is not supported.
    """
    name = type(strategy).__name__
    if name not in _SUPPORTED:
        raise PruningError(
            f"Expected a strategy among {', '.join(_SUPPORTED)}, but got {name}, which holds parameters in ways that "
            "do not follow a change of their shapes. Train with `devices=1`."
        )
