"""Where the boxes of a drawing are: a row each, or a row for each block where they are many; lanes for shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from lightning_taylor_prune.report.drawing import Box

MOST_ROWS = 48
"""Rows that a drawing has at most, where folding its modules allows it."""


@dataclass(frozen=True)
class Row:
    """One row of a drawing.

    Attributes:
        name: Name of the module.
        boxes: The boxes in it, in the order of execution.
        inputs: Numbers of the rows that it reads.
    """

    name: str
    boxes: tuple[Box, ...]
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Lane:
    """A line beside the rows, from one row to all that read it further down.

    Attributes:
        start: Number of the row that gives.
        ends: Numbers of the rows that take, ascending; none is the next one.
        place: Its distance from the rows, counted from 0.
    """

    start: int
    ends: tuple[int, ...]
    place: int


def single_rows(boxes: Sequence[Box]) -> tuple[Row, ...]:
    """Return a row for every box."""
    return tuple(Row(box.name, (box,), box.inputs) for box in boxes)


def folded_rows(boxes: Sequence[Box], most: int = MOST_ROWS) -> tuple[Row, ...]:
    """Return a row for every box, or where these are too many, for every module, as deep as the number allows."""
    rows = single_rows(boxes)
    depth = max((box.name.count(".") for box in boxes), default=0)
    while len(rows) > most and depth > 0:
        rows = _folded(boxes, depth)
        depth -= 1
    return rows


def _folded(boxes: Sequence[Box], depth: int) -> tuple[Row, ...]:
    """Join neighbours whose names begin with the same ``depth`` parts; inputs and outputs are rows of their own."""

    def block(number: int) -> tuple[str, int]:
        box = boxes[number]
        alone = box.kind in ("input", "output") and not box.name
        return ".".join(box.name.split(".")[:depth]), number if alone else -1

    row_of: dict[int, int] = {}
    members = [(name, list(numbers)) for (name, _), numbers in groupby(range(len(boxes)), block)]
    for row, (_, numbers) in enumerate(members):
        row_of.update(dict.fromkeys(numbers, row))
    return tuple(
        Row(
            name,
            tuple(boxes[n] for n in numbers),
            tuple(sorted({row_of[i] for n in numbers for i in boxes[n].inputs} - {row})),
        )
        for row, (name, numbers) in enumerate(members)
    )


def lanes_of(rows: Sequence[Row]) -> tuple[Lane, ...]:
    """Give every row that is read further down than the next one a lane; the shortest lie nearest to the rows."""
    readers: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        for source in row.inputs:
            if source < number - 1:
                readers.setdefault(source, []).append(number)
    taken: list[list[tuple[int, int]]] = []
    lanes = []
    for start, ends in sorted(readers.items(), key=lambda item: (item[1][-1] - item[0], item[0])):
        place = next((p for p, spans in enumerate(taken) if _is_free(spans, start, ends[-1])), len(taken))
        if place == len(taken):
            taken.append([])
        taken[place].append((start, ends[-1]))
        lanes.append(Lane(start, tuple(ends), place))
    return tuple(lanes)


def _is_free(spans: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    return all(end <= low or high <= start for low, high in spans)
