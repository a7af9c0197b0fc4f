"""Training that simulates quantisation, with torch's own modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as quant
from torch import nn
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from lightning_taylor_prune import find_groups, prune_
from lightning_taylor_prune.groups.groups import ChannelGroups
from tests.oracles import masked_error, random_units

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.Linear(10, 5))


def weight(observer: type, scheme: torch.qscheme) -> object:
    return quant.FakeQuantize.with_args(
        observer=observer, quant_min=-128, quant_max=127, dtype=torch.qint8, qscheme=scheme
    )


PER_TENSOR = quant.QConfig(
    quant.FakeQuantize.with_args(observer=quant.MovingAverageMinMaxObserver),
    weight(quant.MinMaxObserver, torch.per_tensor_symmetric),
)
PER_CHANNEL = quant.QConfig(
    quant.FakeQuantize, weight(quant.MovingAveragePerChannelMinMaxObserver, torch.per_channel_symmetric)
)
AFFINE = quant.QConfig(quant.FakeQuantize, weight(quant.PerChannelMinMaxObserver, torch.per_channel_affine))


def eager(qconfig: quant.QConfig, fuse: bool = False) -> nn.Module:
    model = network().train()
    if fuse:
        model = quant.fuse_modules_qat(model, [["0", "1", "2"], ["3", "4", "5"]])
    model.qconfig = qconfig  # type: ignore[assignment]
    return quant.prepare_qat(model)  # type: ignore[no-any-return]


def observed() -> nn.Module:
    model = network().eval()
    model.qconfig = quant.get_default_qconfig("x86")
    return quant.prepare(model)  # type: ignore[no-any-return]


def by_fx(qconfig: quant.QConfig) -> nn.Module:
    mapping = quant.QConfigMapping().set_global(qconfig)
    return prepare_qat_fx(network().train(), mapping, EXAMPLE)  # type: ignore[no-any-return]


FUSED_OPERATOR = quant.get_default_qat_qconfig("x86")

KINDS: dict[str, Callable[[], nn.Module]] = {
    "x86": lambda: eager(FUSED_OPERATOR),
    "qnnpack": lambda: eager(quant.get_default_qat_qconfig("qnnpack")),
    "fbgemm_of_old": lambda: eager(quant.get_default_qat_qconfig("fbgemm", version=0)),
    "fused_modules": lambda: eager(FUSED_OPERATOR, fuse=True),
    "fused_modules_per_channel": lambda: eager(PER_CHANNEL, fuse=True),
    "per_tensor": lambda: eager(PER_TENSOR),
    "per_channel": lambda: eager(PER_CHANNEL),
    "per_channel_affine": lambda: eager(AFFINE),
    "fx": lambda: by_fx(FUSED_OPERATOR),
    "fx_per_channel": lambda: by_fx(PER_CHANNEL),
    "observers_only": observed,
}

EXAMPLE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)


def after_one_batch(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KINDS[kind]()
    model(*EXAMPLE)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_channels_under_simulated_quantisation_are_removed_as_if_masked(kind: str) -> None:
    """With ranges as they are: those that are still observed change with the channels."""
    model = after_one_batch(kind)
    groups = find_groups(model, EXAMPLE)
    model.apply(quant.disable_observer)
    masked = copy.deepcopy(model)
    assert [group.num_channels for group in groups] == [8, 6, 10]
    assert masked_error(model, masked, groups.plan(random_units(groups)), EXAMPLE) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_and_observes_the_channels_that_are_kept(kind: str) -> None:
    model = after_one_batch(kind)
    groups: ChannelGroups = find_groups(model, EXAMPLE)
    for _ in range(2):
        groups = prune_(model, groups.plan(random_units(groups)))
        assert model(*EXAMPLE).isfinite().all()
    assert find_groups(model, EXAMPLE).num_units == groups.num_units


def test_a_range_of_all_channels_is_not_called_exact() -> None:
    assert not any(group.exact for group in find_groups(after_one_batch("x86"), EXAMPLE))


def test_analysis_leaves_observers_as_they_are() -> None:
    forward = quant.HistogramObserver.forward
    model = after_one_batch("per_channel")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_groups(model, EXAMPLE)
    assert quant.HistogramObserver.forward is forward
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fixed_scales_are_exact() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.fake_quantize_per_tensor_affine(self.first(x), 0.1, 0, -128, 127))

    assert [group.exact for group in find_groups(Fixed(), torch.zeros(2, 3))] == [True]


def test_a_weight_that_an_unknown_operator_reads_is_listed_with_the_reason() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = torch.ops.aten._test_autograd_multiple_dispatch.fullcoverage(self.first.weight)
            return self.last(nn.functional.linear(x, made))

    locked = find_groups(Unknown(), torch.zeros(2, 3)).locked
    assert any(e.name == "first" and "without a label rule" in e.reason for e in locked)
