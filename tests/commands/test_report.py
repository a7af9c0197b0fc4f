"""`taylor-prune report` is `python -m lightning_taylor_prune.report`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_taylor_prune.commands.main import main
from lightning_taylor_prune.report import NetworkResult, Results


def test_report_is_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = NetworkResult(params=10, macs=0, filters=0, accuracy=0.5)
    Results("Bare", "", (), network, network).save(tmp_path / "results.json")
    main(["report", str(tmp_path / "results.json")])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: .*absent.json"):
        main(["report", str(tmp_path / "absent.json")])
