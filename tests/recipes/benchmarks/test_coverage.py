"""The coverage run: networks that do as they should, that do not, and that would run forever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from recipes.benchmarks.coverage import HEADINGS, as_markdown, cells, is_bad, main, summary
from recipes.benchmarks.coverage_measure import half_of, prepared, relative_difference, shares_of, training_step
from recipes.benchmarks.coverage_models import PLUGINS, Built, Entry, images, matching, registry

ROOT = Path(__file__).resolve().parents[3]


# --- networks of a few hundred parameters --------------------------------------------------------------------------


class Restless(nn.Sequential):
    """Returns more with every call, so that its pruned self never equals its masked self."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.factor.mul_(2)
        for layer in self:
            x = layer(x)
        return x * self.factor


class Ordered(nn.Sequential):
    """Sums over the channels before each one: none of the first layer's can be removed."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[0](x).cumsum(1))


class Valued(nn.Sequential):
    """Asks a tensor for the size of what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : int(x.abs().sum().item()) % 2 + 1]


def small(kind: type[nn.Sequential] = nn.Sequential) -> Built:
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    return Built(kind(*layers), images(8))


def unbuildable() -> Built:
    raise ValueError("no such network")


def crashing() -> Built:
    os._exit(3)


def endless() -> Built:
    while True:
        pass


ENTRIES = [
    Entry("tiny/good", small),
    Entry("tiny/unbuildable", unbuildable),
    Entry("tiny/crashing", crashing),
    Entry("tiny/restless", partial(small, Restless)),
    Entry("tiny/valued", partial(small, Valued), refusal=True),
    Entry("tiny/last", small),
    Entry("stuck/endless", endless),
]


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., int]]:
    """Run the recipe here, its networks in processes of their own; what it sets in this process is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, {PLUGINS: __name__}):
        yield lambda out, *arguments: main([*arguments, "--out", str(out)])
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def finished(run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over all networks that come to an end."""
    out = tmp_path_factory.mktemp("coverage")
    run(out, "tiny/*", "--markdown", str(out / "table.md"))
    return out


def record_of(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name.replace('/', '.')}.json").read_text())


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


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        pytest.param(["--time-limit", "0.5"], "time", id="time"),
        pytest.param(["--memory-limit", "0.01"], "memory", id="memory"),
    ],
)
def test_limits_end_a_network(run: Callable[..., int], tmp_path: Path, limits: list[str], status: str) -> None:
    run(tmp_path, "stuck/endless", *limits)
    record = record_of(tmp_path, "stuck/endless")
    assert record["status"] == status and record["error"].startswith(f"{status} limit reached in stage")


@pytest.mark.parametrize(
    ("left", "arguments", "measured"),
    [
        pytest.param("ok", [], False, id="done"),
        pytest.param("broken", [], False, id="done badly"),
        pytest.param("running", [], True, id="interrupted"),
        pytest.param("ok", ["--again"], True, id="again"),
    ],
)
def test_resume(run: Callable[..., int], tmp_path: Path, left: str, arguments: list[str], measured: bool) -> None:
    (tmp_path / "tiny.unbuildable.json").write_text(json.dumps({"name": "tiny/unbuildable", "status": left}))
    run(tmp_path, "tiny/unbuildable", *arguments)
    assert ("no such network" in record_of(tmp_path, "tiny/unbuildable").get("error", "")) == measured


def test_unknown_pattern(run: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no network matches nonesuch"):
        run(tmp_path, "nonesuch")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_no_process_outlives_the_run(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "recipes/benchmarks/coverage.py", "stuck/endless", "--out", str(tmp_path)]
    driver = subprocess.Popen(command, cwd=ROOT, env={**os.environ, PLUGINS: __name__}, stdout=subprocess.DEVNULL)
    while not (tmp_path / "stuck.endless.json").exists():
        assert driver.poll() is None
        time.sleep(0.1)
    others = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(how)
    assert len(others) >= 2 and not psutil.wait_procs(others, timeout=60)[1]


# --- what is counted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "counts", "reason"),
    [
        pytest.param(nn.Sequential, {"prunable": 512, "locked": 0, "ends": 4}, None, id="all but the last bias"),
        pytest.param(Ordered, {"prunable": 0, "locked": 512, "ends": 4}, "depends on the order", id="nothing"),
    ],
)
def test_shares(kind: type[nn.Sequential], counts: dict[str, int], reason: str | None) -> None:
    built = small(kind)
    shares, reasons = shares_of(find_groups(built.model, built.args))
    assert {key: round(share * 516) for key, share in shares.items()} == counts
    assert (reason is None or any(why.startswith(reason) for why in reasons)) and sum(reasons.values()) == counts[
        "locked"
    ]


def test_half_leaves_every_wanted_group_and_no_other() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
    plan = half_of(find_groups(model, torch.zeros(1, 8, 4, 4)), lambda group: group.name == "1")
    assert {name: len(units) for name, units in plan.removed.items()} == {"1": 4}


def test_zeros_and_ones_are_filled_before_anything_is_compared() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    prepared(Built(nn.Sequential(norm), images(8)))
    assert all(t.unique().numel() == 8 for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        pytest.param(torch.zeros(2), "shapes", id="another shape"),
        pytest.param(torch.full((3,), torch.nan), "not finite", id="not finite"),
    ],
)
def test_difference_refuses(actual: Tensor, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        relative_difference([actual], [torch.ones(3)])


def test_difference_is_relative_to_the_largest_value_of_each_tensor() -> None:
    expected = [torch.tensor([1.0, 100.0]), torch.tensor([0.1])]
    assert relative_difference([expected[0] + 1, expected[1] * 1.5], expected) == pytest.approx(0.5)


def test_training_step_wants_something_to_move() -> None:
    built = small()
    nn.init.zeros_(built.model[2].weight)
    nn.init.zeros_(built.model[2].bias)
    with pytest.raises(AssertionError, match="moved no parameter"):
        training_step(built)


# --- the registry and the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        pytest.param([], ["a/vit", "b/vit_small", "b/swin"], id="all"),
        pytest.param(["vit"], ["a/vit", "b/vit_small"], id="part"),
        pytest.param(["b/*"], ["b/vit_small", "b/swin"], id="shell pattern"),
        pytest.param(["a/", "swin"], ["a/vit", "b/swin"], id="several"),
    ],
)
def test_matching(patterns: list[str], found: list[str]) -> None:
    assert matching(["a/vit", "b/vit_small", "b/swin"], patterns) == found


def test_every_timm_name_exists() -> None:
    names = [entry.name.partition("/")[2] for entry in registry().values() if entry.family == "timm"]
    assert len(names) > 24 and [name for name in names if not timm.is_model(name)] == []


@pytest.mark.parametrize(
    ("status", "expected_refusal", "bad"),
    [
        ("ok", False, False),
        ("ok", True, True),
        ("refused", True, False),
        ("refused", False, True),
        ("time", False, True),
    ],
)
def test_what_counts_as_bad(status: str, expected_refusal: bool, bad: bool) -> None:
    assert is_bad({"status": status, "expected_refusal": expected_refusal}) == bad


def test_rows_of_interrupted_networks_have_every_column() -> None:
    assert len(cells({"name": "a/b", "status": "time"})) == len(HEADINGS)


def test_table_explains_what_is_locked() -> None:
    record = {
        "name": "a/b",
        "status": "ok",
        "groups": 1,
        "exact_groups": 1,
        "params_before": 1000,
        "shares": {"prunable": 0.7, "locked": 0.3, "ends": 0.0},
        "locked_parameters": {"is rolled": 250, "is indexed by data": 50},
    }
    assert "more than 20 % locked in 1" in summary([record])
    assert "`a/b`: 25.0 % is rolled; 5.0 % is indexed by data" in as_markdown([record])
