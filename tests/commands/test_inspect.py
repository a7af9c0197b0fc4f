"""`taylor-prune inspect`: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightning_taylor_prune import find_groups, prune_
from lightning_taylor_prune.commands.main import main
from tests.commands import factories

FACTORIES = "tests.commands.factories"
SMALL = ("inspect", f"{FACTORIES}:small", "--input", "1,3,8,8")


def test_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(SMALL)
    out = capsys.readouterr().out
    assert re.search(r"^parameters +516 +68 +86.8 %$", out, re.M) and re.search(r"^0 +8 +1 +64 ", out, re.M)


def test_json_is_alone_on_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["groups"][0]["units"] == 8 and "building" in printed.err


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    main(["inspect", *arguments, "--json"])
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize(
    ("arguments", "units"),
    [
        ((f"{FACTORIES}:small", "--input", "1,3,8,8", "--kwargs", '{"classes": 7}'), {"0": 8}),
        ((f"{FACTORIES}:with_inputs",), {"0": 10, "3": 14}),
        ((f"{FACTORIES}:tokens", "--input", "2,5:int64"), {"0": 6, "1": 12}),
        pytest.param(
            (f"{FACTORIES}:only_in_evaluation", "--input", "1,3,8,8", "--eval"),
            {"0": 8},
            marks=pytest.mark.filterwarnings("ignore:What the network does in training mode"),
        ),
    ],
    ids=["factory with arguments", "factory that gives inputs", "integers", "evaluation mode"],
)
def test_targets(arguments: tuple[str, ...], units: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert {group["name"]: group["units"] for group in found(capsys, *arguments)["groups"]} == units


def test_name_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "resnet18", "--input", "2,3,32,32", "--kwargs", '{"num_classes": 5}')["network"] == "ResNet"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_are_loaded(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, path = factories.small(), tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(network.state_dict(), path)
    assert found(capsys, *SMALL[1:], "--weights", str(path))["units"] == 8


def test_pruned_weights_shrink_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, path = factories.small(), tmp_path / "pruned.pt"
    prune_(network, find_groups(network, torch.zeros(1, 3, 8, 8)).plan({"0": [1, 2]}))
    torch.save(network.state_dict(), path)
    assert found(capsys, *SMALL[1:], "--weights", str(path))["units"] == 6


def test_constraints_are_handed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, *SMALL[1:], "--min-channels", "3")["groups"][0]["least_units"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch", "--input", "1"), "package.module:factory or the name of a model of torchvision, but got 'nosuch'"),
        (("no_module:x", "--input", "1"), "`no_module:x` cannot be imported: ModuleNotFoundError"),
        ((f"{FACTORIES}:absent", "--input", "1"), "cannot be imported: AttributeError"),
        ((f"{FACTORIES}:failing", "--input", "1"), r"failing` failed: KeyError: 'no such\nlayer'"),
        ((f"{FACTORIES}:NOT_CALLABLE", "--input", "1"), "to be a function or a class, but got a int"),
        (("builtins:dict", "--input", "1"), "to return a network, but got a dict"),
        ((f"{FACTORIES}:small",), "add --input"),
        ((f"{FACTORIES}:small", "--input", "1,4,8,8"), "Cannot trace the network: RuntimeError: Given groups=1"),
        ((*SMALL[1:], "--exclude", "absent"), "'absent' matches none of 0, 2"),
        ((*SMALL[1:], "--weights", "absent.pt"), "absent.pt"),
    ],
    ids=lambda value: value[0].partition(":")[2] if isinstance(value, tuple) else "",
)
def test_error_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    words = str(ended.value.code)
    assert words.startswith("error: ") and message in words and "\n" not in words and not capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [(), ("absent",), ("inspect",), ("inspect", "x", "--input", "a"), ("inspect", "x", "--input", "1,0")],
    ids=" ".join,
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: taylor-prune" in capsys.readouterr().err


@pytest.mark.parametrize("kwargs", ["[1]", "{", "3"])
def test_arguments_of_the_factory_must_be_an_object(kwargs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, "--kwargs", kwargs])
    assert ended.value.code == 2 and "expected" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "--help"])
    assert ended.value.code == 0 and "taylor-prune inspect resnet50 --input" in capsys.readouterr().out


def test_traceback_on_demand() -> None:
    with pytest.raises(ValueError, match="nosuch"):
        main(["inspect", "nosuch", "--input", "1", "--traceback"])


def test_module_of_the_present_folder_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Also: a reader that closes the pipe is no error."""
    (tmp_path / "mine.py").write_text("from torch import nn\nbuild = lambda: nn.Sequential(nn.Linear(4, 3))\n")
    command = f"{sys.executable} -m lightning_taylor_prune inspect mine:build --input 1,4 | head -1"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "Sequential, 15 parameters: nothing can be removed.\n" and "Error" not in done.stderr


def test_page_is_written_beside_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALL, "--html", str(tmp_path / "groups.html"), "--json"])
    assert json.loads(capsys.readouterr().out)["units"] == 8
    assert "<svg" in (tmp_path / "groups.html").read_text(encoding="utf-8")


def test_tables_are_not_lost_where_the_page_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"error: .*Is a directory"):
        main([*SMALL, "--html", str(tmp_path)])
    assert "parameters" in capsys.readouterr().out
