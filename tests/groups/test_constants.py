"""Whether constants of the code hold the same numbers at other shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_taylor_prune.groups.constants import same_numbers


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        pytest.param(torch.tensor([0.1, 2]), torch.tensor([0.1, 2]), True, id="equal"),
        pytest.param(torch.tensor([0.1, 2]), torch.tensor([0.1, 3]), False, id="another number"),
        pytest.param(torch.tensor([0.1, 2]), torch.tensor([0.1, 2]).double(), True, id="cast to more digits"),
        pytest.param(torch.tensor([0.1, 2]), torch.tensor([0.1, 2]).half(), True, id="cast to fewer digits"),
        pytest.param(torch.tensor([0.1, 2]), torch.tensor([0.2, 2]).half(), False, id="cast, another number"),
        pytest.param(torch.zeros(3), torch.zeros(2), True, id="one number, another shape"),
        pytest.param(torch.zeros(3), torch.ones(2), False, id="another number, another shape"),
    ],
)
def test_same_numbers(before: Tensor, now: Tensor, same: bool) -> None:
    assert same_numbers(before, now) is same
