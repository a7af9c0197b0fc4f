"""The page of an inspection: complete, escaped, self-contained; in a browser on a phone and a desk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page
from torch import Tensor, nn

from lightning_taylor_prune import Inspection, inspect
from lightning_taylor_prune.report.inspection_page import write_inspection
from tests.report.test_page import Reader


class Deep(nn.Module):
    """Sixty layers in blocks, with a name that would break a page which takes it literally."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({f"<b>{n}": nn.Sequential(*_layers()) for n in range(15)})
        self.fixed = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = x + block(x)
        result: Tensor = self.head(self.fixed(x).cumsum(1))
        return result


def _layers() -> list[nn.Module]:
    return [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8)]


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(Deep(), torch.zeros(2, 8))


@pytest.fixture(scope="module")
def path(found: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspection(found, tmp_path_factory.mktemp("page") / "new" / "groups.html")


@pytest.fixture(scope="module")
def reader(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_all_groups_and_locks_are_told(reader: Reader, found: Inspection) -> None:
    assert all(group.name in reader.text for group in found.groups)
    assert all(lock.reason in reader.text and lock.code in reader.text for lock in found.locked)


def test_nothing_points_outside(reader: Reader) -> None:
    values = [attributes.get(key) or "" for _, attributes in reader.elements for key in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in values if value)


def test_names_are_escaped(reader: Reader) -> None:
    assert "blocks.<b>0.0" in reader.text and not reader.attributes("b") and not reader.attributes("script")


def test_many_operators_are_folded_and_all_of_them_are_shown_on_demand(reader: Reader) -> None:
    labels = [a.get("aria-label") or "" for a in reader.attributes("svg") if a.get("class") == "drawing"]
    rows = reader.attributes("circle")
    assert len(labels) == 2 and len(rows) > 2 * 20 and len(reader.attributes("details")) == 1


def test_network_without_groups_has_a_page(tmp_path: Path) -> None:
    page = write_inspection(inspect(nn.Linear(4, 3), torch.zeros(1, 4)), tmp_path / "groups.html")
    assert "nothing can be removed" in page.read_text(encoding="utf-8")


@pytest.fixture(params=[(390, "light"), (1300, "dark")], ids=str)
def opened(request: pytest.FixtureRequest, browser: Browser, path: Path) -> Iterator[Page]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    yield page
    context.close()


@pytest.mark.browser
def test_page_does_not_scroll_sideways(opened: Page) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


@pytest.mark.browser
def test_texts_of_the_drawing_lie_inside_of_it(opened: Page) -> None:
    outside = opened.evaluate(
        """() => [...document.querySelectorAll('.drawing')].flatMap(drawing => {
            const box = drawing.getBoundingClientRect();
            return [...drawing.querySelectorAll('text')].filter(text => {
                const own = text.getBoundingClientRect();
                return own.left < box.left || own.right > box.right + 1;
            }).map(text => text.textContent);
        })"""
    )
    assert outside == []


@pytest.mark.browser
def test_pointing_at_a_part_dims_the_others(opened: Page) -> None:
    opened.hover(".part.g1 >> nth=0")
    opened.wait_for_timeout(300)
    opacity = "element => getComputedStyle(element).opacity"
    assert opened.locator(".part.g1").first.evaluate(opacity) == "1"
    assert float(opened.locator(".part.g2").first.evaluate(opacity)) < 0.5


@pytest.mark.browser
def test_parts_are_coloured(opened: Page) -> None:
    fills = opened.evaluate("[...document.querySelectorAll('.part')].map(part => getComputedStyle(part).fill)")
    assert len(set(fills)) >= 8 and "rgb(0, 0, 0)" not in fills
