"""Operators that labels cannot follow lock the channels that they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.labels.rules.laws import TOKENS, Labelled, channels_of

LOCKED: dict[str, Callable[[Tensor], Any]] = {
    "take": lambda x: x.take(torch.tensor([3])),
    "one_hot": lambda x: F.one_hot(x.detach().clamp(0, 1).long(), 3),
    "bucketize": lambda x: torch.bucketize(torch.rand(3), x.flatten().detach()),
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "cdist": lambda x: torch.cdist(x, x.flip(0)),
    "inverse": lambda x: torch.linalg.inv(x @ x.mT + torch.eye(5).to(x)),
    "as_strided": lambda x: x.as_strided((2, 5), (30, 6)),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.tensor([[1] * 6, [2] * 6])),
    "cross_entropy_of_shares": lambda x: F.cross_entropy(x, torch.full((2, 5, 6), 0.2, dtype=x.dtype)),
    "nll": lambda x: F.nll_loss(x, torch.tensor([[1] * 6, [2] * 6])),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_depends_on_order_or_number_locks(name: str) -> None:
    labelled = Labelled(LOCKED[name], [TOKENS])
    reasons = [labelled.outcome.locked.get(root, "free") for root in channels_of(labelled)]
    assert not any(reason == "free" or "label rule" in reason for reason in reasons)
