"""What loggers take beyond scalars, each in its own way."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@functools.singledispatch
def log_figure(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Send a figure to a logger; register your own logger's way of taking one.

    TensorBoard, Weights & Biases and MLflow are known. Loggers that nobody has registered are passed over, with one
    line that says so.

    Args:
        logger: One of the Trainer's loggers.
        name: What the figure shows, such as ``"prune/progress"``: the same at every step.
        figure: A matplotlib figure without pyplot's state.
        step: Optimizer steps so far.

    Example:
        >>> class MyLogger(Logger):
        ...     def log_picture(self, name, figure): print("got", name)
        ...     log_metrics = log_hyperparams = name = version = None
        >>> @log_figure.register(MyLogger)
        ... def _(logger, name, figure, step):
        ...     logger.log_picture(f"{name}/{step}", figure)
        >>> log_figure(MyLogger(), "prune/progress", None, 50)
        got prune/progress/50
    """
    _say_once(type(logger))


@functools.cache
def _say_once(kind: type) -> None:
    rank_zero_info(
        f"{kind.__name__} gets no figures, as nothing is known of how it takes them. Register a function for it: "
        "`lightning_taylor_prune.callbacks.log_figure.register`."
    )


@log_figure.register(CSVLogger)
@log_figure.register(DummyLogger)
def _(logger: Logger, name: str, figure: Figure, step: int) -> None:
    """Pass over loggers of which nobody expects figures."""


@log_figure.register(TensorBoardLogger)
def _(logger: TensorBoardLogger, name: str, figure: Figure, step: int) -> None:
    logger.experiment.add_image(name, pixels(figure), step, dataformats="HWC")


@log_figure.register(WandbLogger)
def _(logger: WandbLogger, name: str, figure: Figure, step: int) -> None:
    logger.log_image(name, [pixels(figure)], step)


@log_figure.register(MLFlowLogger)
def _(logger: MLFlowLogger, name: str, figure: Figure, step: int) -> None:
    logger.experiment.log_image(logger.run_id, pixels(figure), key=name, step=step)


def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Draw a figure, needing no display: an array of bytes, ``[height, width, 3]``. It is drawn only once."""
    known: npt.NDArray[np.uint8] | None = getattr(figure, "_pixels", None)
    if known is None:
        known = _draw(figure)
        figure._pixels = known  # type: ignore[attr-defined]
    return known


def _draw(figure: Figure) -> npt.NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


@functools.singledispatch
def end_run(logger: Logger) -> None:
    """End a logger's run after a fit, so that the next fit in this process begins one of its own.

    Example:
        >>> end_run(DummyLogger())  # most loggers need nothing; Weights & Biases finishes its run
    """


@end_run.register(WandbLogger)
def _(logger: WandbLogger) -> None:
    # A new WandbLogger takes over whatever run is open in the process.
    logger.experiment.finish()
