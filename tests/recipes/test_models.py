import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recipes.errors import RecipeError
from recipes.models import VGG, ImageClassifier, ResidualBlock, ResNet, torchvision_model


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("depth", "widths", "in_channels", "params"),
    [(20, (16, 32, 64), 3, 272_474), (20, (16, 32, 64), 1, 272_186), (8, (8, 16, 32), 1, 19_810)],
)
def test_parameter_counts(depth, widths, in_channels, params):
    assert count(ResNet(in_channels, 10, depth, widths)) == params


def test_shortcuts_project_only_where_the_shape_changes():
    blocks = [m for m in ResNet(3, 10).modules() if isinstance(m, ResidualBlock)]
    projections = [not isinstance(block.shortcut, nn.Identity) for block in blocks]
    assert projections == [False, False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("size", [8, 32, 33])
def test_any_image_size(size):
    assert ResNet(1, 7, depth=8)(torch.zeros(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("depth", [2, 19, 21])
def test_depth_that_does_not_fit_is_refused(depth):
    with pytest.raises(ValueError, match=rf"`depth` to be 2 \+ a multiple of 6, got {depth}"):
        ResNet(3, 10, depth)


def test_vgg_has_thirteen_convolutions_and_halves_five_times():
    network = VGG(3, 10)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 13
    assert network.features(torch.zeros(1, 3, 64, 32)).shape == (1, 512, 2, 1)
    assert count(network) == 14_724_042


def test_model_of_torchvision_has_an_output_for_each_class():
    assert torchvision_model("resnet18", 3, 7).fc.out_features == 7


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [("resnet19", 3, "`model.name` to be one of .*got resnet19"), ("resnet18", 1, "3 channels, but `data` has 1")],
)
def test_model_that_torchvision_cannot_build_is_refused(name, channels, message):
    with pytest.raises(RecipeError, match=message):
        torchvision_model(name, channels, 10)


def test_classifier_logs_loss_and_accuracy():
    torch.manual_seed(0)
    images = torch.zeros(10, 2)
    labels = torch.tensor([0] * 7 + [1] * 3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    network = nn.Linear(2, 2)
    network.bias.data = torch.tensor([1.0, 0.0])
    module = ImageClassifier(network, num_classes=2)
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    (val,) = trainer.validate(module, loader, verbose=False)
    (test,) = trainer.test(module, loader, verbose=False)
    expected = nn.functional.cross_entropy(network(images), labels).item()
    assert val == pytest.approx({"val_loss": expected, "val_acc": 0.7})
    assert test == pytest.approx({"test_acc": 0.7})


def test_classifier_builds_optimizer_and_scheduler():
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    module = ImageClassifier(nn.Linear(2, 2), 2, lambda p: torch.optim.SGD(p, lr=0.1), scheduler)
    (optimizer,), (schedule,) = module.configure_optimizers()
    assert schedule.optimizer is optimizer
    assert len(optimizer.param_groups[0]["params"]) == 2
