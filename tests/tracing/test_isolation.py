"""Nothing that a run on fake tensors made is kept by the network's code, wherever it keeps things."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune.errors import PruningWarning
from lightning_taylor_prune.groups.find import find_groups

TABLE: dict[int, Tensor] = {}
LAST: Tensor | None = None


@functools.lru_cache
def memo(n: int) -> Tensor:
    return torch.arange(n).float()


def in_table(n: int) -> Tensor:
    return TABLE.setdefault(n, torch.arange(n).float())


def in_default(n: int, known: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return known.setdefault(n, torch.arange(n).float())


def in_global(n: int) -> Tensor:
    global LAST
    LAST = torch.arange(n).float() if LAST is None else LAST
    return LAST


def in_attribute(n: int) -> Tensor:
    in_attribute.known = getattr(in_attribute, "known", None)  # type: ignore[attr-defined]
    if in_attribute.known is None:  # type: ignore[attr-defined]
        in_attribute.known = torch.arange(n).float()  # type: ignore[attr-defined]
    return in_attribute.known  # type: ignore[attr-defined,no-any-return]


def closure() -> Callable[[int], Tensor]:
    known = None

    def inner(n: int) -> Tensor:
        nonlocal known
        known = torch.arange(n).float() if known is None else known
        return known

    return inner


class Slots:
    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: Tensor | None = None

    def __call__(self, n: int) -> Tensor:
        self.known = torch.arange(n).float() if self.known is None else self.known
        return self.known


class OnClass:
    known: Tensor | None = None

    def __call__(self, n: int) -> Tensor:
        if OnClass.known is None:
            OnClass.known = torch.arange(n).float()
        return OnClass.known

    @functools.lru_cache  # noqa: B019
    def method(self, n: int) -> Tensor:
        return torch.arange(n).float()


KEEPERS = {
    "memo": memo,
    "table": in_table,
    "default": in_default,
    "global": in_global,
    "function_attribute": in_attribute,
    "closure": closure(),
    "slots": Slots(),
    "class": OnClass(),
    "memo_of_method": OnClass().method,
}


class Keeping(nn.Module):
    def __init__(self, keep: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.keep = nn.Linear(6, 8), nn.Linear(8, 3), keep

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x + self.keep(6)).relu())


@pytest.mark.parametrize("name", KEEPERS)
def test_the_network_returns_real_tensors_after_its_analysis(name: str) -> None:
    model = Keeping(KEEPERS[name])
    groups = find_groups(model, torch.zeros(2, 6))
    assert (type(model(torch.zeros(2, 6))), [g.name for g in groups]) == (torch.Tensor, ["first"])


def yields(function: Callable[[int], Tensor]) -> Any:
    """Hide a function in a generator, into which nobody looks."""
    while True:
        yield function


@functools.cache
def hidden_memo(n: int) -> Tensor:
    return torch.arange(n).float()


class Missing(dict[int, Tensor]):
    def __missing__(self, n: int) -> Tensor:
        return self.setdefault(n, torch.arange(n).float())


def test_a_memo_that_nobody_could_see_is_emptied() -> None:
    functions = yields(hidden_memo)
    model = Keeping(lambda n: next(functions)(n))
    find_groups(model, torch.zeros(2, 6))
    assert type(model(torch.zeros(2, 6))) is torch.Tensor


def test_any_other_holder_is_named() -> None:
    functions = yields(Missing().__getitem__)
    model = Keeping(lambda n: next(functions)(n))
    with pytest.warns(PruningWarning, match="kept a tensor without values.* entry '6' of a dict"):
        find_groups(model, torch.zeros(2, 6))
    assert type(model(torch.zeros(2, 6))) is torch.Tensor


class KeepsAll(Missing):
    """A table from which nothing is deleted in the usual way, as results of networks are."""

    def __delitem__(self, n: int) -> None:
        raise RuntimeError("nothing is deleted from here")


class KeepsAllInList(list[Tensor]):
    def clear(self) -> None:
        raise RuntimeError("nothing is deleted from here")

    def __call__(self, n: int) -> Tensor:
        if not len(self):
            self.append(torch.arange(n).float())
        return self[0]


@dataclass(frozen=True)
class Frozen:
    known: Tensor | None = None

    def __call__(self, n: int) -> Tensor:
        if self.known is None:
            object.__setattr__(self, "known", torch.arange(n).float())
        assert self.known is not None
        return self.known


@pytest.mark.parametrize("keep", [KeepsAll().__getitem__, KeepsAllInList(), Frozen()], ids=["dict", "list", "frozen"])
@pytest.mark.filterwarnings("ignore:The network's code kept")
def test_a_holder_that_refuses_to_forget_forgets(keep: Callable[[int], Tensor]) -> None:
    functions = yields(keep)
    model = Keeping(lambda n: next(functions)(n))
    find_groups(model, torch.zeros(2, 6))
    assert type(model(torch.zeros(2, 6))) is torch.Tensor


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tasks, self.calls = nn.Conv2d(3, 4, 1), queue.Queue(), Slots()

    def forward(self, x: Tensor) -> Tensor:
        self.tasks.put(1)
        self.calls.known = x
        return self.conv(x)


def test_queues_and_objects_of_a_module_are_put_back() -> None:
    model = Counting()
    find_groups(model, torch.zeros(1, 3, 2, 2))
    assert (model.tasks.qsize(), model.calls.known) == (0, None)


def hooked(hook: Callable[..., Any]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].register_forward_hook(hook)
    return model


def test_what_hooks_keep_is_put_back() -> None:
    kept = {"a": 1}
    find_groups(hooked(lambda module, args, out: kept.__setitem__("a", out)), torch.zeros(2, 4))
    assert kept == {"a": 1}


@pytest.mark.parametrize(
    "read",
    [lambda out: out.mean().item(), lambda out: out.detach().numpy().mean(), lambda out: out.tolist()],
    ids=["item", "numpy", "tolist"],
)
def test_hooks_that_read_numbers_and_return_nothing_do_not_matter(read: Callable[[Tensor], Any]) -> None:
    seen: list[Any] = []
    groups = find_groups(hooked(lambda module, args, out: seen.append(read(out))), torch.zeros(2, 4))
    assert ([g.name for g in groups], seen) == (["0"], [])
