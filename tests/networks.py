"""Tiny networks, one for each thing that breaks pruners; every test draws on these by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Network:
    """How to build a network and its example arguments, and the module class whose code it runs."""

    factory: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]

    def build(self, seed: int = 0) -> nn.Module:
        """Return the network with seeded weights, in training mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.factory()

    def example(self, seed: int = 0) -> tuple[Any, ...]:
        """Return seeded positional arguments."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.inputs()


NETWORKS: dict[str, Network] = {}


def images(channels: int = 3, size: int = 8) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(2, channels, size, size),)


def network(name: str, inputs: Callable[[], tuple[Any, ...]] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Register a module class, or a function that builds a module, under a name."""

    def register(factory: Any) -> Any:
        assert name not in NETWORKS
        NETWORKS[name] = Network(lambda: factory(**options), inputs or images())
        return factory

    return register


def conv(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


def head(c_in: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


# --- chains -------------------------------------------------------------------------------------------------------


@network("sequential")
def sequential() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.ReLU(), conv(10, 14), nn.ReLU(), conv(14, 5))


@network("conv_bn")
def conv_bn() -> nn.Module:
    return nn.Sequential(
        conv(3, 10, bias=False), nn.BatchNorm2d(10), nn.ReLU(), conv(10, 14), nn.BatchNorm2d(14), nn.ReLU(), head(14)
    )


@network("norm_without_affine")
def norm_without_affine() -> nn.Module:
    return nn.Sequential(
        conv(3, 10),
        nn.BatchNorm2d(10, affine=False),
        nn.ReLU(),
        conv(10, 12),
        nn.BatchNorm2d(12, track_running_stats=False),
        nn.ReLU(),
        head(12),
    )


@network("flatten_to_linear")
def flatten_to_linear() -> nn.Module:
    return nn.Sequential(
        conv(3, 10),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(40, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


@network("prelu_per_channel")
def prelu_per_channel() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.PReLU(10), conv(10, 12), nn.PReLU(), head(12))


@network("conv1d", lambda: (torch.randn(2, 3, 12),))
def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 10, 3),
        nn.BatchNorm1d(10),
        nn.ReLU(),
        nn.Conv1d(10, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


@network("conv3d", lambda: (torch.randn(2, 3, 4, 6, 6),))
def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 10, 3, padding=1),
        nn.BatchNorm3d(10),
        nn.ReLU(),
        nn.Conv3d(10, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


@network("conv_transpose")
def conv_transpose() -> nn.Module:
    return nn.Sequential(
        conv(3, 10), nn.ReLU(), nn.ConvTranspose2d(10, 12, 2, stride=2), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 5)
    )


@network("conv_transpose_grouped")
def conv_transpose_grouped() -> nn.Module:
    return nn.Sequential(
        conv(3, 12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 5),
    )


@network("depthwise_separable")
def depthwise_separable() -> nn.Module:
    return nn.Sequential(
        conv(3, 10, 1),
        nn.BatchNorm2d(10),
        conv(10, 10, groups=10),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        conv(10, 12, 1),
        nn.ReLU(),
        head(12),
    )


@network("depthwise_multiplier_2")
def depthwise_multiplier_2() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.ReLU(), conv(10, 20, groups=10), nn.BatchNorm2d(20), nn.ReLU(), conv(20, 5))


@network("grouped")
def grouped() -> nn.Module:
    return nn.Sequential(
        conv(3, 12), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 18, groups=6), nn.BatchNorm2d(18), nn.ReLU(), head(18)
    )


@network("group_norm_1", groups=1)
@network("group_norm_2", groups=2)
@network("group_norm_6", groups=6)
@network("group_norm_12", groups=12)
@network("group_norm_6_without_affine", groups=6, affine=False)
def group_norm(groups: int, affine: bool = True) -> nn.Module:
    return nn.Sequential(
        conv(3, 12), nn.GroupNorm(groups, 12, affine=affine), nn.ReLU(), conv(12, 10), nn.ReLU(), head(10)
    )


@network("layer_norm", lambda: (torch.randn(2, 6, 7),))
def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 5))


@network("rms_norm", lambda: (torch.randn(2, 6, 7),))
def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.RMSNorm(12), nn.SiLU(), nn.Linear(12, 5))


@network("layer_norm_over_images")
def layer_norm_over_images() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.LayerNorm([10, 8, 8]), nn.ReLU(), conv(10, 5))


@network("local_response_norm")
def local_response_norm() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.LocalResponseNorm(3), conv(10, 12), nn.ReLU(), conv(12, 5))


@network("instance_norm")
def instance_norm() -> nn.Module:
    return nn.Sequential(
        conv(3, 10),
        nn.InstanceNorm2d(10, affine=True, track_running_stats=True),
        nn.ReLU(),
        conv(10, 12),
        nn.InstanceNorm2d(12, track_running_stats=True),
        nn.ReLU(),
        conv(12, 5),
    )


@network("pixel_shuffle")
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(conv(3, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 10), nn.PixelUnshuffle(2), conv(40, 5))


@network("channel_shuffle_module")
def channel_shuffle_module() -> nn.Module:
    return nn.Sequential(conv(3, 12), nn.ReLU(), nn.ChannelShuffle(3), conv(12, 5))


@network("glu")
def glu() -> nn.Module:
    return nn.Sequential(conv(3, 20), nn.GLU(dim=1), conv(10, 5))


@network("softmax_over_channels")
def softmax_over_channels() -> nn.Module:
    return nn.Sequential(conv(3, 10), nn.Softmax(dim=1), conv(10, 5))


@network("unfold_patches")
def unfold_patches() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.Unfold(2, stride=2), nn.Conv1d(32, 5, 1))


@network("weight_norm", norm=parametrizations.weight_norm)
@network("spectral_norm", norm=parametrizations.spectral_norm)
def normed_weights(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(conv(3, 10)), nn.ReLU(), norm(conv(10, 12)), nn.ReLU(), norm(conv(12, 5)))


@network("old_weight_norm", norm="weight_norm")
@network("old_spectral_norm", norm="spectral_norm")
def old_normed_weights(norm: str) -> nn.Module:
    """The hook sets the plain attribute ``weight`` in every forward pass."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = getattr(nn.utils, norm)(conv(3, 10))
    return nn.Sequential(normed, nn.ReLU(), conv(10, 12), nn.ReLU(), conv(12, 5))


@network("frozen")
def frozen() -> nn.Module:
    net = conv_bn()
    net[0].weight.requires_grad = False
    net[1].bias.requires_grad = False
    return net


# --- branches -----------------------------------------------------------------------------------------------------


class _Stem(nn.Module):
    """A first layer that every network below shares."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = conv(3, width)


@network("residual")
class Residual(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a, self.b, self.bn_b = conv(12, 10), nn.BatchNorm2d(10), conv(10, 12), nn.BatchNorm2d(12)
        self.head = head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.bn_b(self.b(F.relu(self.bn_a(self.a(x)))))
        return self.head(F.relu(x))


@network("residual_in_place")
class ResidualInPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.stem(x))
        y = self.bn_b(self.b(self.bn_a(self.a(x)).relu_()))
        y += x
        return self.head(y.clamp_(min=0))


@network("projection_shortcut")
class ProjectionShortcut(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = conv(12, 10, stride=2), conv(10, 16), conv(12, 16, 1, stride=2)
        self.bn, self.head = nn.BatchNorm2d(16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.bn(self.b(F.relu(self.a(x)))) + self.shortcut(x)))


class _OptionA(_Stem):
    def __init__(self) -> None:
        super().__init__(8)
        self.a, self.b, self.bn = conv(8, 10, stride=2), conv(10, 16), nn.BatchNorm2d(16)
        self.c, self.d = conv(16, 12), conv(12, 16)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn(self.b(F.relu(self.a(x))))
        x = F.relu(y + self.shortcut(x[:, :, ::2, ::2], y))
        return self.head(F.relu(x + self.d(F.relu(self.c(x)))))

    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError


@network("option_a_constant")
class OptionAConstant(_OptionA):
    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        planes = 16
        return F.pad(x, (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)


@network("option_a_from_shapes")
class OptionAFromShapes(_OptionA):
    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        missing = y.shape[1] - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))


@network("option_a_pad_after")
class OptionAPadAfter(_OptionA):
    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))


@network("option_a_cat_zeros")
class OptionACatZeros(_OptionA):
    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])
        return torch.cat([x, zeros], 1)


@network("option_a_cat_itself")
class OptionACatItself(_OptionA):
    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)


@network("dense_concat")
class DenseConcat(_Stem):
    def __init__(self) -> None:
        super().__init__(10)
        self.bn_a, self.a = nn.BatchNorm2d(10), conv(10, 6)
        self.bn_b, self.b = nn.BatchNorm2d(16), conv(16, 6)
        self.bn_c, self.head = nn.BatchNorm2d(22), head(22)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(F.relu(self.bn_a(x)))], 1)
        x = torch.cat([x, self.b(F.relu(self.bn_b(x)))], 1)
        return self.head(F.relu(self.bn_c(x)))


@network("squeeze_excite")
class SqueezeExcite(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite, self.last = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 12, 1), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        scale = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.last(x * scale)


@network("squeeze_excite_linear")
class SqueezeExciteLinear(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite, self.last = nn.Linear(12, 6), nn.Linear(6, 12), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c = x.shape[:2]
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).view(b, c)))).sigmoid()
        return self.last(x * scale.view(b, c, 1, 1))


@network("cbam")
class Cbam(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.spatial, self.last = conv(2, 1, 7), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return self.last(x * gate)


@network("max_over_channels")
class MaxOverChannels(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.last = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x * x.max(1, keepdim=True)[0].sigmoid())


@network("gate_by_expand")
class GateByExpand(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = conv(12, 1), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(x * self.gate(x).sigmoid().expand(-1, x.shape[1], -1, -1))


@network("gate_by_expand_constant")
class GateByExpandConstant(GateByExpand):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(x * self.gate(x).sigmoid().expand(-1, 12, -1, -1))


@network("parameter_list_gates")
class ParameterListGates(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.middle, self.last = conv(12, 10), conv(10, 5)
        self.gates = nn.ParameterList([nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(10, 1, 1))])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) * self.gates[0][None, :, None, None]
        return self.last(F.relu(self.middle(x)) * self.gates[1])


@network("interpolate")
class Interpolate(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = conv(12, 12, stride=2), conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.interpolate(F.relu(self.down(x)), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.last(x + F.interpolate(F.avg_pool2d(y, 2), scale_factor=2))


# --- taking apart and putting together ----------------------------------------------------------------------------


class _Parts(_Stem):
    """Subclasses give ``mix``, which rearranges the 12 channels between two convolutions."""

    last_in = 12

    def __init__(self) -> None:
        super().__init__()
        self.last = conv(self.last_in, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(F.relu(self.stem(x))))

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@network("chunk_cat")
class ChunkCat(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, a.sigmoid()], 1)


@network("chunk_3_of_uneven")
class ChunkUneven(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        a, b, c = x[:, 1:].chunk(3, 1)
        return torch.cat([a, x[:, :1], c, b], 1)


@network("slice_cat")
class SliceCat(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return torch.cat([x[:, c // 2 :], x[:, : c // 2].sigmoid()], 1)


@network("slice_quarter")
class SliceQuarter(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        return torch.cat([x[:, : c // 4].tanh(), x[:, c // 4 :]], 1)


@network("slice_constant")
class SliceConstant(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 8:], x[:, :8].sigmoid()], 1)


@network("slice_max")
class SliceMax(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : max(8, x.shape[1] // 2)].sigmoid(), x[:, max(8, x.shape[1] // 2) :]], 1)


@network("slice_from_the_end")
class SliceFromTheEnd(_Parts):
    last_in = 6

    def mix(self, x: Tensor) -> Tensor:
        return x[:, -6:] * x[:, :6]


@network("slice_one")
class SliceOne(_Parts):
    """The first channel gates all: none may take its place."""

    def mix(self, x: Tensor) -> Tensor:
        return x * x[:, :1].sigmoid()


@network("slice_strided")
class SliceStrided(_Parts):
    last_in = 6

    def mix(self, x: Tensor) -> Tensor:
        return x[:, ::2] * x[:, 1::2].sigmoid()


@network("slice_strided_window")
class SliceStridedWindow(_Parts):
    last_in = 4

    def mix(self, x: Tensor) -> Tensor:
        return x[:, 4:12:2]


@network("narrow")
class Narrow(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return torch.cat([x.narrow(1, half, x.shape[1] - half), x.narrow(1, 0, half) * 2], 1)


@network("split_with_sizes")
class SplitWithSizes(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        a, b = x.split([4, 8], 1)
        return torch.cat([b, a.tanh()], 1)


@network("split_one_and_rest")
class SplitOneAndRest(_Parts):
    last_in = 11

    def mix(self, x: Tensor) -> Tensor:
        a, b = x.tensor_split([1], 1)
        return b * a.sigmoid()


@network("channel_index_list")
class ChannelIndexList(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return x[:, [2, 0, 1, *range(3, 12)]]


@network("channel_index_buffer")
class ChannelIndexBuffer(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(12))

    def mix(self, x: Tensor) -> Tensor:
        return x[:, self.order]


@network("channel_select")
class ChannelSelect(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return x + x[:, 3].unsqueeze(1)


@network("channel_shuffle")
class ChannelShuffle(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


@network("permute_then_flatten")
class PermuteThenFlatten(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.stem(x)).permute(0, 2, 3, 1).flatten(1))


@network("view_constant")
class ViewConstant(_Stem):
    def __init__(self) -> None:
        super().__init__(16)
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(F.relu(self.stem(x)), 2).view(-1, 64))


@network("view_minus_one")
class ViewMinusOne(_Stem):
    def __init__(self) -> None:
        super().__init__(16)
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(F.relu(self.stem(x)), 2).view(x.shape[0], -1))


@network("maxout")
class Maxout(_Parts):
    last_in = 6

    def mix(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c // 2, 2, h, w).amax(2)


@network("stack_and_sum")
class StackAndSum(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return torch.stack([x, x.flip(1), x.tanh()], 1).sum(1)


@network("repeat_channels")
class RepeatChannels(_Parts):
    last_in = 48

    def mix(self, x: Tensor) -> Tensor:
        return torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 1)], 1)


@network("roll_channels")
class RollChannels(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return x.roll(1, 1) + x.roll(2, 3)


@network("cumsum_over_channels")
class CumsumOverChannels(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@network("topk_over_channels")
class TopkOverChannels(_Parts):
    last_in = 4

    def mix(self, x: Tensor) -> Tensor:
        return x.topk(4, 1)[0]


@network("in_place_on_slice")
class InPlaceOnSlice(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] = 0
        return x


@network("in_place_copy_into_empty")
class InPlaceCopyIntoEmpty(_Parts):
    last_in = 24

    def mix(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        out = x.new_empty(x.shape[0], 2 * c, *x.shape[2:])
        out[:, :c] = x
        out[:, c:] = x.tanh()
        return out


@network("scaled_by_width")
class ScaledByWidth(_Parts):
    """A number in the code follows the width: the network without a channel is not the masked one."""

    def mix(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** -0.5


@network("positions_by_arange")
class PositionsByArange(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[1]).view(1, -1, 1, 1)


# --- parameters and buffers in unusual places ---------------------------------------------------------------------


@network("buffer_scale")
class BufferScale(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(12, 1, 1))
        self.register_buffer("shift", torch.rand(1, 12, 1, 1), persistent=False)

    def mix(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


@network("plain_tensor_scale")
class PlainTensorScale(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(12, 1, 1)

    def mix(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x)


@network("functional_conv")
class FunctionalConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel_a = nn.Parameter(torch.randn(10, 3, 3, 3))
        self.kernel_b = nn.Parameter(torch.randn(10, 1, 3, 3))
        self.kernel_c = nn.Parameter(torch.randn(5, 10, 1, 1))
        self.shift = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel_a, self.shift, padding=1))
        return F.conv2d(F.relu(F.conv2d(x, self.kernel_b, groups=x.shape[1])), self.kernel_c)


@network("functional_conv_constant_groups")
class FunctionalConvConstantGroups(FunctionalConv):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel_a, self.shift, padding=1))
        return F.conv2d(F.relu(F.conv2d(x, self.kernel_b, groups=10)), self.kernel_c)


@network("weight_standardised")
class WeightStandardised(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        weight = self.last.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        return x + F.conv2d(x, weight).mean((1, 2, 3), keepdim=True)


class ScaledStdConv2d(nn.Conv2d):
    """As in NFNets: filters are standardised by a batch normalisation over their flattened weights."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = self.weight[0].numel() ** -0.5
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * self.scale).view(-1)
        weight = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@network("weight_standardised_by_batch_norm")
def weight_standardised_by_batch_norm() -> nn.Module:
    return nn.Sequential(
        ScaledStdConv2d(3, 10, 3),
        nn.ReLU(),
        ScaledStdConv2d(10, 10, 3, groups=10),
        nn.ReLU(),
        ScaledStdConv2d(10, 12, 3, padding=1),
        nn.ReLU(),
        ScaledStdConv2d(12, 14, 1),
        nn.ReLU(),
        head(14),
    )


def standardised_in_rows(weight: Tensor) -> Tensor:
    rows = weight.view(weight.size(0), -1)
    return ((rows - rows.mean(1, keepdim=True)) / (rows.std(1)[:, None] + 1e-5)).view_as(weight)


def standardised_at_once(weight: Tensor) -> Tensor:
    var, mean = torch.var_mean(weight, dim=[1, 2, 3], keepdim=True)
    return (weight - mean) / torch.sqrt(var + 1e-5)


def standardised_axis_by_axis(weight: Tensor) -> Tensor:
    mean = weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    weight = weight - mean
    return weight / (weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5).expand_as(weight)


def standardised_as_layer(weight: Tensor) -> Tensor:
    return F.layer_norm(weight, weight.shape[1:])


@network("weight_standardised_in_rows", standardise=standardised_in_rows)
@network("weight_standardised_at_once", standardise=standardised_at_once)
@network("weight_standardised_axis_by_axis", standardise=standardised_axis_by_axis)
@network("weight_standardised_as_layer", standardise=standardised_as_layer)
class WeightStandardisedBy(_Stem):
    def __init__(self, standardise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.standardise = standardise
        self.middle, self.last = conv(12, 10), conv(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.standardise(self.stem.weight), self.stem.bias))
        return self.last(F.relu(F.conv2d(x, self.standardise(self.middle.weight))))


@network("tied_weights", lambda: (torch.randn(2, 9),))
class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.decoder = nn.Linear(9, 12), nn.Linear(12, 12), nn.Linear(12, 12, bias=False)
        self.decoder.weight = self.middle.weight
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.decoder(F.relu(self.middle(F.relu(self.encoder(x))))))


@network("tied_transposed", lambda: (torch.randn(2, 9),))
class TiedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t())


@network("embedding", lambda: (torch.randint(0, 9, (2, 6)),))
class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.table(x)))


@network("used_twice")
class UsedTwice(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.again = conv(12, 12)

    def mix(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(self.again(x))
        return x


@network("never_called")
class NeverCalled(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.spare = conv(12, 10)

    def mix(self, x: Tensor) -> Tensor:
        return x


@network("inner_product", lambda: (torch.randn(2, 9), torch.randn(2, 9)))
class InnerProduct(nn.Module):
    """Two activations meet along their channels; the width sets the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(9, 12), nn.Linear(9, 12), nn.Linear(2, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(self.a(x) @ self.b(y).t())


@network("bilinear", lambda: (torch.randn(2, 9), torch.randn(2, 9)))
class Bilinear(nn.Module):
    """Both factors are read by one weight of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both, self.last = (
            nn.Linear(9, 12),
            nn.Linear(9, 8),
            nn.Bilinear(12, 8, 10),
            nn.Linear(10, 5),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(F.relu(self.both(F.relu(self.a(x)), F.relu(self.b(y)))))


@network("max_unpool")
class MaxUnpool(_Parts):
    """As in SegNet: the decoder puts values back to where the maxima stood."""

    def mix(self, x: Tensor) -> Tensor:
        y, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y.tanh(), indices, 2)


@network("fourier_filter")
class FourierFilter(_Parts):
    """As in global filter networks: a weight per channel and frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(12, 8, 5, 2))

    def mix(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.filter.contiguous()), s=x.shape[2:])


@network("scattered_messages", lambda: (torch.randn(6, 9), torch.tensor([[0, 1, 2, 3, 3], [1, 2, 0, 4, 5]])))
class ScatteredMessages(nn.Module):
    """As in graph networks: rows are picked out by data and summed up by data, channels pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.last = nn.Linear(9, 12), nn.Linear(12, 10), nn.Linear(20, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = F.relu(self.message(F.relu(self.embed(x))[edges[0]]))
        nothing = messages.new_zeros(x.shape[0], messages.shape[1])
        added = nothing.index_add(0, edges[1], messages)
        largest = nothing.scatter_reduce(0, edges[1][:, None].expand_as(messages), messages, "amax")
        return self.last(torch.cat([added, largest], 1))


@network("einsum", lambda: (torch.randn(2, 6, 9),))
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 12))
        self.mixing = nn.Parameter(torch.randn(12, 10))
        self.last = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("bnd,dc->bnc", x, self.weight))
        return self.last(torch.einsum("...c,ck->...k", x, self.mixing))


# --- attention ----------------------------------------------------------------------------------------------------


def tokens() -> tuple[Any, ...]:
    return (torch.randn(2, 6, 9),)


class _Attention(nn.Module):
    def __init__(self, heads: int = 4, width: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv = nn.Linear(9, 10), nn.Linear(10, 3 * width)
        self.project, self.last = nn.Linear(width, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.last(x + self.project(self.attend(x)))

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@network("attention_qkv", tokens)
class AttentionQkv(_Attention):
    """Head count in an attribute, width of a head and temperature from the shape."""

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)


@network("attention_qkv_by_head_width", tokens)
class AttentionQkvByHeadWidth(_Attention):
    """Width of a head in the code: whole heads can leave."""

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, -1, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)


@network("attention_qkv_split", tokens)
class AttentionQkvSplit(_Attention):
    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, -1, 3).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@network("attention_single_head", tokens)
class AttentionSingleHead(_Attention):
    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2) * k.shape[-1] ** -0.5).softmax(-1) @ v


@network("attention_single_head_separate", tokens)
class AttentionSingleHeadSeparate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.last = nn.Linear(9, 8), nn.Linear(9, 8), nn.Linear(9, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        return self.last((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ self.v(x))


@network("multihead_attention", tokens)
class MultiheadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(9, 12), nn.MultiheadAttention(12, 4, batch_first=True)
        self.hidden, self.last = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.last(F.gelu(self.hidden(x + self.attention(x, x, x)[0])))


@network("channel_attention", tokens)
class ChannelAttention(_Attention):
    """Channels attend to channels, as in cross-covariance attention."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).transpose(1, 2).chunk(3, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)
        return (weights @ v).transpose(1, 2)


@network("lstm_after_conv", lambda: (torch.randn(2, 3, 12),))
class LstmAfterConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.lstm = nn.Conv1d(3, 10, 3), nn.Conv1d(10, 8, 3), nn.LSTM(8, 6, batch_first=True)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.b(F.relu(self.a(x))).transpose(1, 2))[0][:, -1])


class _Recurrent(nn.Module):
    """A linear layer, something recurrent over the sequence ``[times, batch, width]``, and a linear layer."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(5, 8), nn.Linear(self.width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self.embed(x)))

    def read(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def sequences() -> tuple[Any, ...]:
    return (torch.randn(7, 3, 5),)


@network("lstm_two_directions", sequences)
class LstmTwoDirections(_Recurrent):
    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True)

    def read(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@network("lstm_projected", sequences)
class LstmProjected(LstmTwoDirections):
    width = 10

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 9, num_layers=2, bidirectional=True, proj_size=5)


@network("gru_last_states", sequences)
class GruLastStates(_Recurrent):
    """The states of both directions of the last layer, as classifiers use them."""

    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, num_layers=2, bidirectional=True, bias=False)

    def read(self, x: Tensor) -> Tensor:
        states = self.gru(x)[1]
        return torch.cat([states[-2], states[-1]], 1)


@network("gru_packed", lambda: (torch.randn(3, 7, 5), torch.tensor([7, 7, 7])))
class GruPacked(_Recurrent):
    """Sequences of several lengths, in an order that sorting changes."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        return self.last(nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0])


@network("rnn_learned_state", sequences)
class RnnLearnedState(_Recurrent):
    """The state before the first time is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.state = nn.RNN(8, 6, nonlinearity="relu"), nn.Parameter(torch.randn(1, 1, 6))

    def read(self, x: Tensor) -> Tensor:
        return self.rnn(x, self.state.expand(-1, x.shape[1], -1).contiguous())[0]


@network("lstm_encoder_decoder", sequences)
class LstmEncoderDecoder(_Recurrent):
    """The state of one layer is where another begins."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(8, 6), nn.LSTM(8, 6)

    def read(self, x: Tensor) -> Tensor:
        return self.decoder(x.flip(0), self.encoder(x)[1])[0]


@network("recurrent_cells", sequences)
class RecurrentCells(_Recurrent):
    """Cells of all kinds, one after another at every time; the code holds the width of the first state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(8, 10), nn.GRUCell(10, 7), nn.RNNCell(7, 6)
        self.hidden = 10

    def read(self, x: Tensor) -> Tensor:
        a, cell, b, c = x.new_zeros(x.shape[1], self.hidden), x.new_zeros(x.shape[1], self.hidden), None, None
        seen = []
        for step in x:
            a, cell = self.lstm(step, (a, cell))
            b = self.gru(a, b)
            c = self.rnn(b, c)
            seen.append(c)
        return torch.stack(seen)


@network("recurrent_normalised", sequences)
class RecurrentNormalised(_Recurrent):
    """A weight of the layer is computed by a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = parametrizations.weight_norm(nn.GRU(8, 6), "weight_hh_l0")

    def read(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


# --- operators outside of ATen, sparse matrices, weights per example -----------------------------------------------


@network("deformable")
class Deformable(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.deformed = conv(3, 36), torchvision.ops.DeformConv2d(12, 10, 3, padding=1)
        self.last = conv(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deformed(F.relu(self.stem(x)), self.offset(x)))


@network("graph_convolution", lambda: (torch.randn(6, 5), torch.eye(6).roll(1, 0).to_sparse()))
class GraphConvolution(nn.Module):
    """Neighbours are summed up by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.last(torch.sparse.mm(edges, F.relu(self.embed(x))))


@network("weights_per_example")
class WeightsPerExample(_Stem):
    """Every example has a mixture of kernels of its own: all are convolved at once, a group for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.kernels = nn.Linear(12, 4), nn.Parameter(torch.randn(4, 8, 12, 3, 3) / 10)
        self.last = conv(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        batch, channels, height, width = x.shape
        mixed = torch.einsum("be,eoikl->boikl", self.route(x.mean((2, 3))).sigmoid(), self.kernels)
        flat = x.reshape(1, batch * channels, height, width)
        y = F.conv2d(flat, mixed.flatten(0, 1), groups=batch, padding=1)
        return self.last(y.view(batch, -1, height, width))


# --- Python in the forward pass -----------------------------------------------------------------------------------


@network("auxiliary_head")
class AuxiliaryHead(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.middle, self.last = conv(12, 10), head(10)
        self.aux = nn.Sequential(conv(12, 8), nn.BatchNorm2d(8), nn.ReLU(), head(8))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        y = self.last(F.relu(self.middle(x)))
        return (y, self.aux(x)) if self.training else y


@network("training_branch")
class TrainingBranch(_Parts):
    def mix(self, x: Tensor) -> Tensor:
        if self.training:
            return F.dropout(x, 0.5) + torch.randn_like(x)
        return x


@dataclass
class Outcome:
    logits: Tensor
    features: list[Tensor]


@network(
    "nested_inputs_dataclass_output",
    lambda: ({"image": torch.randn(2, 3, 8, 8), "more": (torch.randn(2, 3, 8, 8), [torch.randn(2, 6)])}, 2),
)
class NestedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.vector = conv(3, 10), conv(3, 10), nn.Linear(6, 10)
        self.shown, self.last = conv(10, 8), head(8)

    def forward(self, batch: dict[str, Any], power: int) -> Outcome:
        other, (vector,) = batch["more"]
        x = self.left(batch["image"]) + self.right(other) + self.vector(vector)[:, :, None, None]
        shown = self.shown(x.relu() ** power)
        return Outcome(self.last(shown), [shown])


@network("keeps_last_activation")
class KeepsLastActivation(_Parts):
    def __init__(self) -> None:
        super().__init__()
        self.middle = conv(12, 12)
        self.last_seen: Tensor | None = None
        self.calls = 0

    def mix(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = F.relu(self.middle(x))
        self.last_seen = x
        return x


@network("list_appends")
class ListAppends(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv(12, 12) for _ in range(3))
        self.last = conv(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.relu(self.stem(x))]
        for block in self.blocks:
            features.append(F.relu(block(features[-1])))
        return self.last(torch.cat(features, 1))


@network("appends_to_attribute")
class AppendsToAttribute(_Parts):
    """A log that lives on the module, nested: tracing must not leave anything in it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[str, Any] = {"shapes": [], "count": 0}

    def mix(self, x: Tensor) -> Tensor:
        self.log["shapes"].append(tuple(x.shape[2:]))
        self.log["count"] += 1
        return x


@network("squeeze_in_place")
class SqueezeInPlace(_Stem):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.stem(x)), 1)
        return self.last(x.squeeze_(3).squeeze_(2))


@network("input_channels_reach_output")
class InputReachesOutput(_Parts):
    """The input is added to what the network writes: a U-Net's last addition."""

    def __init__(self) -> None:
        super().__init__()
        self.back = conv(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(super().forward(x))

    def mix(self, x: Tensor) -> Tensor:
        return x


@network("input_concatenated")
class InputConcatenated(_Parts):
    last_in = 15

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([F.relu(self.stem(x)), x], 1))
