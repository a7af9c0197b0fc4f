"""The networks of a coverage run, each measured in a process of its own with a limit on time and memory."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recipes.benchmarks.coverage_table import one_line

GIB = 2**30
POLL_SECONDS = 0.2
PATIENCE = 5  # limits count seconds of work; on a machine that does other things besides, they last this much longer

Record = dict[str, Any]


# --- in the child process ------------------------------------------------------------------------------------------


def work(name: str, path: str, log: str, threads: int, plugins: str) -> None:
    """Measure one network and keep its record up to date in a file; what it prints is written to another."""
    import torch

    from recipes.benchmarks.coverage_measure import measure
    from recipes.benchmarks.coverage_models import PLUGINS, registry

    # The server that this process was forked from may have been started by someone else, with other settings.
    torch.set_num_threads(threads)
    os.environ[PLUGINS] = plugins
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "wb", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    measure(registry()[name], lambda record: write(Path(path), record))


def _end_with_parent() -> None:
    """End this process when the one that started the run has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record so that a reader finds the old one or the new one, never half of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        try:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


# --- in the parent process -----------------------------------------------------------------------------------------


def run_all(names: Sequence[str], options: argparse.Namespace, console: Console) -> list[Record]:
    """Run what is not there yet, one network at a time, and return all records."""
    records = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            path = options.out / f"{name.replace('/', '.')}.json"
            if options.again or not is_finished(path):
                record = run_one(name, path, options)
                progress.console.print(one_line(record), highlight=False, markup=False)
            records.append(json.loads(path.read_text(encoding="utf-8")))
            progress.advance(task)
    return records


def is_finished(path: Path) -> bool:
    """Whether a network's record is there and its process came to an end."""
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("status") != "running"


def run_one(name: str, path: Path, options: argparse.Namespace) -> Record:
    """Measure a network in a process of its own and return its record, completed here if that process was killed."""
    path.unlink(missing_ok=True)
    log = path.with_suffix(".log")
    given = name, str(path), str(log), options.threads, os.environ.get("COVERAGE_MODELS", "")
    process = processes(options.threads, tuple(options.libraries)).Process(target=work, args=given)
    process.start()
    try:
        killed, peak, seconds = watch(process, options.time_limit, options.memory_limit * GIB)
    finally:
        process.kill()
        process.join()
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"name": name, "stage": "start"}
    record.update(peak_gib=round(peak / GIB, 2), total_seconds=round(seconds, 1), threads=options.threads)
    if killed:
        record.update(status=killed, error=f"{killed} limit reached in stage {record['stage']}")
    elif process.exitcode or record.get("status", "running") == "running":
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        said = lines[-1] if lines else ""
        record.update(status="crashed", error=f"exit status {process.exitcode} in stage {record['stage']}: {said}")
    write(path, record)
    log.unlink(missing_ok=True)
    return record


@functools.cache
def processes(threads: int, libraries: Sequence[str]) -> Any:
    """Return where processes come from: a server that has imported the libraries forks one for every network."""
    os.environ.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recipes.benchmarks.coverage_measure", *libraries])
    return context


def watch(process: Any, seconds: float, memory: float) -> tuple[str, int, float]:
    """Wait for a process; returns which limit it broke (or ``""``), its largest resident memory, and its time.

    Args:
        process: The process.
        seconds: Of work that it may take, over all its threads; it may last ``PATIENCE`` times as long.
        memory: Bytes that it may hold.
    """
    start, peak, busy = time.monotonic(), 0, 0.0
    while process.exitcode is None:
        with contextlib.suppress(psutil.Error):  # it may have just ended
            now = psutil.Process(process.pid)
            peak, busy = max(peak, now.memory_info().rss), sum(now.cpu_times()[:2])
        elapsed = time.monotonic() - start
        if peak > memory or busy > seconds or elapsed > PATIENCE * seconds:
            return "memory" if peak > memory else "time", peak, elapsed
        process.join(POLL_SECONDS)
    return "", peak, time.monotonic() - start
