"""The drawing as SVG: well formed, escaped, every part where it belongs."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from lightning_taylor_prune.report.drawing import NO_GROUP, Box, Part
from lightning_taylor_prune.report.drawing_rows import single_rows
from lightning_taylor_prune.report.drawing_svg import COLOURS, Look, looks_of, svg

HOSTILE = '<b> & "quoted"'
BOXES = [
    Box("", "input", (), ()),
    Box(HOSTILE, "linear", (Part(0, 30), Part(NO_GROUP, 10, f"because {HOSTILE}"), Part(NO_GROUP, 2)), (0,)),
    Box("head", "linear", (Part(1, 16),), (1,)),
    Box("", "add", (Part(0, 16),), (1, 2)),
]
LOOKS = (Look("first", "c0"), Look(HOSTILE, "c1"))


@pytest.fixture(scope="module")
def drawing() -> ElementTree.Element:
    return ElementTree.fromstring(svg(single_rows(BOXES), LOOKS, f"Shows {HOSTILE}"))


def parts(drawing: ElementTree.Element) -> list[ElementTree.Element]:
    return drawing.findall(".//rect")


def test_parts_have_the_class_of_their_group(drawing: ElementTree.Element) -> None:
    assert [part.get("class") for part in parts(drawing)] == [
        "part g0 c0",
        "part locked",
        "part none",
        "part g1 c1",
        "part g0 c0",
    ]


def test_parts_share_the_bar_by_channels(drawing: ElementTree.Element) -> None:
    first, second, *_ = (float(part.get("width", "")) for part in parts(drawing))
    assert first / second == pytest.approx(3, rel=0.01)


def test_bars_are_as_long_as_the_root_of_the_channels(drawing: ElementTree.Element) -> None:
    *first, second, _ = (float(part.get("width", "")) for part in parts(drawing))
    assert sum(first) / second == pytest.approx((42 / 16) ** 0.5, rel=0.01)


def test_reason_is_shown_when_pointed_at(drawing: ElementTree.Element) -> None:
    assert f"locked: because {HOSTILE}" in (parts(drawing)[1].findtext("title") or "")


def test_names_are_shown(drawing: ElementTree.Element) -> None:
    assert [text.text for text in drawing.findall(".//text[@class='name']")] == ["input", HOSTILE, "head", "add"]


def test_shortcut_and_chain_are_drawn(drawing: ElementTree.Element) -> None:
    assert len(drawing.findall("path")) == 4  # three steps of the chain, one shortcut


def test_everything_lies_inside(drawing: ElementTree.Element) -> None:
    width = float(drawing.get("width", ""))
    assert all(0 <= float(p.get("x", "")) <= width - float(p.get("width", "")) for p in parts(drawing))


def test_long_name_keeps_its_end() -> None:
    found = ElementTree.fromstring(svg(single_rows([Box("deep." * 20 + "conv", "linear", (), ())]), (), ""))
    text = found.findtext(".//text[@class='name']") or ""
    assert text.startswith("…") and text.endswith("deep.conv") and len(text) < 45


def test_neighbours_differ_in_colour() -> None:
    """Group 0 runs through everything, as a residual stream does; group 8 would get its colour in turn."""
    boxes = [Box(f"b{g}", "linear", (Part(0, 4), Part(g, 4)), ()) for g in range(1, COLOURS + 2)]
    looks = looks_of(single_rows(boxes), [str(g) for g in range(COLOURS + 2)])
    assert all(look.colour != looks[0].colour for look in looks[1:COLOURS])
    assert [look.name for look in looks] == [str(g) for g in range(COLOURS + 2)]


def test_long_words_widen_the_drawing() -> None:
    def width(kind: str) -> float:
        row = single_rows([Box("a", kind, (Part(NO_GROUP, 4),), ())])
        return float(ElementTree.fromstring(svg(row, (), "")).get("width", ""))

    assert width("conv " * 12) > width("conv")
