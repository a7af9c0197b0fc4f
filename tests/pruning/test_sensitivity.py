"""Sensitivity: what is predicted for a group is what the network that is really cut gives."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_taylor_prune import ArgumentError, PruningWarning, find_groups, prune_, sensitivity
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.pruning.sensitivity import Sensitivities
from tests.networks import NETWORKS
from tests.oracles import differences, mask_readers_, randomize_norms_, state_of


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


def prepared(name: str = "conv_bn") -> tuple[nn.Module, ChannelGroups, DataLoader[Any]]:
    """Return a network in double precision, its groups, and ten examples in batches of four."""
    network = NETWORKS[name]
    model = randomize_norms_(network.build()).double()
    x = torch.cat([network.example(seed)[0] for seed in range(5)]).double()
    data = TensorDataset(x, torch.arange(len(x)) % 5)
    return model, find_groups(model, x[:2]), DataLoader(data, batch_size=4)


def measured(ratios: tuple[float, ...] = (0.3, 0.5), **arguments: Any) -> Sensitivities:
    return sensitivity(*prepared(), loss, ratios, progress=False, **arguments)


def mean_of(metric: Callable[[Tensor, Tensor], Tensor], model: nn.Module, data: DataLoader[Any]) -> float:
    inputs, targets = data.dataset[:]
    return metric(model.eval()(inputs), targets).item()


def mean_loss(model: nn.Module, data: DataLoader[Any]) -> float:
    return mean_of(loss, model, data)


def lowest(model: nn.Module, name: str, count: int) -> list[int]:
    """Return the units of smallest norm, as `magnitude` ranks them, for groups with one writer."""
    weight = model.get_submodule(name).weight.flatten(1)
    assert isinstance(weight, Tensor)
    return weight.norm(dim=1).argsort()[:count].tolist()


@pytest.mark.parametrize("name", ["conv_bn", "flatten_to_linear", "residual", "squeeze_excite"])
def test_exact_cut_gives_the_metric_of_the_masked_network(name: str) -> None:
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(1).square().mean(1) - targets).square().mean()

    model, groups, data = prepared(name)
    scores = torch.rand(groups.num_units, generator=torch.Generator().manual_seed(0))
    for point in sensitivity(model, groups, data, metric, (0.3, 0.7), criterion=scores, progress=False).points:
        if groups[point.group].exact:
            own = scores[groups[point.group].first_unit :][: point.units]
            units = own.argsort()[: point.removed].tolist()
            masked = mask_readers_(copy.deepcopy(model), groups.plan({point.group: units}))
            assert point.value == pytest.approx(mean_of(metric, masked, data), abs=1e-9)


def test_value_is_that_of_the_pruned_network() -> None:
    model, groups, data = prepared()
    point = sensitivity(model, groups, data, loss, (0.5,), progress=False).points[1]
    prune_(model, groups.plan({"3": lowest(model, "3", 7)}))
    assert (point.group, point.removed, point.value) == ("3", 7, pytest.approx(mean_loss(model, data), abs=1e-12))


def test_baseline_is_the_metric_of_the_whole_network() -> None:
    model, groups, data = prepared()
    found = sensitivity(model, groups, data, loss, (0.5,), progress=False)
    assert found.baseline == pytest.approx(mean_loss(model, data), abs=1e-12)


def test_network_is_unchanged() -> None:
    model, groups, data = prepared()
    before = state_of(model.train())
    sensitivity(model, groups, data, loss, (0.5,), progress=False)
    assert differences(before, state_of(model)) == []


def test_metric_of_torchmetrics() -> None:
    model, groups, data = prepared()
    metric = MulticlassAccuracy(5, average="micro")
    found = sensitivity(model, groups, data, metric, (0.5,), progress=False)
    inputs, targets = data.dataset[:]
    assert found.baseline == pytest.approx((model.eval()(inputs).argmax(1) == targets).float().mean().item())


def test_scores_say_which_units_are_removed() -> None:
    model, groups, data = prepared()
    scores = torch.arange(groups.num_units, 0, -1)
    point = sensitivity(model, groups, data, loss, (0.2,), criterion=scores, progress=False).points[0]
    prune_(model, groups.plan({"0": [8, 9]}))
    assert point.value == pytest.approx(mean_loss(model, data), abs=1e-12)


def test_share_of_no_whole_unit_removes_none() -> None:
    found = measured((0.01,))
    assert [(point.removed, point.value) for point in found.points] == [(0, found.baseline)] * 2


def test_one_unit_is_always_kept() -> None:
    assert [(point.removed, point.units) for point in measured((0.99,)).points] == [(9, 10), (13, 14)]


def test_shuffled_data_comes_in_the_same_order_each_time() -> None:
    model, groups, data = prepared()
    seen: list[Tensor] = []

    def watching(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return loss(outputs, targets)

    loader = DataLoader(data.dataset, batch_size=20, shuffle=True)
    sensitivity(model, groups, loader, watching, (0.5,), progress=False)
    assert len(seen) == 3 and all(torch.equal(targets, seen[0]) for targets in seen)


def test_random_state_is_kept() -> None:
    model, groups, data = prepared()
    before = torch.random.get_rng_state()
    sensitivity(model, groups, DataLoader(data.dataset, shuffle=True), loss, (0.5,), progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)


class Interrupted(Exception):
    """Stands for a kill."""


def interrupted(cache: Path, after: int) -> None:
    """Measure, and end in the middle."""
    model, groups, data = prepared()
    calls = 0

    def loss_for_a_while(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Interrupted
        return loss(outputs, targets)

    loss_for_a_while.__qualname__ = loss.__qualname__
    with pytest.raises(Interrupted):
        sensitivity(model, groups, data, loss_for_a_while, (0.3, 0.5), progress=False, cache=cache)


@pytest.mark.parametrize("torn", [b"", b'{"key": "3'], ids=["between lines", "within a line"])
def test_goes_on_where_it_was_interrupted(torn: bytes, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache.jsonl"
    interrupted(cache, after=8)  # three batches for the baseline, three for the first cut
    done = cache.read_bytes()
    cache.write_bytes(done + torn)
    resumed = measured(cache=cache)
    assert done.count(b"\n") == 3 and cache.read_bytes().startswith(done) and resumed == measured()


def test_complete_results_are_not_measured_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    first, size = measured(cache=cache), cache.stat().st_size
    assert measured(cache=cache) == first and cache.stat().st_size == size


def test_results_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    model, groups, data = prepared()

    def fragile(outputs: Tensor, targets: Tensor) -> float:
        fragile.calls += 1  # type: ignore[attr-defined]
        return math.inf if fragile.calls > 3 else 1.0  # type: ignore[attr-defined]

    fragile.calls = 0  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {"progress": False, "cache": tmp_path / "cache.jsonl"}
    first = sensitivity(model, groups, data, fragile, (0.5,), **arguments)
    assert first == sensitivity(model, groups, data, fragile, (0.5,), **arguments) and first.points[0].value == math.inf


def test_group_that_the_code_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups, data = prepared()
    verify = groups.verify

    def refuse(network: nn.Module, plan: Any) -> Any:
        return Refusal("is needed") if "3" in plan.removed else verify(network, plan)

    class Refusal:
        def __init__(self, message: str) -> None:
            self.message = message

    monkeypatch.setattr(groups, "verify", refuse)
    with pytest.warns(PruningWarning, match="No sensitivity of 3: .* is needed"):
        found = sensitivity(model, groups, data, loss, (0.5,), progress=False)
    assert [math.isnan(point.value) for point in found.points] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("hello"), "holds others"),
        (lambda path: path.write_text('{"a": 1}\n'), "holds others"),
        (lambda path: path.write_bytes(bytes(range(256))), "holds others"),
        (lambda path: path.write_text(path.read_text().replace('"value"', '"walue"')), "line 2 of .* is damaged"),
        (lambda path: path.write_text(path.read_text() + "[\n"), "line 7 of .* is damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    ],
    ids=["text", "other JSON", "bytes", "no value", "bad line", "folder"],
)
def test_file_that_is_not_ours_is_refused_and_kept(change: Any, message: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    measured(cache=cache)
    change(cache)
    before = cache.read_bytes() if cache.is_file() else b""
    with pytest.raises(ArgumentError, match=message):
        measured(cache=cache)
    assert (cache.read_bytes() if cache.is_file() else b"") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": (0.3,)}, "are of other ratios"),
        ({"criterion": torch.zeros(24)}, "are of other scores"),
        ({"metric": nn.functional.nll_loss}, "are of another metric"),
    ],
    ids=["ratios", "scores", "metric"],
)
def test_results_of_another_call_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    measured(cache=cache)
    model, groups, data = prepared()
    arguments = {"metric": loss, "ratios": (0.3, 0.5), **arguments}
    with pytest.raises(ArgumentError, match=message):
        sensitivity(model, groups, data, progress=False, cache=cache, **arguments)


def test_results_of_another_network_are_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    measured(cache=cache)
    model, groups, data = prepared()
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    with pytest.raises(ArgumentError, match="are of another network"):
        sensitivity(model, groups, data, loss, (0.3, 0.5), progress=False, cache=cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": (0.0,)}, "`ratios`"),
        ({"ratios": (0.5, 1.0)}, "`ratios`"),
        ({"ratios": ()}, "`ratios`"),
        ({"ratios": 0.5}, "`ratios`"),
        ({"ratios": (True,)}, "`ratios`"),
        ({"metric": 3}, "`metric` to be a function"),
        (
            {"metric": lambda outputs, targets: outputs},
            r"`metric` to give one number, but got a tensor of shape \(4, 5",
        ),
        ({"metric": lambda outputs, targets: None}, "`metric` to give one number, but got a NoneType"),
        ({"metric": lambda outputs, targets: math.nan}, "`metric` to give a finite number"),
        ({"data": []}, "`data` to give at least one batch"),
        ({"data": iter([])}, "`data` .* several times"),
        ({"data": [torch.zeros(2, 3, 8, 8)]}, "`data` to give pairs of inputs and targets, but got a Tensor"),
        ({"criterion": "taylor"}, "`criterion`.*magnitude"),
        ({"criterion": torch.zeros(3)}, r"shape \(24,\), but got shape \(3,\)"),
        ({"progress": 1}, "`progress`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    model, groups, data = prepared()
    given = {"data": data, "metric": loss, "progress": False, **arguments}
    with pytest.raises(ArgumentError, match=message) as raised:
        sensitivity(model, groups, **given)
    assert "\n" not in str(raised.value)


def test_nothing_to_remove() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(
        ArgumentError, match="`groups` to have units to remove, but it has none: .* output of the network"
    ):
        sensitivity(model, find_groups(model, torch.zeros(1, 4)), [(torch.zeros(1, 4), torch.zeros(1).long())], loss)


def test_table_and_plain_data() -> None:
    found = measured()
    lines = str(found).splitlines()
    assert lines[1].split() == ["group", "30%", "50%"] and lines[2].split()[0] == "0" and len(lines) == 4
    assert json.loads(json.dumps(found.as_dict()))["points"][0]["removed"] == 3
