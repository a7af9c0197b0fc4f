"""Every experiment, with its own settings but few images, few steps and no download."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from recipes import data as recipe_data
from recipes import stages
from recipes.folder import PRUNING, RETRAINED
from tests.recipes.test_data import FakeCIFAR10

EXPERIMENTS = {file.stem for file in (Path(__file__).resolve().parents[2] / "conf" / "experiment").glob("*.yaml")}
FEW = (
    "data.num_workers=0",
    "data.batch_size=8",
    "data.val_fraction=0.2",
    "train.trainer.max_epochs=1",
    "pruning.every_n_steps=1",
    "pruning.max_prunes=2",
    "retrain.trainer.max_epochs=1",
    "+trainer.limit_train_batches=2",
    "logger=csv",
    "~callbacks",
    "stage=[train,prune,retrain]",
)
ON_CPU = ("gpus=1", "trainer.precision=32-true", "channels_last=false")


@pytest.fixture
def colours(tmp_path):
    """A folder of small images of three colours, in the parts that the experiments read."""
    for part in ("train", "test", "val"):
        for label, colour in {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}.items():
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (70 + i, 80), colour).save(folder / f"{i}.png")
    return tmp_path / "images"


def kept_numbers(cfg):
    content = torch.load(Path(cfg.output_dir) / RETRAINED, weights_only=True)
    return sum(tensor.numel() for tensor in content["state_dict"].values())


CIFAR = [
    "cifar10_resnet20",
    pytest.param("cifar10_resnet20_cosine", marks=pytest.mark.slow),
    "cifar10_resnet20_best",
    pytest.param("cifar10_resnet56", marks=pytest.mark.slow),
    pytest.param("cifar10_vgg16_bn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("experiment", CIFAR)
def test_cifar10(experiment, monkeypatch, compose_recipe):
    monkeypatch.setattr(recipe_data, "CIFAR10", FakeCIFAR10)
    cfg = compose_recipe(f"experiment={experiment}", *FEW)
    before = sum(
        tensor.numel() for tensor in stages.instantiate(cfg.model, in_channels=3, num_classes=10).state_dict().values()
    )
    stages.run(cfg)
    assert kept_numbers(cfg) < before


@pytest.mark.slow
def test_imagenet_resnet50(colours, compose_recipe):
    small = ("data.image_size=64", "data.resize=72", "weights=null")
    cfg = compose_recipe("experiment=imagenet_resnet50", f"data.root={colours}", *small, *FEW, *ON_CPU)
    stages.run(cfg)
    assert kept_numbers(cfg) < 23_500_000


def test_finetune_imagefolder(colours, monkeypatch, compose_recipe):
    """The network starts from the weights that the experiment names; a stand-in takes the place of the download."""
    trained = torchvision.models.resnet18(num_classes=1000)
    nn.init.constant_(trained.bn1.bias, 0.25)
    asked = []
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights,
        "get_state_dict",
        lambda weights, *args, **kwargs: asked.append(weights) or trained.state_dict(),
    )
    small = ("data.image_size=64", "data.resize=72", "train.optimizer.lr=0")
    cfg = compose_recipe("experiment=finetune_imagefolder", f"data.root={colours}", *small, *FEW)
    stages.run(cfg)
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1]
    original = torch.load(Path(cfg.output_dir) / "original.pt", weights_only=True)["state_dict"]
    assert torch.equal(original["bn1.bias"], trained.bn1.bias) and original["fc.weight"].shape == (3, 512)
    assert kept_numbers(cfg) < 11_170_000


def test_digits_accuracy_stop(compose_recipe):
    """A network that has hardly been trained loses what it knows at once: it comes back unpruned, or smaller."""
    cfg = compose_recipe("experiment=digits_accuracy_stop", *(s for s in FEW if not s.startswith("data.num_workers")))
    stages.run(cfg)
    record = json.loads((Path(cfg.output_dir) / PRUNING).read_text())
    lasting = [row["params"] for row in record["history"] if not row["taken_back"]]
    assert record["history"] and sum(record["filters_after"].values()) > 0
    assert kept_numbers(cfg) >= (lasting[-1] if lasting else 272_186)


def test_digits_latency(compose_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = ("pruning.latency.max_seconds=2", *(s for s in FEW if not s.startswith("data.num_workers")))
    cfg = compose_recipe("experiment=digits_latency", *quick)
    stages.run(cfg)
    record = json.loads((Path(cfg.output_dir) / PRUNING).read_text())
    assert record["stop_reason"] in ("target", "max_prunes") and kept_numbers(cfg) < 272_186
    assert list((tmp_path / "cache").rglob("*.json"))


def test_every_experiment_is_run_here():
    text = Path(__file__).read_text()
    assert all(experiment in text for experiment in EXPERIMENTS)
