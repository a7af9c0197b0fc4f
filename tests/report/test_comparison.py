import csv
import json

import pytest

from lightning_taylor_prune.report.comparison import Row, as_table, compare, save
from lightning_taylor_prune.report.results import NetworkResult

# The worked example's figures.
ORIGINAL = NetworkResult(params=271_690, macs=41_000_000, filters=784, accuracy=0.9024)
PRUNED = NetworkResult(params=121_282, macs=20_500_000, filters=544, accuracy=0.8736)


def test_rows_hold_the_figures_of_the_worked_example():
    rows = {row.name: row for row in compare(ORIGINAL, PRUNED)}
    memory = rows["parameter memory (MB)"]
    assert (round(memory.original, 4), round(memory.pruned, 4)) == (1.0364, 0.4627)
    changes = {name: round(row.change_percent, 2) for name, row in rows.items()}
    assert changes == {
        "learnables": -55.36,
        "parameter memory (MB)": -55.36,
        "MACs": -50.0,
        "filters": -30.61,
        "accuracy (%)": -3.19,
    }


def test_table_shows_values_and_signed_change():
    table = as_table(compare(ORIGINAL, PRUNED))
    assert [column.header for column in table.columns] == ["", "original", "pruned", "change"]
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells[0] == ("learnables", "271,690", "121,282", "-55.36 %")
    assert cells[4] == ("accuracy (%)", "90.24", "87.36", "-3.19 %")


def test_change_of_nothing_is_undefined_not_an_error():
    row = Row("filters", 0, 0)
    assert (row.change_percent, row.cells()[-1]) == (None, "-")


def test_saved_files_agree(tmp_path):
    rows = compare(ORIGINAL, PRUNED)
    save(rows, tmp_path)
    records = json.loads((tmp_path / "comparison.json").read_text())
    with (tmp_path / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [r["metric"] for r in records] == [line["metric"] for line in lines] == [r.name for r in rows]
    for record, line, row in zip(records, lines, rows, strict=True):
        assert record["pruned"] == float(line["pruned"]) == row.pruned
        assert record["change_percent"] == pytest.approx(float(line["change_percent"]), abs=1e-12)
