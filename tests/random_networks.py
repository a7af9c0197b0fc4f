"""Networks put together at random from the blocks that real ones are made of, for tests that search for failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

Draw = Callable[[st.SearchStrategy[Any]], Any]

BATCH, IN_CHANNELS, PIXELS = 2, 3, 8


# --- blocks that torch does not have -------------------------------------------------------------------------------


class Residual(nn.Module):
    """Adds what a body makes of ``x`` to ``x``, or to a projection of it."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Concat(nn.ModuleList):
    """Concatenates what several branches make of ``x``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


class Split(nn.ModuleList):
    """Takes the channels apart, sends each part through a branch, and concatenates in reverse order."""

    def __init__(self, branches: Sequence[nn.Module], how: str, channels: int) -> None:
        super().__init__(branches)
        self.how, self.half = how, channels // 2

    def extra_repr(self) -> str:
        return f"how={self.how}"

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.how == "chunk":
            parts = x.chunk(2, 1)
        elif self.how == "slice":
            parts = (x[:, :half], x[:, half:])
        else:  # a size that the module holds
            parts = x.split(self.half, 1)
        return torch.cat([branch(part) for branch, part in zip(self, parts, strict=True)][::-1], 1)


class Shuffle(nn.Module):
    """Interleaves groups of channels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def extra_repr(self) -> str:
        return f"groups={self.groups}"

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class SqueezeExcite(nn.Module):
    """Scales every channel by what all of them say on average."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


class Attention(nn.Module):
    """Self-attention over the pixels; the number or the width of the heads is held, the other follows."""

    def __init__(self, channels: int, heads: int, width: int, holds: str) -> None:
        super().__init__()
        self.heads, self.width, self.holds = heads, width, holds
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * heads * width), nn.Linear(heads * width, channels)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, width={self.width}, holds={self.holds}"

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        b, n, _ = tokens.shape
        sizes = {"both": (self.heads, self.width), "heads": (self.heads, -1), "width": (-1, self.width)}[self.holds]
        q, k, v = (t.reshape(b, n, *sizes).transpose(1, 2) for t in self.qkv(self.norm(tokens)).chunk(3, -1))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.project(out).transpose(1, 2).reshape(x.shape)


class LayerNormOverChannels(nn.LayerNorm):
    """Layer normalisation of images, over their channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PadChannels(nn.Module):
    """Puts channels of zeros before and after, as shortcuts without parameters do."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def extra_repr(self) -> str:
        return f"{self.before}, {self.after}"

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class Gate(nn.Module):
    """Multiplies two convolutions of ``x``, one of them through a sigmoid."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Conv2d(channels, out, 1), nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid()


def tied_convolutions(channels: int) -> nn.Module:
    """Chain two convolutions of one weight, each with its own normalisation."""
    first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
    second.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm2d(channels), nn.ReLU(), second, nn.BatchNorm2d(channels))


# --- drawing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a block is put.

    Attributes:
        channels: Channels that come in.
        pixels: Height and width that come in.
        keeps_pixels: Height and width must stay, since another branch has them too.
        depth: Levels of branches that may still be nested.
    """

    channels: int
    pixels: int
    keeps_pixels: bool = False
    depth: int = 2


Block = Callable[[Draw, Place], tuple[nn.Module, Place]]
BLOCKS: dict[str, tuple[Block, Callable[[Place], bool]]] = {}
"""Blocks by name, each with the condition under which it can be put at a place."""


def block(name: str, fits: Callable[[Place], bool] = lambda place: True) -> Callable[[Block], Block]:
    def register(function: Block) -> Block:
        BLOCKS[name] = function, fits
        return function

    return register


def divisors(number: int) -> list[int]:
    return [d for d in range(2, number + 1) if number % d == 0]


def may_shrink(place: Place) -> bool:
    return not place.keeps_pixels and place.pixels % 2 == 0 and place.pixels >= 4


def may_grow(place: Place) -> bool:
    return not place.keeps_pixels and place.pixels <= PIXELS


WIDTHS = st.integers(2, 12)


@block("conv")
def conv(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    out, kernel = draw(WIDTHS), draw(st.sampled_from([1, 3]))
    stride = draw(st.sampled_from([1, 2])) if may_shrink(place) else 1
    options = {"stride": stride, "padding": kernel // 2, "bias": draw(st.booleans())}
    return nn.Conv2d(place.channels, out, kernel, **options), replace(
        place, channels=out, pixels=place.pixels // stride
    )


@block("grouped", lambda place: place.channels > 1)
def grouped(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    groups = draw(st.sampled_from(divisors(place.channels)))
    out = groups * draw(st.integers(1, 3))
    return nn.Conv2d(place.channels, out, 3, padding=1, groups=groups), replace(place, channels=out)


@block("depthwise")
def depthwise(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    out = place.channels * draw(st.integers(1, 2))
    return nn.Conv2d(place.channels, out, 3, padding=1, groups=place.channels), replace(place, channels=out)


@block("transposed", may_grow)
def transposed(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    groups = draw(st.sampled_from([1, *divisors(place.channels)]))
    out = groups * draw(st.integers(1, max(1, 12 // groups)))
    module = nn.ConvTranspose2d(place.channels, out, 2, stride=2, groups=groups)
    return module, replace(place, channels=out, pixels=2 * place.pixels)


@block("batch_norm")
def batch_norm(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return nn.BatchNorm2d(place.channels, affine=draw(st.booleans())), place


@block("group_norm")
def group_norm(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return nn.GroupNorm(draw(st.sampled_from([1, *divisors(place.channels)])), place.channels), place


@block("layer_norm")
def layer_norm(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return LayerNormOverChannels(place.channels), place


@block("activation")
def activation(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    kind = draw(st.sampled_from([nn.ReLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.PReLU]))
    return kind(place.channels) if kind is nn.PReLU else kind(), place


@block("pool", may_shrink)
def pool(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    kind = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
    return kind(2), replace(place, pixels=place.pixels // 2)


@block("pad", lambda place: not place.keeps_pixels and 1 < place.pixels <= PIXELS)
def pad(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    kind = draw(st.sampled_from([nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d]))
    return kind(1), replace(place, pixels=place.pixels + 2)


@block("pad_channels")
def pad_channels(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    before, after = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    return PadChannels(before, after), replace(place, channels=place.channels + before + after)


@block("pixel_shuffle", lambda place: may_grow(place) and place.channels % 4 == 0)
def pixel_shuffle(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return nn.PixelShuffle(2), replace(place, channels=place.channels // 4, pixels=2 * place.pixels)


@block("pixel_unshuffle", lambda place: may_shrink(place) and place.channels <= 8)
def pixel_unshuffle(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return nn.PixelUnshuffle(2), replace(place, channels=4 * place.channels, pixels=place.pixels // 2)


@block("shuffle", lambda place: place.channels > 1)
def shuffle(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return Shuffle(draw(st.sampled_from(divisors(place.channels)))), place


@block("squeeze_excite")
def squeeze_excite(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return SqueezeExcite(place.channels, draw(st.integers(2, 6))), place


@block("gate")
def gate(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    out = draw(WIDTHS)
    return Gate(place.channels, out), replace(place, channels=out)


@block("attention", lambda place: place.pixels <= PIXELS)
def attention(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    holds = draw(st.sampled_from(["both", "heads", "width"]))
    return Attention(place.channels, draw(st.integers(1, 4)), draw(st.integers(2, 4)), holds), place


@block("tied")
def tied(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    return tied_convolutions(place.channels), place


@block("residual", lambda place: place.depth > 0)
def residual(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    layers, end = chain(draw, inside(place), 3)
    if end.channels != place.channels and draw(st.booleans()):
        projection = nn.Conv2d(place.channels, end.channels, 1)
        return Residual(layers, projection), replace(place, channels=end.channels)
    if end.channels != place.channels:
        layers.append(nn.Conv2d(end.channels, place.channels, 3, padding=1))
    return Residual(layers, nn.Identity()), place


@block("concat", lambda place: place.depth > 0 and place.channels <= 16)
def concat(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    drawn = [chain(draw, inside(place), 2) for _ in range(draw(st.integers(2, 3)))]
    branches = [layers for layers, _ in drawn]
    if draw(st.booleans()):
        branches[0], drawn[0] = nn.Identity(), (nn.Sequential(), place)
    return Concat(branches), replace(place, channels=sum(end.channels for _, end in drawn))


@block("split", lambda place: place.depth > 0 and place.channels % 2 == 0)
def split(draw: Draw, place: Place) -> tuple[nn.Module, Place]:
    part = replace(inside(place), channels=place.channels // 2)
    drawn = [chain(draw, part, 2, least=0) for _ in range(2)]
    how = draw(st.sampled_from(["chunk", "slice", "held"]))
    module = Split([layers for layers, _ in drawn], how, place.channels)
    return module, replace(place, channels=sum(end.channels for _, end in drawn))


def inside(place: Place) -> Place:
    return replace(place, keeps_pixels=True, depth=place.depth - 1)


def chain(draw: Draw, place: Place, most: int, least: int = 1) -> tuple[nn.Sequential, Place]:
    """Draw blocks one after the other."""
    layers = nn.Sequential()
    for _ in range(draw(st.integers(least, most))):
        fitting = [name for name, (_, fits) in BLOCKS.items() if fits(place) and place.channels <= 48]
        module, place = BLOCKS[draw(st.sampled_from(fitting or ["conv"]))][0](draw, place)
        layers.append(module)
    return layers, place


@st.composite
def networks(draw: Draw, most: int = 6) -> nn.Module:
    """Draw a classifier of images ``[2, 3, 8, 8]``, or a network that maps them to images; in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 99)))
        stem = nn.Conv2d(IN_CHANNELS, draw(WIDTHS), 3, padding=1)
        body, end = chain(draw, Place(stem.out_channels, PIXELS), most)
        ending = draw(st.sampled_from(["pool", "flatten", "conv"]))
        if ending == "conv":
            tail = nn.Sequential(nn.Conv2d(end.channels, 5, 3, padding=1))
        elif ending == "pool":
            tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(end.channels, 5))
        else:
            tail = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * end.channels, 5))
        return nn.Sequential(stem, body, tail)


def example() -> tuple[Tensor]:
    """Return seeded images in double precision."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(BATCH, IN_CHANNELS, PIXELS, PIXELS, generator=generator, dtype=torch.float64),)
