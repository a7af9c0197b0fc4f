"""A report on disk, and a browser to open it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from lightning_taylor_prune.report import Results
from lightning_taylor_prune.report.page import write_report
from tests.report.examples import example

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")
HOSTILE = ("<script>alert(1)</script>", "a & b", 'quo"te', "$\\broken$ " + "verylongname" * 9)


@pytest.fixture(scope="session")
def results() -> Results:
    """Results whose names would break a page or a figure that takes them literally."""
    layers = {"features.0": 16, "features.stage.block." + "deep" * 12 + ".conv": 32, "features.<b>": 8}
    return example(HOSTILE, layers, prunes=3, examples=50, title="<Pruned> & tested")


@pytest.fixture(scope="session")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("run") / "report")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium of this machine, or else that of ``playwright install chromium``."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        except Error as error:
            pytest.fail(f"Chromium did not start: install it, or leave these tests out: -m 'not browser'. {error}")
        yield browser
        browser.close()
