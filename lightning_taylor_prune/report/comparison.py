"""The table of a pruning run: original network, pruned network, percentage change."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_taylor_prune.report.results import NetworkResult

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What is compared, with its unit.
        original: Value of the network before pruning.
        pruned: Value of the network after pruning and retraining.
        decimals: Decimal places shown on the screen.
    """

    name: str
    original: float
    pruned: float
    decimals: int = 0

    @property
    def change_percent(self) -> float | None:
        """Change in per cent of the original value, None where that is zero."""
        return None if self.original == 0 else 100 * (self.pruned - self.original) / self.original

    def cells(self) -> tuple[str, str, str, str]:
        """Return the line as text, for reading."""
        original, pruned = (f"{value:,.{self.decimals}f}" for value in (self.original, self.pruned))
        change = self.change_percent
        return self.name, original, pruned, "-" if change is None else f"{change:+.2f} %"


def compare(original: NetworkResult, pruned: NetworkResult) -> list[Row]:
    """Set two networks side by side; latencies only if they were measured under the same conditions."""
    rows = [
        Row("learnables", original.params, pruned.params),
        Row("parameter memory (MB)", original.megabytes, pruned.megabytes, decimals=4),
        Row("MACs", original.macs, pruned.macs),
        Row("filters", original.filters, pruned.filters),
        Row("accuracy (%)", 100 * original.accuracy, 100 * pruned.accuracy, decimals=2),
    ]
    before, after = original.latency, pruned.latency
    if before and after and (before.device, before.batch_size) == (after.device, after.batch_size):
        rows.append(Row("latency (ms)", before.median_ms, after.median_ms, decimals=2))
    return rows


def as_table(rows: list[Row]) -> Table:
    """Lay the comparison out for the terminal, with rich (``pip install rich``)."""
    from rich.table import Table

    table = Table(title="Original and pruned network", title_justify="left")
    table.add_column("")
    for heading in ("original", "pruned", "change"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row.cells())
    return table


def save(rows: list[Row], folder: Path) -> None:
    """Write ``comparison.csv`` and ``comparison.json`` with full precision."""
    records = [
        {
            "metric": row.name,
            "original": row.original,
            "pruned": row.pruned,
            "change_percent": row.change_percent,
        }
        for row in rows
    ]
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    (folder / "comparison.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
