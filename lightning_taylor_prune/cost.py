"""What a network costs: parameters, MACs, filters, time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from lightning_taylor_prune.tracing.call import Call
from lightning_taylor_prune.tracing.packing import call_operator
from lightning_taylor_prune.tracing.recorder import fake_trace, training_flags
from lightning_taylor_prune.tracing.runs import run
from lightning_taylor_prune.tracing.submodules import run_for_real


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Attributes:
        params: Number of parameters; tied ones count once.
        macs: Multiply-accumulate operations (floating point operations / 2) for the example input, batch included.
        filters: Number of channels that weights write: filters of convolutions, units of linear layers, and what
            :func:`filters_per_layer` counts besides.
    """

    params: int
    macs: int
    filters: int


def measure_cost(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None) -> Cost:
    """Count parameters, MACs and filters of a network in evaluation mode, without computing anything.

    A network that depends on the values of tensors (a detector, say) is run with real values. MACs come from
    :class:`torch.utils.flop_counter.FlopCounterMode`.

    Args:
        model: Any network; it is unchanged afterwards.
        example_inputs: A tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.

    Example:
        >>> measure_cost(nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 10, 10))
        Cost(params=224, macs=13824, filters=8)
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    call = Call("", args, dict(example_kwargs or {}))
    recorded = fake_trace(model, call, dict.fromkeys(training_flags(model), False))
    try:
        with flop_counter() as counter:
            run(model, recorded, recorded.tensors, call_operator)
    except Exception:  # not allowed on fake tensors, or a wrong call: that fails in a real run too
        with flop_counter() as counter:
            run_for_real(model, call, training=False)
    return Cost(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,
        filters=count_filters(model),
    )


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, with formulas that it may lack.

    These are bilinear layers, fused recurrent layers, deformable convolutions, and attention on the CPU.
    """
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten._trilinear: _trilinear_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    formulas |= {
        torch.ops.aten.mkldnn_rnn_layer: lambda x, *tensors, **_: _recurrent_flops(x, tensors[:2]),
        torch.ops.aten._cudnn_rnn: lambda x, weights, *_, **__: _recurrent_flops(x, weights),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # there once torchvision is imported
        formulas[torch.ops.torchvision.deform_conv2d] = lambda x, weight, *_, out_shape, **__: (
            2 * math.prod(out_shape) * math.prod(weight[1:])
        )
    missing = {operator: formula for operator, formula in formulas.items() if operator not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)


def _attention_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(q, k, v)
    return flops


def _trilinear_flops(
    a: Sequence[int], b: Sequence[int], c: Sequence[int], *expanded: Sequence[int], **kwargs: Any
) -> int:
    """Count two for every product of three factors, which broadcast once each has gained its axes of size 1."""
    shapes = []
    for shape, axes in zip((a, b, c), expanded, strict=False):
        sizes = list(shape)
        for axis in axes:
            sizes.insert(axis, 1)
        shapes.append(sizes)
    return 2 * math.prod(np.broadcast_shapes(*map(tuple, shapes)))


def _recurrent_flops(x: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Count two for every number in a matrix, for every example and time; ``x`` has shape ``[..., width]``."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def count_filters(model: nn.Module) -> int:
    """Return the number of filters of all layers; see :func:`filters_per_layer`."""
    return sum(filters_per_layer(model).values())


def filters_per_layer(model: nn.Module) -> dict[str, int]:
    """Return how many channels the weights of every layer write, by name.

    Those are filters of convolutions, units of linear layers, the width of embeddings, and rows of all matrices of
    attention and recurrent layers. Weights in modules of your own are only counted by
    :attr:`~lightning_taylor_prune.groups.groups.ChannelGroups.filters`, which knows what is done with them.
    """
    counts = {name: _filters_of(module) for name, module in model.named_modules()}
    return {name: count for name, count in counts.items() if count}


def _filters_of(module: nn.Module) -> int:
    if isinstance(module, (_ConvNd, _ConvTransposeNd)):
        return module.out_channels
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return module.embedding_dim
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)):
        own = dict(module.named_parameters(recurse=False))
        return sum(weight.shape[0] for name, weight in own.items() if weight.dim() == 2 and "weight" in name)
    return 0


@torch.no_grad()
def measure_latency(model: nn.Module, example_inputs: Any, repeats: int = 20, warmup: int = 3) -> float:
    """Return the median time of a forward pass in seconds, in the mode that the model is in.

    Args:
        model: The network, on the device where it is to be measured.
        example_inputs: A tensor, or a tuple of positional arguments, on the same device.
        repeats: Timed passes.
        warmup: Passes before, not timed.

    Example:
        >>> measure_latency(nn.Linear(8, 4), torch.zeros(2, 8), repeats=3) > 0
        True
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    cuda = any(parameter.is_cuda for parameter in model.parameters())
    times = []
    for i in range(warmup + repeats):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        model(*args)
        if cuda:
            torch.cuda.synchronize()
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
