import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_taylor_prune.cost import filters_per_layer
from recipes import evaluation
from recipes.data import DigitsData
from recipes.image_data import ImageData
from recipes.models import ResNet


class Counted(ImageData):
    """Images that are their own logits: what a network that passes them on predicts is known."""

    def __init__(self, predicted, true):
        super().__init__(batch_size=4, num_workers=0, val_fraction=0.5, split_seed=0)
        logits = nn.functional.one_hot(torch.tensor(predicted), 3).float()
        self.class_names = ["a", "b", "c"]
        self.test_set = TensorDataset(logits, torch.tensor(true))


def trainer():
    return L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")


def test_confusion_counts_true_classes_by_row():
    data = Counted(predicted=[0, 0, 1, 2, 2, 2, 1], true=[0, 1, 1, 2, 2, 0, 1])
    counts = evaluation.confusion(nn.Identity(), data, trainer())
    assert counts == [[1, 0, 1], [1, 2, 0], [0, 0, 2]]
    assert evaluation.accuracy(counts) == pytest.approx(5 / 7)


def test_network_result_agrees_with_the_network():
    data = DigitsData()
    data.setup("fit")
    network = ResNet(1, 10, 8, (4, 8, 8))
    (latency,) = evaluation.latencies([network], data, torch.device("cpu"))
    result = evaluation.network_result(network, data, [[3, 1], [0, 4]], latency)
    assert result.params == sum(p.numel() for p in network.parameters())
    assert result.filters == sum(result.filters_per_layer.values()) == sum(filters_per_layer(network).values())
    assert result.accuracy == 7 / 8
    assert 0 < result.latency.low_ms <= result.latency.median_ms <= result.latency.high_ms


def test_networks_are_timed_as_copies_in_evaluation_mode():
    data = DigitsData()
    data.setup("fit")
    network = ResNet(1, 10, 8, (4, 8, 8)).train()
    before = network.bn1.running_mean.clone()
    evaluation.latencies([network], data, torch.device("cpu"))
    assert network.training
    assert torch.equal(network.bn1.running_mean, before)


def test_progress_begins_before_the_first_prune():
    record = {
        "before": {"step": 0, "metrics": {"val_acc": 0.9}, "num_prunable_filters": 20},
        "history": [{"step": 5, "metrics": {}, "num_prunable_filters": 18}],
        "curve": {"iterations": [1, 2], "losses": [0.5, 0.4]},
    }
    progress = evaluation.progress(record)
    assert (progress.iterations, progress.num_prunable_filters) == ([0, 5], [20, 18])
    assert progress.accuracies[0] == 0.9
    assert progress.accuracies[1] != progress.accuracies[1]  # not measured: NaN
