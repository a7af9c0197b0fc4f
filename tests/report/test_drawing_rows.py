"""Rows and lanes of a drawing."""

from __future__ import annotations

import pytest

from lightning_taylor_prune.report.drawing import Box
from lightning_taylor_prune.report.drawing_rows import Lane, Row, folded_rows, lanes_of, single_rows


def chain(names: list[str]) -> list[Box]:
    return [
        Box("", "input", (), ()),
        *(Box(name, "linear", (), (number,)) for number, name in enumerate(names)),
        Box("", "output", (), (len(names),)),
    ]


BLOCKS = [f"stage.{block}.{layer}" for block in range(3) for layer in range(4)]


@pytest.mark.parametrize(
    ("most", "names"),
    [
        (14, ["", *BLOCKS, ""]),
        (13, ["", "stage.0", "stage.1", "stage.2", ""]),
        (4, ["", "stage", ""]),
        (1, ["", "stage", ""]),
    ],
    ids=["all fit", "blocks", "stages", "no deeper"],
)
def test_too_many_boxes_are_folded_by_module(most: int, names: list[str]) -> None:
    assert [row.name for row in folded_rows(chain(BLOCKS), most)] == names


def test_folded_rows_read_rows() -> None:
    assert [row.inputs for row in folded_rows(chain(BLOCKS), 5)] == [(), (0,), (1,), (2,), (3,)]


def test_every_box_is_in_one_row() -> None:
    boxes = chain(BLOCKS)
    assert [box for row in folded_rows(boxes, 5) for box in row.boxes] == boxes


def rows(inputs: list[tuple[int, ...]]) -> list[Row]:
    return [Row(str(number), (), sources) for number, sources in enumerate(inputs)]


@pytest.mark.parametrize(
    ("inputs", "lanes"),
    [
        ([(), (0,), (1,)], []),
        ([(), (0,), (0, 1)], [Lane(0, (2,), 0)]),
        ([(), (0,), (0, 1), (2,), (2, 3)], [Lane(0, (2,), 0), Lane(2, (4,), 0)]),
        ([(), (0,), (1,), (1, 2), (0, 3)], [Lane(1, (3,), 0), Lane(0, (4,), 1)]),
        ([(), (0,), (0, 1), (0, 2)], [Lane(0, (2, 3), 0)]),
    ],
    ids=["chain", "shortcut", "two blocks", "nested", "read twice"],
)
def test_lanes(inputs: list[tuple[int, ...]], lanes: list[Lane]) -> None:
    assert list(lanes_of(rows(inputs))) == lanes


def test_single_rows_keep_everything_apart() -> None:
    boxes = chain(["a.b", "a.c"])
    assert [row.boxes for row in single_rows(boxes)] == [(box,) for box in boxes]
