from urllib.error import URLError

import lightning as L
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from recipes.errors import RecipeError
from recipes.models import ImageClassifier, ResNet
from recipes.weights import load_weights


def network(depth=8):
    return ResNet(1, 10, depth, (4, 8, 8))


def save_checkpoint(trained, path):
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(ImageClassifier(trained, 10))
    trainer.save_checkpoint(path, weights_only=True)


def save_state_dict(trained, path):
    torch.save(trained.state_dict(), path)


def save_safetensors(trained, path):
    save_file(trained.state_dict(), path)


@pytest.mark.parametrize(
    ("save", "name"), [(save_checkpoint, "a.ckpt"), (save_state_dict, "a.pt"), (save_safetensors, "a.safetensors")]
)
def test_weights_come_back(save, name, tmp_path):
    trained, fresh = network(), network()
    save(trained, tmp_path / name)
    load_weights(fresh, tmp_path / name)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(14), r"36 tensors differ: layer1.1.conv1.weight is not in the network; .*; and 33 more"),
        (lambda: ResNet(1, 10, 8, (4, 8, 9)), r"layer3.0.conv1.weight has shape \(9, 8, 3, 3\)"),
    ],
)
def test_weights_of_another_network_are_refused(other, message, tmp_path):
    save_state_dict(other(), tmp_path / "weights.pt")
    with pytest.raises(RecipeError, match=message):
        load_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}])
def test_file_without_weights_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RecipeError, match="holds another network"):
        load_weights(network(), tmp_path / "other.pt")


class TinyWeights:
    """Stands in for an enum of torchvision: nothing is downloaded."""

    def __init__(self, trained):
        self.trained = trained

    def get_state_dict(self, *args, **kwargs):
        return self.trained.state_dict()


def test_weights_of_torchvision_go_by_name(monkeypatch):
    trained, fresh = network(), network()
    monkeypatch.setattr(torchvision.models, "get_weight", {"Tiny_Weights.V1": TinyWeights(trained)}.__getitem__)
    load_weights(fresh, "Tiny_Weights.V1")
    assert torch.equal(fresh.linear.weight, trained.linear.weight)


def test_unknown_weights_of_torchvision_are_refused():
    with pytest.raises(RecipeError, match=r"torchvision has no weights ResNet18_Weights.NONSENSE"):
        load_weights(network(), "ResNet18_Weights.NONSENSE")


def test_failing_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("name resolution failed")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(RecipeError, match=r"could not be downloaded: .*name resolution failed"):
        load_weights(network(), "ResNet18_Weights.IMAGENET1K_V1")


def test_new_head_stays_and_the_rest_is_loaded(tmp_path):
    trained, fresh = ResNet(1, 20, 8, (4, 8, 8)), network()
    head = fresh.linear.weight.clone()
    save_state_dict(trained, tmp_path / "weights.pt")
    load_weights(fresh, tmp_path / "weights.pt", new_head=True)
    assert torch.equal(fresh.linear.weight, head)
    assert torch.equal(fresh.conv1.weight, trained.conv1.weight)


def test_head_of_the_same_size_is_loaded(tmp_path):
    trained, fresh = network(), network()
    save_state_dict(trained, tmp_path / "weights.pt")
    load_weights(fresh, tmp_path / "weights.pt", new_head=True)
    assert torch.equal(fresh.linear.weight, trained.linear.weight)


def test_new_head_excuses_no_other_layer(tmp_path):
    save_state_dict(ResNet(1, 20, 8, (4, 8, 9)), tmp_path / "weights.pt")
    with pytest.raises(RecipeError, match=r"layer3.0.conv1.weight has shape \(9, 8, 3, 3\)"):
        load_weights(network(), tmp_path / "weights.pt", new_head=True)


@pytest.mark.parametrize("junk", [b"", b"not a checkpoint"])
def test_file_that_is_no_checkpoint_is_refused(junk, tmp_path):
    (tmp_path / "junk.pt").write_bytes(junk)
    with pytest.raises(RecipeError, match=r"Cannot read .*junk.pt as a checkpoint"):
        load_weights(network(), tmp_path / "junk.pt")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"No file .*gone.pt"):
        load_weights(network(), tmp_path / "gone.pt")
