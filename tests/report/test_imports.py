"""The optional libraries stay out until a figure or a page is wanted; without them the message says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import lightning, torch, torchmetrics  # import matplotlib themselves where it is installed
for name in list(sys.modules):
    if name.partition(".")[0] in ("matplotlib", "jinja2"):
        del sys.modules[name]
sys.modules["matplotlib"] = sys.modules["jinja2"] = None  # as if it were not installed
import lightning_taylor_prune.report
print("imported")
for module in ("figures", "class_figures", "page"):
    if module == "page":
        del sys.modules["matplotlib"]
    try:
        __import__(f"lightning_taylor_prune.report.{module}")
    except ImportError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """What a fresh interpreter without the optional libraries prints."""
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()


def test_package_and_results_need_neither(lines: list[str]) -> None:
    assert lines[0] == "imported"


@pytest.mark.parametrize(("line", "missing"), [(1, "matplotlib"), (2, "matplotlib"), (3, "jinja2")])
def test_missing_library_is_named_with_what_to_install(line: int, missing: str, lines: list[str]) -> None:
    assert missing in lines[line] and lines[line].endswith("pip install lightning-taylor-prune[report]")
