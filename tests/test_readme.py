"""The README's Python snippets run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SNIPPETS = re.findall(r"```python\n(import .*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
"""Those that stand by themselves; the others are lines to put into a program of one's own."""


@pytest.mark.parametrize(
    ("number", "last_line"),
    [(0, "72"), (1, "24"), (2, "[64, 64] None"), (3, "Cost("), (4, "takes "), (5, "6 6 gains 6")],
    ids=[
        "callback in a Trainer",
        "a target",
        "a loop of your own",
        "the parts by themselves",
        "latency",
        "your own operators and modules",
    ],
)
def test_snippet_runs(
    number: int, last_line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(compile(SNIPPETS[number], f"README.md, snippet {number}", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(last_line)
