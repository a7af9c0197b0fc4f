"""Measuring both networks for the comparison: cost, test images, latency."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_taylor_prune import measure_cost, measure_latency
from lightning_taylor_prune.cost import filters_per_layer
from lightning_taylor_prune.pruning.outcome import history_of_data
from lightning_taylor_prune.report import GroupResult, Latency, NetworkResult, Progress
from recipes.image_data import ImageData
from recipes.models import ImageClassifier

LATENCY_BATCH, LATENCY_REPEATS = 32, 40


class Confusion(Callback):
    """Counts what the test images of each class were taken for.

    Attributes:
        counts: int ``[classes, classes]``, true class by predicted class; ``None`` before a test.
    """

    def __init__(self, num_classes: int) -> None:
        self.metric = MulticlassConfusionMatrix(num_classes)
        self.counts: Tensor | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from zero, on the device of the network."""
        self.metric = self.metric.to(pl_module.device)
        self.metric.reset()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a mini-batch; ``outputs`` are its logits."""
        assert isinstance(outputs, Tensor)
        self.metric.update(outputs, batch[1])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add up what all ranks saw."""
        self.counts = self.metric.compute().cpu()


def confusion(network: nn.Module, data: ImageData, trainer: L.Trainer) -> list[list[int]]:
    """Return the confusion matrix on the test images, ``[classes, classes]``, true class by predicted class."""
    counter = Confusion(data.num_classes)
    trainer.callbacks.append(counter)  # type: ignore[attr-defined]
    trainer.test(ImageClassifier(network, data.num_classes), datamodule=data, verbose=False)
    assert counter.counts is not None
    counts: list[list[int]] = counter.counts.tolist()
    return counts


def accuracy(counts: list[list[int]]) -> float:
    """Return the fraction (0 to 1) of images on the diagonal of a confusion matrix."""
    return sum(row[i] for i, row in enumerate(counts)) / max(sum(map(sum, counts)), 1)


def latencies(networks: list[nn.Module], data: ImageData, device: torch.device) -> list[Latency]:
    """Time the networks in turns, so that whatever else the machine does meets all of them."""
    images = data.example_images.to(device).expand(LATENCY_BATCH, -1, -1, -1).contiguous()
    copies = [copy.deepcopy(network).to(device).eval() for network in networks]
    for network in copies:
        measure_latency(network, images, repeats=1, warmup=5)
    seconds: list[list[float]] = [[] for _ in copies]
    for _ in range(LATENCY_REPEATS):
        for network, times in zip(copies, seconds, strict=True):
            times.append(measure_latency(network, images, repeats=1, warmup=1))
    return [Latency.of(times, LATENCY_BATCH, device_words(device)) for times in seconds]


def device_words(device: torch.device) -> str:
    """Describe a device for readers."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()}, {threads} thread{'s' if threads > 1 else ''}"


def environment(device: torch.device) -> dict[str, str]:
    """Return the versions that a reader needs to measure the same."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "device": device_words(device),
    }


def network_result(network: nn.Module, data: ImageData, counts: list[list[int]], latency: Latency) -> NetworkResult:
    """Put together what is known of a network."""
    cost = measure_cost(network, data.example_images)
    filters = {f"network.{name}": count for name, count in filters_per_layer(network).items()}
    matrix = tuple(map(tuple, counts))
    return NetworkResult(cost.params, cost.macs, cost.filters, accuracy(counts), filters, matrix, latency)


def progress(record: Mapping[str, Any]) -> Progress:
    """Return how pruning went, from the record that its stage wrote."""
    events = history_of_data([record["before"], *record["history"]])
    return Progress(
        loss_iterations=record["curve"]["iterations"],
        losses=record["curve"]["losses"],
        iterations=[event["step"] for event in events],
        accuracies=[event["metrics"].get("val_acc", float("nan")) for event in events],
        num_prunable_filters=[event["num_prunable_filters"] for event in events],
        taken_back=[event["step"] for event in events if event.get("taken_back")],
    )


def groups(record: Mapping[str, Any]) -> tuple[GroupResult, ...]:
    """Return what each group of filters lost, from the record that pruning wrote."""
    return tuple(GroupResult(**{**group, "layers": tuple(group["layers"])}) for group in record["groups"])
