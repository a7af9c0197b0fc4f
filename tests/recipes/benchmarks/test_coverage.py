"""The coverage run: what it records and writes, and its exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.recipes.benchmarks.networks import ENTRIES
from tests.recipes.benchmarks.records import record_of


@pytest.fixture(scope="module")
def finished(run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over all networks that come to an end."""
    out = tmp_path_factory.mktemp("coverage")
    run(out, "tiny/*", "--markdown", str(out / "table.md"))
    return out


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        pytest.param("tiny/good", "ok", "", id="good"),
        pytest.param("tiny/unbuildable", "broken", "ValueError: no such network", id="raises"),
        pytest.param("tiny/crashing", "crashed", "exit status 3 in stage build", id="dies"),
        pytest.param("tiny/restless", "broken", "differs from the masked one", id="computes something else"),
        pytest.param("tiny/valued", "refused", "Cannot trace the network", id="refused with a reason"),
        pytest.param("tiny/last", "ok", "", id="after all of these"),
    ],
)
def test_every_network_gets_its_record_whatever_happens_to_it(
    finished: Path, name: str, status: str, said: str
) -> None:
    record = record_of(finished, name)
    assert record["status"] == status and said in record.get("error", "")


def test_record_of_a_good_network(finished: Path) -> None:
    record = record_of(finished, "tiny/good")
    assert (record["groups"], record["exact_groups"], record["export"]) == (1, 1, "ok")
    assert (record["params_before"], record["params_after"]) == (516, 260)
    assert record["macs_after"] == record["macs_before"] / 2
    assert record["masked_error"] < 1e-12 < record["masking_effect"]


def test_markdown_tells_versions_rows_and_what_went_wrong(finished: Path) -> None:
    text = (finished / "table.md").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert text.count("\n| tiny/") == len(ENTRIES) - 1
    assert "`tiny/unbuildable`: broken: ValueError: no such network" in text


def test_nothing_but_records_is_left(finished: Path) -> None:
    assert {path.suffix for path in finished.iterdir()} == {".json", ".md"}


@pytest.mark.parametrize(
    ("pattern", "status"), [pytest.param("tiny/good", 0, id="good"), pytest.param("tiny/crash", 1, id="bad")]
)
def test_exit_status(run: Callable[..., int], finished: Path, pattern: str, status: int) -> None:
    assert run(finished, pattern) == status


def test_unknown_pattern(run: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no network matches nonesuch"):
        run(tmp_path, "nonesuch")
