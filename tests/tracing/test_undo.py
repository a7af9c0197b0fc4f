"""Containers are read and put back as the built-in ones they are, whatever their classes do."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from lightning_taylor_prune.tracing.isolation import untouched
from lightning_taylor_prune.tracing.undo import content_of, restore_container


class MakesObjects(OrderedDict):
    """Makes an object of a class when asked for it, as tables of activations do."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


class Strict(dict):
    """Refuses to be read or written in the usual ways."""

    def refuse(self, *args: Any) -> Any:
        raise RuntimeError("not like this")

    __getitem__ = __setitem__ = __iter__ = __len__ = values = items = keys = copy = update = clear = refuse


class StrictList(list):
    refuse = Strict.refuse
    __iter__ = __len__ = copy = extend = clear = refuse


class StrictSet(set):
    refuse = Strict.refuse
    __iter__ = __len__ = __eq__ = copy = update = clear = refuse
    __hash__ = None  # type: ignore[assignment]


ONE, TWO = object(), object()
HOLDERS: dict[str, Any] = {
    "dict": lambda: ({"a": ONE}, lambda held: held.update(b=TWO)),
    "ordered": lambda: (OrderedDict(a=ONE, b=TWO), lambda held: held.move_to_end("a")),
    "default": lambda: (defaultdict(list, a=ONE), lambda held: held["b"]),
    "counter": lambda: (Counter("aab"), lambda held: held.update("c")),
    "list": lambda: ([ONE, TWO], lambda held: held.reverse()),
    "set": lambda: ({ONE}, lambda held: held.add(TWO)),
    "deque": lambda: (deque([ONE], 3), lambda held: held.append(TWO)),
    "emptied": lambda: ({"a": ONE}, lambda held: held.clear()),
    "own class": lambda: (Strict(a=ONE), lambda held: dict.__setitem__(held, "a", TWO)),
    "own list": lambda: (StrictList([ONE]), lambda held: held.append(TWO)),
    "own set": lambda: (StrictSet([ONE]), lambda held: held.add(TWO)),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_container_is_put_back(name: str) -> None:
    held, change = HOLDERS[name]()
    before = content_of(held)
    change(held)
    restore_container(held, before)
    assert content_of(held) == before


def test_a_table_that_makes_objects_makes_none() -> None:
    table = MakesObjects(linear=pytest.fail)
    restore_container(table, content_of(table))


@pytest.mark.parametrize(
    "holder", [MakesObjects(x=pytest.fail), Strict(x=1), StrictList([1]), StrictSet([1])], ids=type
)
def test_a_module_that_holds_an_own_container_is_put_back(holder: Any) -> None:
    module = nn.Linear(2, 2)
    module.table, module.count = holder, 0
    with untouched(module):
        module.count = 1
    assert module.count == 0


ACTIVATIONS = MakesObjects(needs_arguments=lambda: nn.ReLU()(), relu=nn.ReLU)
"""Of what stands in it some cannot be made like this, as nobody asks for it."""


class LooksItUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(ACTIVATIONS["relu"](self.first(x)))


def test_a_network_that_looks_up_a_table_of_classes_is_analysed() -> None:
    assert find_groups(LooksItUp(), torch.randn(3, 4)).num_units == 6
