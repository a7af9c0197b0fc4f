"""Lightning callbacks: pruning while training, a progress bar, figures; the only package that imports Lightning.

May import: report, pruning, and what lies below. Nothing here imports matplotlib, rich or a logger's library before it
is used: figures need matplotlib, the bar rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_taylor_prune.callbacks.figures import PruningFigures
from lightning_taylor_prune.callbacks.loggers import end_run, log_figure
from lightning_taylor_prune.callbacks.loss_curve import LossCurve
from lightning_taylor_prune.callbacks.pruning import TaylorPruningCallback
from lightning_taylor_prune.callbacks.recovery import Recovery
from lightning_taylor_prune.callbacks.status import progress_of

if TYPE_CHECKING:
    from lightning_taylor_prune.callbacks.progress_bar import PruningProgressBar

__all__ = [
    "LossCurve",
    "PruningFigures",
    "PruningProgressBar",
    "Recovery",
    "TaylorPruningCallback",
    "end_run",
    "log_figure",
    "progress_of",
]


def __getattr__(name: str) -> Any:
    """Import the bar when it is asked for: rich may not be installed."""
    if name == "PruningProgressBar":
        from lightning_taylor_prune.callbacks.progress_bar import PruningProgressBar

        return PruningProgressBar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
