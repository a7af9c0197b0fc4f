"""Measure every client that is installed: ``python -m tests.clients.table [PATTERN ...]`` writes the table.

One JSON file per client is kept in ``outputs/clients``; clients that have one are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes.benchmarks.coverage_messages import shorten
from tests.clients.clients import CLIENTS
from tests.clients.runs import Run, built, fit, loss, masked_error, reloaded, run, same_state
from tests.clients.training import Client

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN, RECORDS = ROOT / "recipes" / "benchmarks" / "clients.md", ROOT / "outputs" / "clients"
HEADINGS = (
    "client",
    "version",
    "status",
    "params",
    "locked %",
    "analysis s",
    "prunes",
    "masked error",
    "resumed equal",
)
Record = dict[str, Any]


def measure(name: str, client: Client) -> Record:
    """Try the laws one after the other; the status is the first that fails, with its error."""
    record: Record = {"client": name, "status": "without the callback"}
    try:
        record["version"] = importlib.metadata.version(client.package)
        plain = built(client)
        record["params"] = sum(p.numel() for p in plain.module.parameters())
        fit(plain, epochs=1)
        with tempfile.TemporaryDirectory() as folder:
            _laws(client, Path(folder), record)
        record["status"] = "ok"
    except Exception as error:  # whatever happens to one client is a finding, and the others continue
        record["error"] = f"{type(error).__name__}: {error}"[:500]
    return record


def _laws(client: Client, folder: Path, record: Record) -> None:
    record["status"] = "fit"
    ran = run(client, folder)
    record.update(prunes=len(ran.callback.history), seconds=round(ran.callback.seconds, 1), **_locked(ran))
    record["status"] = "reload"
    fresh = reloaded(client, ran.last)
    assert same_state(fresh.module, ran.module) and loss(fresh).isfinite(), "the reloaded module differs"
    if ran.callback.groups is not None:
        record["status"] = "mask"
        record["masked_error"] = error = masked_error(client, ran)
        assert error < 1e-3, f"pruned and masked loss differ by {error:.1g}"
    record["status"] = "resume"
    record["resumed"] = same_state(run(client, folder / "resumed", ran.mid).module, ran.module)
    assert record["resumed"], "the resumed run ends elsewhere"


def _locked(ran: Run) -> Record:
    """Return the share of the parameters that no unit touches, and the reasons for most locked channels."""
    if ran.callback.groups is None:
        return {"locked": 1.0, "reasons": [shorten(str(ran.callback.stop_reason))]}
    groups = ran.callback.groups.unpruned()
    longest = sorted(groups.locked, key=lambda entry: -entry.num_channels)
    reasons = [f"{entry.name} ({entry.num_channels} channels) {shorten(entry.reason)}" for entry in longest]
    return {"locked": groups.locked_share, "reasons": reasons[:3]}


def as_markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, what went wrong, and why parameters are locked."""
    bad, much = [r for r in records if r["status"] != "ok"], [r for r in records if r.get("locked", 0) > 0.2]
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("torch", "lightning", "lightning-taylor-prune")
    )
    slowest = max((r.get("seconds", 0) for r in records), default=0)
    return "\n".join(
        [
            "# Clients",
            "",
            f"`python -m tests.clients.table`, {datetime.date.today().isoformat()}, one CPU thread; "
            f"Python {platform.python_version()}, {versions}.",
            "",
            "Each client is built tiny with random weights and trained for nine steps on made data with "
            "`TaylorPruningCallback(every_n_steps=2, filters_per_prune=4, max_prunes=3)`; its weights are loaded into "
            "a fresh module, a further cut is compared with a mask, and the run is resumed from the third step. "
            "Locked are parameters in tensors that no unit touches.",
            "",
            f"{len(records)} clients; {len(bad)} not as they should be; more than 20 % locked in {len(much)}; "
            f"analysis {slowest:.1f} s at most.",
            "",
            "| " + " | ".join(HEADINGS) + " |",
            "|" + "---|" * len(HEADINGS),
            *("| " + " | ".join(_cells(r)) + " |" for r in records),
            "",
            "## What went wrong",
            "",
            *(f"- `{r['client']}`: {r['status']}: {r.get('error', '')}" for r in bad),
            "",
            "## Why parameters are locked",
            "",
            *(f"- `{r['client']}`: " + "; ".join(_reasons(r)) for r in records if _reasons(r)),
            "",
        ]
    )


def _reasons(record: Mapping[str, Any]) -> list[str]:
    remark = CLIENTS[record["client"]].remark
    return [*record.get("reasons", ()), *([remark] if remark else ())]


def _cells(record: Mapping[str, Any]) -> list[str]:
    error = record.get("masked_error")
    return [
        record["client"],
        record.get("version", ""),
        record["status"],
        f"{record['params']:,}" if "params" in record else "",
        f"{100 * record['locked']:.1f}" if "locked" in record else "",
        f"{record['seconds']:.1f}" if "seconds" in record else "",
        str(record.get("prunes", "")),
        "" if error is None else f"{error:.0e}",
        {True: "yes", False: "no"}.get(record.get("resumed"), ""),  # type: ignore[call-overload]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a name")
    patterns = parser.parse_args(argv).patterns
    torch.set_num_threads(1)
    for logger in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    RECORDS.mkdir(parents=True, exist_ok=True)
    files = {name: RECORDS / f"{name.replace('/', '_')}.json" for name in CLIENTS}
    for name, file in files.items():
        if (not patterns and not file.exists()) or any(pattern in name for pattern in patterns):
            file.write_text(json.dumps(measure(name, CLIENTS[name])), encoding="utf-8")
            print(file.read_text(encoding="utf-8"), flush=True)
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files.values() if file.exists()]
    MARKDOWN.write_text(as_markdown(records), encoding="utf-8")
    return int(any(record["status"] != "ok" for record in records))


if __name__ == "__main__":
    sys.exit(main())
