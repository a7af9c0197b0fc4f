"""What a block changes in modules is undone, each time and whatever raises."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_taylor_prune.tracing.isolation import Snapshot, Write, untouched, written


class Holder(nn.Module):
    """Holds containers of all kinds, empty and not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.number, self.gone = 1, "here"
        self.items, self.names, self.recent = [1], {"a"}, deque([1])
        self.table: dict[Any, Any] = {"x": {"deep": [1]}, torch.zeros(2): 2}
        self.empty: tuple[Any, ...] = ([], {}, set(), deque())


def new_dict(holder: Holder) -> None:
    holder.__dict__ = {**holder.__dict__, "number": 5}


CHANGES: dict[str, Callable[[Holder], Any]] = {
    "set": lambda h: setattr(h, "number", 5),
    "added": lambda h: setattr(h, "later", 5),
    "deleted": lambda h: delattr(h, "gone"),
    "below": lambda h: setattr(h.inner, "in_features", 5),
    "module": lambda h: setattr(h, "inner", nn.Linear(3, 3)),
    "parameter": lambda h: setattr(h.inner, "weight", nn.Parameter(torch.zeros(1))),
    "list": lambda h: h.items.append(5),
    "set item": lambda h: h.names.add("b"),
    "set item replaced": lambda h: (h.names.add("b"), h.names.remove("a")),
    "deque": lambda h: h.recent.append(5),
    "nested": lambda h: h.table["x"]["deep"].append(5),
    "replaced value": lambda h: h.table.update(x=5),
    "key that has no truth value": lambda h: h.table.update({torch.ones(2): 5}),
    "empty list": lambda h: h.empty[0].append(5),
    "empty dict": lambda h: h.empty[1].update(a=5),
    "empty set": lambda h: h.empty[2].add(5),
    "empty deque": lambda h: h.empty[3].append(5),
    "its dictionary": new_dict,
}

changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


def content(holder: Holder) -> list[Any]:
    inner = {key: value for key, value in vars(holder.inner).items() if key != "_parameters"}
    weights = [id(p) for p in holder.inner.parameters()]
    return [repr(sorted(vars(holder).items())), repr(sorted(inner.items())), weights]


@changes
def test_a_snapshot_restores_twice(change: Callable[[Holder], Any]) -> None:
    holder = Holder()
    before, snapshot = content(holder), Snapshot(holder)
    for _ in range(2):
        change(holder)
        snapshot.restore()
    assert content(holder) == before


@changes
def test_a_change_is_seen(change: Callable[[Holder], Any]) -> None:
    holder = Holder()
    before = content(holder)
    change(holder)
    assert content(holder) != before


def test_where_nothing_has_changed_nothing_is_restored() -> None:
    snapshot = Snapshot(holder := Holder())
    holder.number = 1
    assert snapshot.restore() == []


@pytest.mark.parametrize("name", ["set", "added", "list", "empty list", "empty dict", "nested"])
def test_what_was_stored_is_returned(name: str) -> None:
    holder = Holder()
    with untouched(Snapshot(holder)) as leaked:
        CHANGES[name](holder)
    assert 5 in [entry.value for entry in leaked]


def test_random_generators_are_restored() -> None:
    states, holder = [], Holder()
    for _ in range(2):
        states.append((random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
        with untouched(holder):
            random.random(), np.random.rand(), torch.rand(1)
    assert states[0] == states[1]


class Guarded(nn.Module):
    """An attribute that takes even numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.even = 2

    @property
    def even(self) -> int:
        return self._half * 2

    @even.setter
    def even(self, value: int) -> None:
        if value % 2:
            raise ValueError(value)
        self._half = value // 2


def test_an_attribute_is_written_for_a_block() -> None:
    holder, guarded = Holder(), Guarded()
    with written([Write.of_attribute(holder, "number", 5), Write.of_attribute(guarded, "even", 4)]):
        during = holder.number, guarded.even
    assert (during, holder.number, guarded.even) == ((5, 4), 1, 2)


def test_two_values_for_one_entry() -> None:
    held = {"a": 1}
    with written([Write(held, "a", 2), Write(held, "a", 3)]):
        during = held["a"]
    assert (during, held) == (3, {"a": 1})


def test_entries_are_restored_after_an_exception() -> None:
    held = {"a": 1}
    with pytest.raises(KeyError), written([Write(held, "a", 2)]):
        raise KeyError
    assert held == {"a": 1}


@pytest.mark.parametrize(
    "bad", [Write.of_attribute(Guarded(), "even", 3), Write({}, "b", 3)], ids=["refused", "absent"]
)
def test_a_write_that_fails_takes_the_ones_before_it_back(bad: Write) -> None:
    held = {"a": 1}
    with pytest.raises((ValueError, KeyError)), written([Write(held, "a", 2), bad]):
        pass
    assert held == {"a": 1}
