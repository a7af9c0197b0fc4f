"""Sizes that modules hold in attributes, and sizes that code takes from another axis."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_taylor_prune import TaylorPruningCallback, find_groups, load_pruned, prune_
from lightning_taylor_prune.groups import infer_sizes, search
from lightning_taylor_prune.groups.trial import Trial
from lightning_taylor_prune.modules.sizes import find_sizes, size_at, size_updates
from tests.lightning_modules import Classifier, loader, trainer
from tests.oracles import evaluate, relative_error, zero_

TOKENS = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(3), dtype=torch.double)


class Attention(nn.Module):
    """Number of heads in an attribute, width of a head in another."""

    def __init__(self, width: int = 12, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def heads(self) -> int:
        return self.num_heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads(), self.head_dim).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, self.heads() * self.head_dim))


class InTuple(Attention):
    """Number of heads inside a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (7, self.num_heads)
        del self.num_heads

    def heads(self) -> int:
        return self.sizes[1]


class InSettings(Attention):
    """Number of heads in an object of settings."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=self.num_heads, name="small")
        del self.num_heads

    def heads(self) -> int:
        return self.config.heads


class Product(Attention):
    """Only the product of number and width is in an attribute: it shrinks in proportion."""

    def __init__(self) -> None:
        super().__init__()
        self.all_heads = self.num_heads * self.head_dim
        del self.num_heads

    def heads(self) -> int:
        return self.all_heads // self.head_dim


class FromWidth(Attention):
    """Takes the width of a head from the width of the residual stream, which then loses blocks along with heads."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class SharedHeads(nn.Module):
    """Two query heads for each key-value head, positions by rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 12), nn.Linear(12, 12)
        self.proj = nn.Linear(24, 12)
        self.register_buffer("frequencies", torch.rand(3))

    def rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[-2]), torch.cat([self.frequencies] * 2))
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, enable_gqa=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    """torch's own, which wants heads x width to be the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Cell(nn.Module):
    """Holds the width of its first input, for those who call it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.inner = 4, nn.Linear(10, 8)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        return self.inner(torch.cat([hidden, context], -1)).relu()


class InChild(nn.Module):
    """Splits its channels by a size that a child holds, before the child runs."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.cell, self.proj = nn.Linear(12, 10), Cell(), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        both, size = self.both(x), self.cell.hidden_size
        hidden, context = both.split([size, both.shape[-1] - size], -1)
        return self.proj(self.cell(hidden.tanh(), context.relu()))


class Network(nn.Module):
    """Blocks in a residual stream."""

    def __init__(self, block, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(9, 12), nn.Linear(12, 10)
        self.blocks = nn.ModuleList([block() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x.mean(1))


BLOCKS = {
    "attribute": (Attention, {"embed": 12, "blocks.0.qkv": 4, "blocks.1.qkv": 4}),
    "tuple": (InTuple, {"embed": 12, "blocks.0.qkv": 4, "blocks.1.qkv": 4}),
    "settings": (InSettings, {"embed": 12, "blocks.0.qkv": 4, "blocks.1.qkv": 4}),
    "product": (Product, {"embed": 12, "blocks.0.qkv": 4, "blocks.1.qkv": 4}),
    "from_width": (FromWidth, {"embed": 4}),
    "shared_heads": (SharedHeads, {"embed": 12, "blocks.0.q": 2, "blocks.1.q": 2}),
    "child": (
        InChild,
        {"embed": 12} | {f"blocks.{i}.{name}": n for i in (0, 1) for name, n in (("both", 10), ("cell.inner", 8))},
    ),
    "multi_head": (MultiHead, {"embed": 4}),
}
blocks = pytest.mark.parametrize("block", [block for block, _ in BLOCKS.values()], ids=BLOCKS)


def build(block) -> nn.Module:
    torch.manual_seed(0)
    return Network(block).double()


def cut(groups):
    return groups.plan({g.name: [i % g.num_channels for i in range(1 + g.num_channels // 4)] for g in groups})


@pytest.mark.parametrize(("block", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_groups_and_their_sizes(block, expected) -> None:
    groups = find_groups(build(block), TOKENS)
    assert {g.name: g.num_channels for g in groups} == expected


@blocks
def test_pruned_equals_masked(block) -> None:
    model = build(block)
    masked = copy.deepcopy(model)
    plan = cut(find_groups(model, TOKENS))
    zero_(masked, plan)
    prune_(model, plan)
    assert relative_error(*(evaluate(m, (TOKENS,)) for m in (model, masked))) < 1e-10


@blocks
def test_two_cuts_equal_one(block) -> None:
    once, twice = build(block), build(block)
    groups = find_groups(once, TOKENS)
    plan = cut(groups)
    prune_(once, plan)
    groups = find_groups(twice, TOKENS)
    names = list(plan.removed)
    half = prune_(twice, groups.plan({names[0]: plan.removed[names[0]]}))
    prune_(twice, half.plan({name: plan.removed[name] for name in names[1:]}))
    assert torch.equal(*(evaluate(m, (TOKENS,)) for m in (once, twice)))


@blocks
def test_finding_groups_does_not_change_attributes(block) -> None:
    model = build(block)
    before = [find_sizes(module) for module in model.modules()]
    find_groups(model, TOKENS)
    assert [find_sizes(module) for module in model.modules()] == before


def test_the_temperature_is_kept() -> None:
    model = build(Attention)
    prune_(model, cut(find_groups(model, TOKENS)))
    assert [(b.num_heads, b.head_dim) for b in model.blocks] == [(2, 3), (2, 3)]


@pytest.mark.parametrize(("path", "kind"), [("count", int), ("pair.1", tuple), ("items.0", list), ("own.size", int)])
def test_a_size_is_set_where_it_is_held(path, kind) -> None:
    module = nn.Module()
    module.count, module.pair, module.items, module.own = 5, (1, 5), [5, 2], SimpleNamespace(size=5)
    for owner, name, value in size_updates(module, {path: 3}):
        setattr(owner, name, value)
    assert size_at(module, path) == 3
    assert isinstance({"count": module.count, "pair.1": module.pair, "items.0": module.items}.get(path, 3), kind)


class Images(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Network(Attention)
        self.inside.embed = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x.squeeze(1))


def test_a_pruned_checkpoint_keeps_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier(Images())
    pruning = TaylorPruningCallback(every_n_steps=2, filters_per_prune=3, max_prunes=3)
    fit = trainer(pruning, default_root_dir=tmp_path)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    example = torch.randn(2, 1, 8, 8)
    fresh = load_pruned(tmp_path / "last.ckpt", Images())
    assert torch.equal(*(evaluate(m, (example,)) for m in (fresh, module.network)))


class ManyIntegers(Attention):
    """Holds integers that look like sizes and are none."""

    def __init__(self) -> None:
        super().__init__()
        self.irrelevant, self.others = 12, (2, 4, 6, 8, 12, 24)


class HardCoded(Attention):
    """Number of heads in the code."""

    def heads(self) -> int:
        return 4


@pytest.fixture
def tried(monkeypatch) -> list[tuple[Trial, str, str, int | None]]:
    """Trial, module, path and value of every integer that is tried alone."""
    found, run = [], Trial.run

    def recorded(trial: Trial, rules=(), afresh=False):
        if len(rules) == 1:
            found.append((trial, rules[0].module, rules[0].path, trial.value(rules[0])))
        return run(trial, rules, afresh)

    monkeypatch.setattr(Trial, "run", recorded)
    return found


def test_an_integer_is_set_to_a_number_once_and_once_more_to_see_what_is_read_then(tried) -> None:
    find_groups(Network(HardCoded, depth=1), TOKENS.float())
    times = Counter((id(trial), *effect) for trial, *effect in tried)
    assert max(times.values()) == 2


def test_integers_that_the_code_does_not_read_are_not_tried(tried) -> None:
    find_groups(Network(ManyIntegers, depth=1), TOKENS.float())
    assert {path for _, _, path, _ in tried} == {"num_heads"}


def test_what_is_inferred_of_a_line_in_one_block_is_not_tried_in_the_others(monkeypatch) -> None:
    asked, find_rewriting = [], search.find_rewriting
    monkeypatch.setattr(search, "find_rewriting", lambda *args: asked.append(args) or find_rewriting(*args))
    find_groups(Network(HardCoded, depth=5), TOKENS.float())
    assert len(asked) == 1


class NothingFits(Attention):
    """Fails at another line with every one of its integers, and gets past it with none."""

    def __init__(self) -> None:
        super().__init__()
        self.several = [12] * 10

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        width = 3 + 7 * abs(sum(self.several) - 120)
        q, k, v = self.qkv(x).view(b, n, 3, 4, width).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 4 * width))


class Pieces(nn.Module):
    """Splits its channels into pieces, all of whose widths must change for the code to get past the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.wide, self.last = [4, 4, 4], nn.Linear(9, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.wide(x).split(self.pieces, dim=-1)
        return self.last(a * b + c)


@pytest.fixture
def steps(monkeypatch) -> Counter[int]:
    """How many sets of integers each search went on from."""
    found, passes, numbers = Counter(), infer_sizes._passes, []

    def counted(trial: Trial, step: infer_sizes._Step, further):
        numbers.extend([len(numbers)] if len(step.seen) == 1 else [])
        found[len(numbers)] += 1
        return passes(trial, step, further)

    monkeypatch.setattr(infer_sizes, "_passes", counted)
    return found


def test_the_search_for_several_integers_is_bounded(steps) -> None:
    find_groups(Network(NothingFits, depth=1), TOKENS.float())
    assert max(steps.values()) == infer_sizes._MOST_STEPS


def test_a_search_that_gets_on_is_followed_before_others_are_begun(steps) -> None:
    assert [(group.name, group.num_channels) for group in find_groups(Pieces(), TOKENS.float())] == [("wide", 4)]
    assert max(steps.values()) <= 3
