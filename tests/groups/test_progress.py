"""Progress of an analysis: silent while short, then a line now and then."""

from __future__ import annotations

import logging

import pytest

from lightning_taylor_prune.groups import progress
from lightning_taylor_prune.groups.progress import Progress


@pytest.mark.parametrize(
    ("times", "lines"),
    [
        pytest.param([0, 1], 0, id="short"),
        pytest.param([0, 2.5, 3], 1, id="past two seconds"),
        pytest.param([0, 3, 6, 7, 12], 3, id="long"),
    ],
)
def test_an_analysis_says_what_it_does_once_it_takes_long(
    times: list[float], lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter(times)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO, logger="lightning_taylor_prune"):
        noted = Progress()
        for _ in times[1:]:
            noted.note("trying cuts")
    assert len(caplog.records) == lines
