"""How much of which networks can be pruned.

Run ``python recipes/benchmarks/coverage.py [PATTERN ...] [--again] [--markdown]``.

Every network is built, analysed, cut by half in every group, compared with its masked self, trained for a step and
exported, in a process of its own with a limit on time and memory. One JSON file per network is written to the
output folder; networks that have one are skipped, so that a run which was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = ROOT / "recipes" / "benchmarks" / "coverage.md"
GIB = 2**30
POLL_SECONDS = 0.2
PATIENCE = 5  # limits count seconds of work; on a machine that does other things besides, they last this much longer

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process that is measured ends too
    from recipes.benchmarks.coverage_models import matching, registry

    names = matching(list(registry()), options.patterns)
    if options.list:
        print("\n".join(names))
        return 0
    if not names:
        sys.exit(f"error: no network matches {' '.join(options.patterns)}; --list shows all")
    options.libraries = [lib for lib in ("timm", "transformers") if any(name.startswith(f"{lib}/") for name in names)]
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    records = run_all(names, options, console)
    console.print(as_table(records))
    console.print(summary(records))
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(records), encoding="utf-8")
    return 1 if any(is_bad(r) for r in records) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a name, or a shell pattern")
    parser.add_argument("--out", type=Path, default=Path("outputs/coverage"), help="folder of the JSON files")
    parser.add_argument("--again", action="store_true", help="also run networks that have a JSON file")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds of work a network may take")
    parser.add_argument("--memory-limit", type=float, default=14, help="GiB of memory a network may take")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process that is measured")
    parser.add_argument("--markdown", type=Path, nargs="?", const=MARKDOWN, help="write the table, here by default")
    parser.add_argument("--list", action="store_true", help="only show the names")
    return parser.parse_args(argv)


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
        json.dump(record, file, indent=1)
    os.replace(file.name, path)


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


# --- the table -----------------------------------------------------------------------------------------------------

HEADINGS = (
    "model",
    "status",
    "operators without a rule",
    "groups",
    "prunable %",
    "locked %",
    "find_groups s",
    "cut s",
    "params before",
    "after %",
    "MACs before",
    "after %",
    "masked error",
    "trained",
    "export",
)


def is_bad(record: Mapping[str, Any]) -> bool:
    """Whether a network ended in another way than it should."""
    expected = "refused" if record.get("expected_refusal") else "ok"
    return bool(record["status"] != expected)


def cells(record: Mapping[str, Any]) -> list[str]:
    """Return a network's row as text."""
    shares, seconds = record.get("shares", {}), record.get("seconds", {})
    cut = [seconds[key] for key in ("cut", "cut_rest") if key in seconds]
    error = record.get("masked_error")
    return [
        record["name"],
        record["status"],
        " ".join(record.get("operators_without_rule", {})) or ("-" if "groups" in record else ""),
        f"{record['groups']} ({record['exact_groups']} exact)" if "groups" in record else "",
        f"{100 * shares['prunable']:.1f}" if shares else "",
        f"{100 * shares['locked']:.1f}" if shares else "",
        f"{seconds['find_groups']:.1f}" if "find_groups" in seconds else "",
        f"{sum(cut):.1f}" if cut else "",
        *_shrinkage(record, "params"),
        *_shrinkage(record, "macs"),
        "" if error is None else f"{error:.0e}",
        "yes" if "forward_trained" in seconds else "",
        record.get("export", ""),
    ]


def _shrinkage(record: Mapping[str, Any], cost: str) -> list[str]:
    before, after = record.get(f"{cost}_before"), record.get(f"{cost}_after")
    return [
        "" if before is None else f"{before / 1e6:.2f} M",
        f"{100 * after / before:.0f}" if before and after is not None else "",
    ]


def one_line(record: Mapping[str, Any]) -> str:
    """Return the most important figures."""
    row = cells(record)
    text = f"{row[0]}: {row[1]}, {record.get('total_seconds', 0):.0f} s"
    if row[4]:
        text += f", {row[4]} % prunable, {row[5]} % locked, error {row[12] or '-'}, export {row[14] or '-'}"
    return text + (f"\n    {record['error']}" if "error" in record else "")


def as_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Lay the records out for the terminal."""
    table = Table(title="Coverage", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("model", "status", "export") else "right")
    for record in records:
        table.add_row(*cells(record), style="red" if is_bad(record) else None)
    return table


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures that the project promises."""
    bad = [r for r in records if is_bad(r)]
    locked = [r for r in records if r.get("shares", {}).get("locked", 0) > 0.2]
    slowest = max((r.get("seconds", {}).get("find_groups", 0) for r in records), default=0)
    worst = max((r["masked_error"] for r in records if "masked_error" in r), default=0)
    return (
        f"{len(records)} networks; {len(bad)} not as they should be; more than 20 % locked in {len(locked)}; "
        f"find_groups {slowest:.1f} s at most; largest masked error {worst:.1g}"
    )


def as_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, what is not as it should be, and why parameters are locked, as Markdown."""
    found: Mapping[str, str] = next((r["versions"] for r in records if "versions" in r), {})
    lines = [
        "# Coverage",
        "",
        f"`python recipes/benchmarks/coverage.py --markdown`, {datetime.date.today().isoformat()}; Python "
        f"{platform.python_version()}, " + ", ".join(f"{name} {version}" for name, version in found.items()) + ".",
        "",
        f"{summary(records)}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(cells(record)) + " |" for record in records),
        "",
        *_findings(records),
    ]
    return "\n".join(lines) + "\n"


def _findings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## What went wrong", ""]
    lines += [f"- `{r['name']}`: {r['status']}: {r.get('error', '')}" for r in records if r["status"] != "ok"]
    lines += ["", "## Traced in parts", ""]
    lines += ["These depend on the values of tensors; what goes from one part to another keeps its width.", ""]
    lines += [f"- `{r['name']}`: {', '.join(r['parts'])}" for r in records if any(r.get("parts", ()))]
    lines += ["", "## Why parameters are locked", ""]
    for record in records:
        reasons = list(record.get("locked_parameters", {}).items())
        total = record.get("params_before", 0)
        if reasons and total:
            lines.append(
                f"- `{record['name']}`: " + "; ".join(f"{100 * n / total:.1f} % {why}" for why, n in reasons[:4])
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
