"""How far a network is from its teacher: by outputs, and by where features are strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.pruning.constraints import check_choice, check_number

DistillationKind = Literal["kl", "mse"]


@dataclass(frozen=True)
class DistillationLoss:
    r"""The distance between a network's outputs and its teacher's, computed in float32.

    ``"kl"``: :math:`T^2 \sum_c p_c (\log p_c - \log q_c)`, with :math:`p, q` the softmax of the teacher's and the
    network's logits divided by the temperature :math:`T`, over axis 1 (over the last axis of a vector), and the mean
    over everything else (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
    ``"mse"``: the mean squared difference (Kim et al. 2021, "Comparing Kullback-Leibler Divergence and Mean Squared
    Error Loss in Knowledge Distillation"); for regression, too.

    Attributes:
        kind: ``"kl"`` or ``"mse"``.
        temperature: :math:`T`; for ``"kl"``.

    Raises:
        ArgumentError: A value cannot be used, or the outputs do not have the same shape.

    Example:
        >>> import torch
        >>> loss = DistillationLoss(temperature=2.0)
        >>> logits = torch.tensor([[1.0, 0.0, 3.0]])
        >>> loss(logits, logits).item(), loss(logits, logits.flip(1)).item() > 0
        (0.0, True)
    """

    kind: DistillationKind = "kl"
    temperature: float = 4.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(DistillationKind))
        check_number("temperature", self.temperature)
        if self.temperature <= 0:
            raise ArgumentError(f"Expected argument `temperature` to be above 0, but got {self.temperature!r}.")

    def __call__(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance, a scalar; both arguments have the same shape, such as ``[N, C, ...]``."""
        if output.shape != teacher.shape:
            raise ArgumentError(
                f"Expected the network and its teacher to return outputs of the same shape, but got "
                f"{tuple(output.shape)} and {tuple(teacher.shape)}. Compare other outputs (`output=`, `target=`)."
            )
        own, taught = output.float(), teacher.detach().float()
        if self.kind == "mse":
            return F.mse_loss(own, taught)
        axis = 1 if own.dim() > 1 else 0
        log_q = F.log_softmax(own / self.temperature, axis)
        log_p = F.log_softmax(taught / self.temperature, axis)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(axis)
        return divergence.mean() * self.temperature**2


def attention_map(features: Tensor) -> Tensor:
    """Return where features are strong: the mean of their squares over the channels, of norm 1 for every example.

    It has the same shape however many channels a layer has kept (Zagoruyko & Komodakis 2017, "Paying More Attention to
    Attention", section 3.1).

    Args:
        features: Shape ``[N, C, ...]`` with channels on axis 1; of ``[N, tokens, C]``, the channels are the last axis.

    Returns:
        Shape ``[N, positions]``, in float32.

    Example:
        >>> import torch
        >>> attention_map(torch.ones(2, 8, 3, 3)).shape
        torch.Size([2, 9])
    """
    axis = 2 if features.dim() == 3 else 1
    return F.normalize(features.float().square().mean(axis).flatten(1), dim=1)


def attention_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance between two :func:`attention_map`, the mean over examples, a scalar.

    Raises:
        ArgumentError: The features do not lie at the same positions.
    """
    own, taught = attention_map(features), attention_map(teacher.detach())
    if own.shape != taught.shape:
        raise ArgumentError(
            f"Expected features of the network and its teacher at the same positions, but got shapes "
            f"{tuple(features.shape)} and {tuple(teacher.shape)}. Choose other layers in `features`."
        )
    return (own - taught).square().sum(1).mean()
