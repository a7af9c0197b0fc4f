"""The processes of a coverage run: their limits, what is run again, and their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from recipes.benchmarks.coverage_models import PLUGINS
from tests.recipes.benchmarks import networks
from tests.recipes.benchmarks.records import record_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        pytest.param(["--time-limit", "0.5"], "time", id="time"),
        pytest.param(["--memory-limit", "0.01"], "memory", id="memory"),
    ],
)
def test_limits_end_a_network(run: Callable[..., int], tmp_path: Path, limits: list[str], status: str) -> None:
    run(tmp_path, "stuck/endless", *limits)
    record = record_of(tmp_path, "stuck/endless")
    assert record["status"] == status and record["error"].startswith(f"{status} limit reached in stage")


@pytest.mark.parametrize(
    ("earlier", "arguments", "measured"),
    [
        pytest.param("ok", [], False, id="done"),
        pytest.param("broken", [], False, id="done badly"),
        pytest.param("running", [], True, id="interrupted"),
        pytest.param("ok", ["--again"], True, id="again"),
    ],
)
def test_resume(run: Callable[..., int], tmp_path: Path, earlier: str, arguments: list[str], measured: bool) -> None:
    (tmp_path / "tiny.unbuildable.json").write_text(json.dumps({"name": "tiny/unbuildable", "status": earlier}))
    run(tmp_path, "tiny/unbuildable", *arguments)
    assert ("no such network" in record_of(tmp_path, "tiny/unbuildable").get("error", "")) == measured


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_no_process_outlives_the_run(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "recipes/benchmarks/coverage.py", "stuck/endless", "--out", str(tmp_path)]
    driver = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, PLUGINS: networks.__name__}, stdout=subprocess.DEVNULL
    )
    while not (tmp_path / "stuck.endless.json").exists():
        assert driver.poll() is None
        time.sleep(0.1)
    others = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(how)
    assert len(others) >= 2 and not psutil.wait_procs(others, timeout=60)[1]
