"""Networks that depend on the values of their input are analysed as they ran for real."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback, find_groups, prune_
from lightning_taylor_prune.groups.find import groups_of_calls
from lightning_taylor_prune.tracing.answers import with_answers
from lightning_taylor_prune.tracing.call import Call, decode_calls, encode_calls
from lightning_taylor_prune.tracing.paths import answered_paths
from tests.lightning_modules import Classifier, loader, trainer
from tests.oracles import differences, mask_readers_, random_units, relative_error, state_of

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

Read = Callable[[Tensor], Tensor]


class Asking(nn.Module):
    """Asks for values of its input, or of what it computes from it, in the middle of the network."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.read = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 10), read
        self.register_buffer("calls", torch.zeros(()))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.c(self.read(F.relu(self.b(self.a(x)))).mean((2, 3)))


def most_important(h: Tensor) -> Tensor:
    places = (h.mean(1) > h.mean()).nonzero()
    chosen = h[places[:, 0], :, places[:, 1], places[:, 2]]
    return h + chosen.mean(0)[:, None, None]


READS: dict[str, Read] = {
    "item": lambda h: h * (1 + h.detach().mean().item()),
    "bool": lambda h: h * 2 if h.sum() > 0 else h - 1,
    "int": lambda h: h[:, :, : 2 + int(h.detach().mean().clamp(0, 1))],
    "tolist": lambda h: h * sum(value > 0 for value in h.detach().mean((1, 2, 3)).tolist()),
    "nonzero": most_important,
    "mask": lambda h: h.permute(0, 2, 3, 1)[h.mean(1) > 0].mean(0)[None, :, None, None],
    "masked_select": lambda h: h * torch.masked_select(h, h > 0).mean(),
    "unique": lambda h: h / len(torch.unique(h.detach().round())),
    "equal": lambda h: h if torch.equal(h, h + 1) else h * 3,
    "while": lambda h: _doubled_until_large(h),
}


def _doubled_until_large(h: Tensor) -> Tensor:
    while h.detach().abs().max() < 10:
        h = h * 2
    return h


reads = pytest.mark.parametrize("read", READS.values(), ids=READS.keys())


@reads
def test_the_whole_network_is_analysed(read: Read) -> None:
    assert {group.name for group in find_groups(Asking(read), IMAGES)} >= {"a"}


@reads
def test_pruned_equals_masked(read: Read) -> None:
    model = Asking(read)
    groups = find_groups(model, IMAGES)
    plan = groups.plan({"a": random_units(groups, 0.5)["a"]})
    masked = mask_readers_(copy.deepcopy(model), plan)
    prune_(model, plan)
    assert relative_error(model(IMAGES), masked(IMAGES)) < 1e-10


@reads
def test_the_network_is_unchanged(read: Read) -> None:
    model = Asking(read)
    before, random_state = state_of(model), torch.get_rng_state()
    with_answers(model, Call("", (IMAGES,)))
    assert differences(before, state_of(model)) == []
    assert torch.equal(torch.get_rng_state(), random_state)


@reads
def test_answers_survive_a_checkpoint(read: Read) -> None:
    model = Asking(read)
    calls = answered_paths(model, [Call("", (IMAGES,))])
    encoded = encode_calls(calls, torch.device("cpu"))
    assert encoded is not None
    again = groups_of_calls(model, decode_calls(encoded, torch.device("cpu")))
    assert {g.name: g.num_channels for g in again} == {g.name: g.num_channels for g in groups_of_calls(model, calls)}


class Mixture(nn.Module):
    """Sends every example to one of its experts; the last one gets none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gate = nn.Linear(6, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        chosen = self.gate(h).argmax(-1)
        mixed = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            places = (chosen == number).nonzero().squeeze(1)
            if len(places):
                mixed = mixed.index_add(0, places, expert(h[places]))
        return self.head(h + mixed)


def test_an_expert_that_got_nothing_still_fits_afterwards() -> None:
    model, x = Mixture(), torch.randn(32, 6)
    groups = find_groups(model, x)
    prune_(model, groups.plan(random_units(groups, 0.4)))
    assert model.experts[3](F.relu(model.stem(x))).shape == F.relu(model.stem(x)).shape


def fit(read: Read, **options: Any) -> tuple[Classifier, TaylorPruningCallback]:
    class Network(Asking):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.double()).float()

    module, pruning = Classifier(Network(read)), TaylorPruningCallback(every_n_steps=3, filters_per_prune=2)
    trainer(pruning, max_epochs=2, **options).fit(module, loader())
    return module, pruning


@pytest.mark.parametrize("name", ["bool", "nonzero", "tolist"])
def test_the_callback_prunes_the_whole_network(name: str) -> None:
    module, _ = fit(READS[name])
    assert module.network.a.out_channels < 8


@pytest.mark.parametrize("read", [READS["bool"], lambda h: h], ids=["run for real", "traced"])
def test_what_the_code_prints_is_not_printed_again(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    class Talking(Asking):
        def forward(self, x: Tensor) -> Tensor:
            print("forward", x.shape)
            return super().forward(x)

    find_groups(Talking(read), IMAGES)
    assert capsys.readouterr().out == ""


@torch.library.custom_op("tests::picky", mutates_args=())
def picky(x: Tensor) -> Tensor:
    return 2 * x


@picky.register_fake
def _refuse(x: Tensor) -> Tensor:
    raise RuntimeError("not in this precision")


def test_what_only_fake_tensors_refuse_runs_on_zeros() -> None:
    groups = find_groups(Asking(lambda h: picky(h.detach()).mean() + h), IMAGES)
    assert "a" in {group.name for group in groups}
