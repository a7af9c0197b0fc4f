"""A figure four times over: light and dark, for wide screens and for phones, as data URIs.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass

from lightning_taylor_prune.report.canvas import DARK, LIGHT, Figure, Palette, Style, png_bytes

WIDE, PHONE = 8.0, 3.75  # inches
WIDE_DPI, PHONE_DPI = 160, 225  # about two pixels of the figure to one of a page
PIXELS_PER_INCH = 98  # of a page, for text of 10 points to be as large as the page's own
PHONE_SCREENS = "(max-width: 600px)"
DARK_SCREENS = "(prefers-color-scheme: dark)"


@dataclass(frozen=True)
class Rendering:
    """One PNG, and the screens that it is for (all, if ``media`` is empty)."""

    media: str
    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        return struct.unpack(">II", self.png[16:24])

    @property
    def uri(self) -> str:
        """The PNG as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: File name without extension.
        alt: What it shows, in words, for those who do not see it.
        caption: What stands below it.
        renderings: The most particular screens first; the last is for all others.
    """

    name: str
    alt: str
    caption: str
    renderings: tuple[Rendering, ...]

    @property
    def main(self) -> Rendering:
        """The wide, light one."""
        return self.renderings[-1]

    @property
    def width(self) -> int:
        """Largest width on the page in CSS pixels, at which its text is as large as that of the page."""
        return round(self.main.size[0] / WIDE_DPI * PIXELS_PER_INCH)


def picture(name: str, alt: str, caption: str, draw: Callable[[Style], Figure]) -> Picture:
    """Draw a figure for every kind of screen."""

    def render(media: str, palette: Palette, width: float, dpi: int) -> Rendering:
        return Rendering(media, png_bytes(draw(Style(palette, width, dpi))))

    return Picture(
        name,
        alt,
        caption,
        (
            render(f"{DARK_SCREENS} and {PHONE_SCREENS}", DARK, PHONE, PHONE_DPI),
            render(DARK_SCREENS, DARK, WIDE, WIDE_DPI),
            render(PHONE_SCREENS, LIGHT, PHONE, PHONE_DPI),
            render("", LIGHT, WIDE, WIDE_DPI),
        ),
    )
