"""Tensors and caches in nested results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_taylor_prune.tracing.tensors import find_caches


class DynamicCache:
    def __init__(self, keys: Any) -> None:
        self.keys = keys


KEYS = torch.zeros(2)
PAIRS = (KEYS,)
CACHE = DynamicCache([KEYS])


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (KEYS, []),
        ((KEYS, CACHE), [CACHE]),
        ({"logits": KEYS, "past_key_values": CACHE}, [CACHE]),
        (SimpleNamespace(past_key_values=PAIRS), [PAIRS]),
        ([{"inner": CACHE}], [CACHE]),
        ({"logits": KEYS, "states": (KEYS,)}, []),
    ],
    ids=["tensor", "in a tuple", "in a mapping", "in an output", "nested", "other states"],
)
def test_caches_are_found_in_a_result(result: Any, found: list[Any]) -> None:
    assert {*map(id, find_caches(result))} == {*map(id, found)}
