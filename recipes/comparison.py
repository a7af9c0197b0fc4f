"""The table of the worked example: original network, pruned network, percentage change."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

BYTES_PER_PARAMETER = 4  # float32
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Measured:
    """What is known of one network.

    Attributes:
        params: Learnable parameters.
        macs: Multiply-accumulate operations for one image.
        filters: Filters of all convolutions.
        accuracy: Accuracy on the test images, 0 to 1.
    """

    params: int
    macs: int
    filters: int
    accuracy: float

    @property
    def megabytes(self) -> float:
        """Memory of the parameters in float32, in MB of 2**20 bytes."""
        return self.params * BYTES_PER_PARAMETER / MEBIBYTE


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


def compare(original: Measured, pruned: Measured) -> list[Row]:
    """Set two networks side by side."""
    return [
        Row("learnables", original.params, pruned.params),
        Row("parameter memory (MB)", original.megabytes, pruned.megabytes, decimals=4),
        Row("MACs", original.macs, pruned.macs),
        Row("filters", original.filters, pruned.filters),
        Row("accuracy (%)", 100 * original.accuracy, 100 * pruned.accuracy, decimals=2),
    ]


def as_table(rows: list[Row]) -> Table:
    """Lay the comparison out for the terminal."""
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
