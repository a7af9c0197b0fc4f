"""A stage that must keep its channels does not lock the stages that run the same lines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lightning_taylor_prune import find_groups
from tests.oracles import masked_error, randomize_norms_


class Attention(nn.Module):
    """Attention whose keys and values see a coarser image; with a single head nothing tells how wide it is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.coarse = nn.Linear(width, width), nn.Conv2d(width, width, 2, 2)
        self.both, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, side: int) -> Tensor:
        batch, length, width = x.shape
        q = self.query(x).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
        x = self.coarse(x.transpose(1, 2).reshape(batch, width, side, side)).reshape(batch, width, -1).transpose(1, 2)
        k, v = self.both(x).reshape(batch, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Pyramid(nn.Module):
    def __init__(self, heads: Sequence[int], blocks: int = 2) -> None:
        super().__init__()
        widths = [8 * h for h in heads]
        self.stems = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in zip([1, *widths], widths, strict=False))
        self.stages = nn.ModuleList(
            nn.ModuleList(Attention(w, h) for _ in range(blocks)) for w, h in zip(widths, heads, strict=True)
        )
        self.last = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for stem, stage in zip(self.stems, self.stages, strict=True):
            x = stem(x)
            batch, width, side, _ = x.shape
            x = x.flatten(2).transpose(1, 2)
            for block in stage:
                x = x + block(x, side)
            x = x.transpose(1, 2).reshape(batch, width, side, side)
        return self.last(x.mean((2, 3)))


EXAMPLE = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PYRAMIDS = {
    "none": ((2, 4), {"stems.0": 2, "stems.1": 4}),
    "first": ((1, 2), {"stems.1": 2}),
    "last": ((2, 1), {"stems.0": 2}),
    "first of three": ((1, 2, 4), {"stems.1": 2, "stems.2": 4}),
}
pyramids = pytest.mark.parametrize(("heads", "expected"), PYRAMIDS.values(), ids=PYRAMIDS)


def build(heads: Sequence[int]) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms_(Pyramid(heads)).double()


@pyramids
def test_only_the_stage_that_needs_its_channels_is_locked(heads, expected) -> None:
    assert {group.name: group.num_channels for group in find_groups(build(heads), EXAMPLE)} == expected


def test_pruned_equals_masked() -> None:
    model = build((1, 2, 4))
    groups = find_groups(model, EXAMPLE)
    plan = groups.plan({group.name: [0] for group in groups})
    assert masked_error(model, build((1, 2, 4)), plan, (EXAMPLE,)) < 1e-10
