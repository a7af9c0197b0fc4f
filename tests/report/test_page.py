"""The page as text: complete, escaped, self-contained; also where results are thin."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from lightning_taylor_prune.report import NetworkResult, Results
from lightning_taylor_prune.report.__main__ import main
from lightning_taylor_prune.report.page import shown, write_report
from tests.report.conftest import HOSTILE

FIGURES = {"progress", "filters", "scores", "classes", "confusion", "difference"}


class Reader(HTMLParser):
    """Collects elements, and the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        alts = [attributes.get("alt") or "" for attributes in self.attributes("img")]
        return " ".join(" ".join([*self.words, *alts]).split())


@pytest.fixture(scope="module")
def reader(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The page of results that hold no more than they must, with an accuracy that was not measured."""
    network = NetworkResult(params=10, macs=0, filters=0, accuracy=float("nan"))
    page = write_report(Results("Bare", "", (), network, network), tmp_path_factory.mktemp("bare"))
    return Reader(page.read_text(encoding="utf-8"))


def test_files_beside_the_page(page: Path) -> None:
    expected = {"report.html", "comparison.csv", "comparison.json", *(f"{name}.png" for name in FIGURES)}
    assert {path.name for path in page.parent.iterdir()} == expected


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_are_drawn(name: str, page: Path) -> None:
    assert imread(page.parent / f"{name}.png")[..., :3].std() > 0.03


@pytest.mark.parametrize("attribute", ["src", "srcset", "href"])
def test_nothing_points_outside(attribute: str, reader: Reader) -> None:
    values = [attributes[attribute] or "" for _, attributes in reader.elements if attribute in attributes]
    assert values and all(value.startswith(("data:", "#")) for value in values)


def test_names_are_escaped(reader: Reader) -> None:
    assert all(name in reader.text for name in HOSTILE) and not reader.attributes("script")


@pytest.mark.parametrize("which", ["reader", "bare"])
def test_what_is_not_known_is_not_spelled_as_code(which: str, request: pytest.FixtureRequest) -> None:
    assert not re.search(r"\b(nan|none|inf|undefined)\b", request.getfixturevalue(which).text, re.I)


def test_cells_of_tables_have_headings(reader: Reader) -> None:
    assert {heading.get("scope") for heading in reader.attributes("th")} == {"col", "row"}


def test_boxes_that_scroll_are_reached_by_keyboard_and_have_names(reader: Reader) -> None:
    boxes = [a for a in reader.attributes("div") if a.get("class") == "scroll"]
    named = [a for a in boxes if a.get("tabindex") == "0" and (a.get("aria-label") or a.get("aria-labelledby"))]
    assert boxes and boxes == named


def test_alt_texts_tell_figures_not_only_topics(reader: Reader) -> None:
    assert all(re.search(r"\d", attributes["alt"] or "") for attributes in reader.attributes("img"))


def test_worst_class_is_told_first(results: Results, reader: Reader) -> None:
    assert results.original.confusion is not None and results.pruned.confusion is not None
    drops = [
        after[i] - before[i]
        for i, (before, after) in enumerate(zip(results.original.confusion, results.pruned.confusion, strict=True))
    ]
    worst = HOSTILE[drops.index(min(drops))]
    table = reader.text.index("All classes, worst drop on top")
    assert min(HOSTILE, key=lambda name: reader.text.index(name, table)) == worst


def test_bare_results_make_a_page_without_figures(bare: Reader) -> None:
    assert "Original and pruned network" in bare.text and not bare.attributes("img")


def test_latencies_of_different_conditions_are_not_compared(results: Results, tmp_path: Path) -> None:
    assert results.pruned.latency is not None
    pruned = NetworkResult(10, 0, 0, 0.5, latency=replace(results.pruned.latency, device="another"))
    original = NetworkResult(10, 0, 0, 0.5, latency=results.original.latency)
    text = Reader(write_report(Results("", "", (), original, pruned), tmp_path).read_text(encoding="utf-8")).text
    assert "another" in text and "CPU, 2 threads" in text and "times as fast" not in text


@pytest.mark.parametrize(("length", "drawn"), [(3, 3), (25, 25), (26, 20), (1000, 20)])
def test_never_all_but_a_few_are_shown(length: int, drawn: int) -> None:
    assert len(shown(list(range(length)))) == drawn


def test_command_writes_the_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = NetworkResult(params=10, macs=5, filters=2, accuracy=0.5)
    saved = Results("Again", "", (), network, network).save(tmp_path / "results.json")
    main([str(saved), str(tmp_path / "new")])
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "new" / "report.html" and "Again" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, "[]", json.dumps({"title": "x"}), "not json"], ids=str)
def test_command_refuses_what_holds_no_results(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit, match=r"^error: .*results\.json"):
        main([str(tmp_path / "results.json")])
