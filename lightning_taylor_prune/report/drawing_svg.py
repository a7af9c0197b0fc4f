"""Draw rows and lanes as SVG; colours come from the page's style sheet, so that it follows light and dark."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from lightning_taylor_prune.report.drawing import NO_GROUP, TIMES, Box, Part
from lightning_taylor_prune.report.drawing_rows import Lane, Row, lanes_of
from lightning_taylor_prune.report.words import MINUS, plural

ROW, LANE, MARGIN = 36, 9, 12  # pixels: height of a row, distance of lanes, space around
BAR, BAR_HEIGHT, LETTER = 160, 12, 6.7  # longest bar, its height, width of a letter of a name
NAME_LETTERS = 42
COLOURS = 8
"""Number of colours in the style sheet."""

SYMBOLS = {"add": "+", "multiply": TIMES, "concat": "\N{PARALLEL TO}", "subtract": MINUS}


class Look(NamedTuple):
    """How a group is drawn: its name, and the class of its colour in the style sheet."""

    name: str
    colour: str


def looks_of(rows: Sequence[Row], names: Sequence[str]) -> tuple[Look, ...]:
    """Give every group a colour: in turn, but groups of one row or two neighbours differ, as far as colours suffice.

    Args:
        rows: The rows of the drawing that people see first.
        names: Names of the groups, by number.
    """
    members = [{part.group for box in row.boxes for part in box.parts if part.group != NO_GROUP} for row in rows]
    near: list[set[int]] = [set() for _ in names]
    for above, own in zip([set(), *members], members, strict=False):
        for group in above | own:
            near[group] |= above | own
    colours: list[int] = []
    for group in range(len(names)):
        taken = Counter(colours[other] for other in near[group] if other < group)
        turns = [(group + turn) % COLOURS for turn in range(COLOURS)]
        colours.append(min(turns, key=taken.__getitem__))
    return tuple(Look(name, f"c{number}") for name, number in zip(names, colours, strict=True))


def svg(rows: Sequence[Row], looks: Sequence[Look], label: str) -> str:
    """Return the drawing as an ``<svg>`` element.

    Args:
        rows: From the input down to the output.
        looks: How groups are drawn, by number.
        label: What it shows, for those who do not see it.
    """
    lanes = lanes_of(rows)
    spine = MARGIN + 6 + LANE * (1 + max((lane.place for lane in lanes), default=-1))
    scale = _scale(rows)
    width = math.ceil(max(spine + 18 + LETTER * NAME_LETTERS, *(_right_end(row, spine, scale) for row in rows)))
    height = ROW * len(rows) + MARGIN
    body = [
        *(_lane(lane, spine) for lane in lanes),
        *(_chain(number, spine) for number, row in enumerate(rows) if number and number - 1 in row.inputs),
        *(_row(number, row, looks, spine, scale) for number, row in enumerate(rows)),
    ]
    return (
        f'<svg class="drawing" role="img" aria-label="{escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n' + "\n".join(body) + "\n</svg>"
    )


def _middle(number: int) -> float:
    return MARGIN / 2 + ROW * number + ROW / 2


def _chain(number: int, spine: float) -> str:
    """Draw the line from the row above."""
    return f'<path class="edge" d="M{spine} {_middle(number - 1)}V{_middle(number)}"/>'


def _lane(lane: Lane, spine: float) -> str:
    """Draw a shortcut: to the left, down, and back to every row that reads it."""
    x, top = spine - 10 - LANE * lane.place, _middle(lane.start) + 5
    ends = "".join(f"M{x} {_middle(end) - 13}Q{x} {_middle(end) - 5} {spine} {_middle(end) - 5}" for end in lane.ends)
    down = f"M{spine} {top}Q{x} {top} {x} {top + 8}V{_middle(lane.ends[-1]) - 13}"
    return f'<path class="edge" d="{down}{ends}"/>'


def _row(number: int, row: Row, looks: Sequence[Look], spine: float, scale: float) -> str:
    y, x = _middle(number), spine + 14
    boxes = row.boxes
    symbol = SYMBOLS.get(boxes[0].kind, "") if len(boxes) == 1 else ""
    name = row.name or boxes[0].kind
    words = _words(row)
    bars, end = _bars(boxes, looks, x, y, scale)
    shown = name if len(name) <= NAME_LETTERS else f"…{name[1 - NAME_LETTERS :]}"
    dot = f'<circle class="dot{" join" if symbol else ""}" cx="{spine}" cy="{y}" r="{7 if symbol else 3.5}"/>'
    if symbol:
        dot += f'<text class="symbol" x="{spine}" y="{y + 4}">{symbol}</text>'
    return (
        f"<g><title>{escape(f'{name}: {words}')}</title>{dot}"
        f'<text class="name" x="{x}" y="{y - 4}">{escape(shown)}</text></g>{bars}'
        f'<text class="kind" x="{end + 6:.1f}" y="{y + 12}">{escape(words)}</text>'
    )


def _words(row: Row) -> str:
    if len(row.boxes) > 1:
        return plural(len(row.boxes), "operator")
    box = row.boxes[0]
    kind = box.kind if row.name else ""
    return ", ".join(filter(None, [kind, f"{box.channels:,}" if box.parts else ""]))


def _length(box: Box) -> float:
    """Return the length of a bar before scaling: the root of its channels, so that 16 and 2048 can both be seen."""
    return math.sqrt(box.channels)


def _scale(rows: Sequence[Row]) -> float:
    longest = max((sum(_length(box) for box in row.boxes) for row in rows), default=0.0)
    return BAR / longest if longest else 1.0


def _right_end(row: Row, spine: float, scale: float) -> float:
    """Return where the words behind a row's bars end."""
    return spine + 24 + sum(_length(box) for box in row.boxes) * scale + LETTER * len(_words(row))


def _bars(boxes: Sequence[Box], looks: Sequence[Look], x: float, y: float, scale: float) -> tuple[str, float]:
    """Draw the channels of all boxes of a row, one after another; returns where they end, too."""
    drawn, start = [], x
    for box in boxes:
        if not box.parts:
            continue
        length = max(_length(box) * scale, 1.5)
        gap = 1.5 if len(boxes) > 1 and length > 4 else 0
        at = start
        for part in box.parts:
            share = (length - gap) * part.channels / box.channels
            drawn.append(_part(part, box, looks, at, y, share))
            at += share
        start += length
    return "".join(drawn), start if drawn else x - 6


def _part(part: Part, box: Box, looks: Sequence[Look], x: float, y: float, length: float) -> str:
    where = f'x="{x:.1f}" y="{y + 2}" width="{max(length, 0.6):.1f}" height="{BAR_HEIGHT}"'
    what = f"{box.name or box.kind} ({box.kind}): {plural(part.channels, 'channel')}"
    if part.group != NO_GROUP:
        look = looks[part.group]
        return (
            f'<rect class="part g{part.group} {look.colour}" {where}>'
            f"<title>{escape(f'{what} of group {look.name}')}</title></rect>"
        )
    why = f"locked: {part.reason}" if part.reason else "not removed by itself"
    kind = "locked" if part.reason else "none"
    fill = ' fill="url(#hatch)"' if part.reason else ""
    return f'<rect class="part {kind}"{fill} {where}><title>{escape(f"{what}, {why}")}</title></rect>'
