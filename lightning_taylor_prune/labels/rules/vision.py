"""Rules for torchvision's operators: convolutions that read where they are told to, and regions of images."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.labels.rules.axes import moved, unite_pieces
from lightning_taylor_prune.labels.rules.context import RuleContext, find_labels
from lightning_taylor_prune.labels.rules.convolution import convolve
from lightning_taylor_prune.labels.rules.registry import register_rule
from lightning_taylor_prune.labels.rules.spatial import keep_block_heads
from lightning_taylor_prune.labels.space import Labels


@register_rule("torchvision.deform_conv2d")
def deformable(
    ctx: RuleContext,
    x: Labels,
    weight: Labels,
    offset: Labels,
    mask: Labels,
    bias: Labels,
    *args: Any,
) -> Labels:
    """A convolution; every kernel position reads at an offset, which blocks of channels share."""
    groups, offset_groups = args[6:8]
    ctx.lock_all([offset, mask], "says where a convolution reads, and how much")
    channels = x.along(1)
    if channels is not None and offset_groups > 1:
        unite_pieces(ctx, channels, 1, offset_groups)
    if (batch := x.along(0)) is not None:
        ctx.lock(batch, "meets offsets whose batch has a fixed size")
    return convolve(ctx, x, weight, bias, groups)


@register_rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(ctx: RuleContext, x: Labels, boxes: Labels, *args: Any) -> Labels | list[Labels]:
    """Regions of images, all of one size: channels pass through."""
    return _of_regions(ctx, _channels_of_regions(ctx, x, boxes))


@register_rule("torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def regions_by_position(
    ctx: RuleContext, x: Labels, boxes: Labels, scale: float, height: int, width: int, *args: Any
) -> Labels | list[Labels]:
    """Each position of a region has channels of its own: a block of ``height x width`` channels is removed whole."""
    channels = _channels_of_regions(ctx, x, boxes)
    fields = tuple(keep_block_heads(ctx, f, 1, height * width) for f in channels.fields)
    return _of_regions(ctx, Labels(channels.shape, fields))


def _channels_of_regions(ctx: RuleContext, x: Labels, boxes: Labels) -> Labels:
    """Return what varies along the channels only, and lock the rest."""
    ctx.lock_all([boxes], "says where regions lie")
    along = tuple(f for f in x.fields if f.size == f.shape[1])
    rest = tuple(f for f in x.fields if f.size != f.shape[1])
    ctx.lock_all([Labels(x.shape, rest)], "is cut into regions")
    return Labels(x.shape, along)


def _of_regions(ctx: RuleContext, channels: Labels) -> Labels | list[Labels]:
    results = [moved(channels, shape, channels.fields) for shape in ctx.shapes]
    return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]


@register_rule("torchvision.nms")
def suppression(ctx: RuleContext, *args: Any) -> Labels:
    """Which boxes are chosen depends on how they overlap."""
    ctx.lock_all(find_labels(list(args)), "is a box, or its score")
    return Labels(ctx.shape)
