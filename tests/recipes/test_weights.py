import lightning as L
import pytest
import torch

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


@pytest.mark.parametrize("save", [save_checkpoint, save_state_dict])
def test_weights_come_back(save, tmp_path):
    trained, fresh = network(), network()
    save(trained, tmp_path / "weights")
    load_weights(fresh, tmp_path / "weights")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: network(14), r"36 tensors differ, layer1.1.conv1.weight has shape .*None"),
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


@pytest.mark.parametrize("junk", [b"", b"not a checkpoint"])
def test_file_that_is_no_checkpoint_is_refused(junk, tmp_path):
    (tmp_path / "junk.pt").write_bytes(junk)
    with pytest.raises(RecipeError, match=r"Cannot read .*junk.pt as a checkpoint"):
        load_weights(network(), tmp_path / "junk.pt")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"No file .*gone.pt"):
        load_weights(network(), tmp_path / "gone.pt")
