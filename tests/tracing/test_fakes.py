from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lightning_taylor_prune.tracing.fakes import FakeMode, fake_tensor_log_off, resized_fake


@pytest.fixture
def old() -> Tensor:
    return torch.empty(8, 4, 3, 3, dtype=torch.bfloat16, requires_grad=True).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("attribute", ["dtype", "device", "requires_grad"])
def test_only_the_shape_differs(attribute: str, old: Tensor) -> None:
    assert getattr(resized_fake(FakeTensorMode(), old, (6, 4, 3, 3)), attribute) == getattr(old, attribute)


def test_memory_format_is_kept(old: Tensor) -> None:
    new = resized_fake(FakeTensorMode(), old, (6, 4, 3, 3))
    assert new.is_contiguous(memory_format=torch.channels_last)


def test_resized_tensor_runs_under_its_mode(old: Tensor) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        assert (
            torch.conv2d(torch.empty(1, 4, 5, 5, dtype=old.dtype), resized_fake(mode, old, (6, 4, 3, 3))).shape[1] == 6
        )


def test_log_is_silent_and_restored() -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    with fake_tensor_log_off():
        inside = log.isEnabledFor(logging.CRITICAL)
    assert (inside, log.level) == (False, before)


def test_accelerators_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", property(lambda self: asked.append(1) or True))
    with FakeMode():
        torch.ones(2).add(1).mul(2)
    assert len(asked) == 1
