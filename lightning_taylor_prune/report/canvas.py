"""What all figures share: matplotlib without pyplot, light and dark, wide and narrow. The only room that imports it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_taylor_prune.errors import missing_package

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
except ImportError as error:
    raise missing_package("The figures of a report need", "matplotlib", "lightning-taylor-prune[report]") from error

__all__ = [
    "DARK",
    "LIGHT",
    "Axes",
    "Colormap",
    "Figure",
    "LinearSegmentedColormap",
    "MaxNLocator",
    "Normalize",
    "Palette",
    "PowerNorm",
    "StrMethodFormatter",
    "Style",
    "png_bytes",
    "rc_context",
    "save_png",
    "shorten",
    "tidy",
]


@dataclass(frozen=True)
class Palette:
    """Colours that can be told apart with every common colour blindness, after Okabe and Ito.

    Attributes:
        paper: Background.
        ink: Text.
        rule: Lines in the background.
        before: The original network: areas and bars.
        after: The pruned network.
        accent: What stands out from both.
    """

    paper: str
    ink: str
    rule: str
    before: str
    after: str
    accent: str


LIGHT = Palette(paper="#FFFFFF", ink="#24292F", rule="#A3A9B0", before="#A6CEE3", after="#0072B2", accent="#C94F00")
DARK = Palette(paper="#1C2128", ink="#DDE2E8", rule="#6B747E", before="#3F6F91", after="#6CC0F5", accent="#F0A03C")


@dataclass(frozen=True)
class Style:
    """How a figure looks.

    Attributes:
        palette: Its colours.
        width: Width in inches; below 5 it is laid out for a phone.
        dpi: Pixels per inch.
    """

    palette: Palette = LIGHT
    width: float = 8.0
    dpi: int = 100

    @property
    def narrow(self) -> bool:
        """Whether the figure is for a phone."""
        return self.width < 5

    @property
    def rc(self) -> Any:
        """Settings of matplotlib, for :func:`rc_context`; names with a dollar sign are no formulas."""
        ink, paper = self.palette.ink, self.palette.paper
        size = 8.5 if self.narrow else 10.0
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(inked, ink),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
            "font.size": size,
            "figure.titlesize": size + 1,
            "axes.titlesize": size,
            "legend.fontsize": size - 1,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,
        }

    def figure(self, height: float, square: bool = False) -> Figure:
        """Return an empty figure of this width and ``height`` inches; ``square`` if its axes keep their shape."""
        size = (self.width, height)
        return Figure(size, dpi=self.dpi, layout="compressed" if square else "constrained")


def tidy(axes: Axes, style: Style, ylabel: str = "") -> None:
    """Label an axes, and colour the ticks that are only made when it is drawn."""
    axes.set_ylabel(ylabel)
    axes.tick_params(colors=style.palette.ink)


def shorten(name: str, limit: int) -> str:
    """Replace the middle of a long name by an ellipsis.

    Example:
        >>> shorten("features.denseblock4.conv2", 15)
        'feature…4.conv2'
    """
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2]}…{name[len(name) - (limit - limit // 2 - 1) :]}"


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, needing no display."""
    path.write_bytes(png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """Draw a figure as PNG, needing no display."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
