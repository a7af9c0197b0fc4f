import errno
import json
import tempfile

import pytest
import torch

from lightning_taylor_prune import find_groups, prune_
from recipes.errors import RecipeError
from recipes.folder import ORIGINAL, PRUNED, RunFolder, WholeCheckpoints, digest, write_json, write_whole
from recipes.interrupts import Resumable
from recipes.models import ResNet
from tests.lightning_modules import Classifier, loader, trainer


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "new", tmp_path / "earlier")


def network():
    torch.manual_seed(0)
    return ResNet(1, 10, 8, (4, 8, 8)).eval()


def test_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", [1])

    def fail(part):
        part.write_text("[1, 2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.json", fail)
    assert {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()} == {"a.json": [1]}


class FullDisk:
    """Fills the disk when it is saved."""

    def __reduce__(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_checkpoint_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "state.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpoints().save_checkpoint({"step": torch.zeros(10), "more": FullDisk()}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.ckpt"] and torch.load(path) == {"step": 1}


def test_checkpoints_do_not_go_through_the_folder_for_temporary_files(tmp_path, monkeypatch):
    def no_temporary_files(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", no_temporary_files)
    saving = Resumable(tmp_path / "state.ckpt")
    fitting = trainer(saving, enable_checkpointing=True)
    fitting.fit(Classifier(), loader())
    assert torch.load(tmp_path / "state.ckpt", weights_only=True)["global_step"] == 8


def test_own_file_comes_before_that_of_the_earlier_run(folder):
    write_json(folder.earlier / "a.json", "earlier")
    assert folder.read_json("a.json", "compare") == "earlier"
    write_json(folder.output / "a.json", "own")
    assert folder.read_json("a.json", "compare") == "own"


def test_nothing_to_go_on_from_says_what_and_where(folder):
    with pytest.raises(RecipeError, match=r"stage `retrain` needs pruned.pt, which stage `prune` makes, and .*earlier"):
        folder.need(PRUNED, "retrain")


def test_pruned_network_comes_back_into_an_unpruned_one(folder):
    images, pruned = torch.randn(2, 1, 8, 8), network()
    groups = find_groups(pruned, images)
    prune_(pruned, groups.plan({group.name: [0, 2] for group in groups}))
    folder.save_network(pruned, PRUNED)
    loaded = folder.load_network(network(), PRUNED, "retrain").eval()
    assert torch.equal(loaded(images), pruned(images))
    assert loaded.conv1.out_channels == 2


def test_network_of_another_model_is_refused(folder):
    folder.save_network(network(), ORIGINAL)
    with pytest.raises(RecipeError, match=r"original.pt does not fit `model`: .*layer1.1.conv1"):
        folder.load_network(ResNet(1, 10, 14, (4, 8, 8)), ORIGINAL, "prune")


@pytest.mark.parametrize(
    ("begun", "left"),
    [([], ["train", "prune", "retrain"]), (["prune"], ["prune", "retrain"]), (["prune", "retrain"], ["retrain"])],
    ids=str,
)
def test_run_goes_on_from_the_stage_that_was_interrupted_last(folder, begun, left):
    for stage in begun:
        write_json(folder.unfinished(stage), "state")
    assert folder.still_to_do(["train", "prune", "retrain"]) == left


def test_digest_sees_one_changed_weight():
    one, other = network(), network()
    assert digest(one) == digest(other)
    with torch.no_grad():
        other.linear.bias[0] += 1e-6
    assert digest(one) != digest(other)
