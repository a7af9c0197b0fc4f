"""The records of a coverage run as a table in the terminal and as Markdown."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from recipes.benchmarks.coverage_drawn import COUNT, SEED

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
        f"{record['name']}: {record['member']}" if record.get("member") else record["name"],
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
        f"The rows `drawn/...` are the smallest networks of {COUNT} families of timm, drawn at random (seed {SEED}) "
        "from those that no other row covers, with images of the size that they were made for (deepseek_vit and "
        "gemma4_vit: smaller).",
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
    lines += ["These depend on the values of tensors; the tensors that one part hands to another keep their width.", ""]
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
