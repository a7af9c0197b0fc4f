"""The page in headless Chromium: on a phone and a desk, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@dataclass
class Opened:
    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=[(390, "light"), (390, "dark"), (1200, "light"), (1200, "dark")], ids=str)
def opened(request: pytest.FixtureRequest, browser: Browser, page: Path) -> Iterator[Opened]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.messages.append(message.text))
    opened.page.on("pageerror", lambda error: opened.messages.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(page.as_uri())
    opened.page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    yield opened
    context.close()


def test_console_stays_silent(opened: Opened) -> None:
    assert opened.messages == []


def test_nothing_but_the_file_itself_is_read(opened: Opened, page: Path) -> None:
    assert {url for url in opened.requests if not url.startswith("data:")} == {page.as_uri()}


def test_page_does_not_scroll_sideways(opened: Opened) -> None:
    assert opened.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_every_image_is_drawn_and_told(opened: Opened) -> None:
    images = opened.page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth > 300, i.alt.length > 40])"
    )
    assert len(images) == 6 and all(map(all, images))


def test_figures_fill_their_card(opened: Opened) -> None:
    """Text in a figure is as large as meant only if the figure is drawn at about the width that it is meant for."""
    shares = opened.page.evaluate("[...document.images].map(i => i.width / i.closest('section').clientWidth)")
    assert min(shares) > 0.6 and max(shares) <= 1


def test_figures_follow_the_colour_scheme(opened: Opened) -> None:
    paper = """image => {
        const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
        canvas.getContext('2d').drawImage(image, 0, 0);
        return canvas.getContext('2d').getImageData(0, 0, 1, 1).data.slice(0, 3).join(', ');
    }"""
    cards = opened.page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    papers = {image.evaluate(paper) for image in opened.page.query_selector_all("img")}
    assert papers == {cards.removeprefix("rgb(").removesuffix(")")}


def test_outline_has_one_title_and_a_heading_for_each_section(opened: Opened) -> None:
    titles = opened.page.locator("h1").all_inner_texts()
    sections, headings = (
        opened.page.locator("main > section").count(),
        opened.page.locator("main > section > h2").count(),
    )
    assert titles == ["<Pruned> & tested"] and sections == headings == 8


def test_links_of_the_page_lead_somewhere(opened: Opened) -> None:
    broken = "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href')))"
    assert opened.page.evaluate(f"{broken}.length") == 0
