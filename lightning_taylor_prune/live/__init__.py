"""Watching a pruning run while it trains: a progress bar, figures for the loggers, and the curve of the training loss.

Nothing here imports matplotlib, rich or a logger's library before it is used: figures need matplotlib, the bar rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_taylor_prune.live.curve import LossCurve
from lightning_taylor_prune.live.figures import PruningFigures
from lightning_taylor_prune.live.loggers import end_run, log_figure
from lightning_taylor_prune.live.standing import progress_of

if TYPE_CHECKING:
    from lightning_taylor_prune.live.bar import PruningProgressBar

__all__ = ["LossCurve", "PruningFigures", "PruningProgressBar", "end_run", "log_figure", "progress_of"]


def __getattr__(name: str) -> Any:
    """Import the bar when it is asked for: rich may not be installed."""
    if name == "PruningProgressBar":
        from lightning_taylor_prune.live.bar import PruningProgressBar

        return PruningProgressBar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
