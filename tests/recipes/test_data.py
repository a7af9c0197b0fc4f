from urllib.error import URLError

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import FakeData

from recipes import data as recipe_data
from recipes.data import CIFAR10Data, DigitsData, ImageFolderData
from recipes.errors import RecipeError


def test_digits_parts_hold_every_image_once():
    data = DigitsData(val_fraction=0.2, test_fraction=0.2)
    data.setup("fit")
    parts = (data.train_set, data.val_set, data.test_set)
    assert [len(part) for part in parts] == [1150, 288, 359]
    images = torch.stack([image for part in parts for image, _ in part])
    raw = torch.from_numpy(load_digits().images).float()
    restored = (images * data.STD + data.MEAN) * 16
    assert sorted(restored.round().flatten(1).tolist()) == sorted(raw.flatten(1).tolist())


def test_digits_are_normalised_and_have_every_class():
    data = DigitsData()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.1
    assert set(labels.tolist()) == set(range(data.num_classes))
    assert data.example_images.shape == (1, 1, 8, 8)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 10), ("test", 3)):
        for label, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 12), colour).save(tmp_path / part / label / f"{i}.png")
    return tmp_path


def open_folder(root, stage="fit", **settings):
    data = ImageFolderData(root, image_size=16, batch_size=4, num_workers=0, val_fraction=0.2, **settings)
    data.prepare_data()
    data.setup(stage)
    return data


def test_image_folder_is_read(folder):
    data = open_folder(folder)
    assert data.class_names == ["blue", "red"]
    assert (len(data.train_set), len(data.val_set)) == (16, 4)
    assert not set(data.train_set.indices) & set(data.val_set.indices)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    middle = images[:, :, 8, 8]
    assert torch.equal((middle[:, 0] > middle[:, 2]).long(), labels)


@pytest.mark.parametrize("random_crop", ["shift", "zoom"])
def test_images_kept_in_memory_are_the_same(folder, random_crop):
    kept = open_folder(folder, in_memory=True, random_crop=random_crop)
    read = open_folder(folder, random_crop=random_crop)
    assert all(torch.equal(a, b) and i == j for (a, i), (b, j) in zip(kept.val_set, read.val_set, strict=True))
    (image, label), again = kept.train_set[0], kept.train_set.dataset.images
    assert image.shape == (3, 16, 16) and label == read.train_set[0][1]
    assert again.dtype == torch.uint8


def test_test_images_may_lie_in_another_folder(folder):
    (folder / "test").rename(folder / "val")
    assert len(open_folder(folder, "test", test_folder="val").test_set) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 15}, "`data.resize` to be at least .*16, got 15"),
        ({"random_crop": "spin"}, "shift or zoom, got spin"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder, settings, message):
    with pytest.raises(RecipeError, match=message):
        open_folder(folder, **settings)


def test_image_folder_opens_test_images_for_testing_only(folder):
    assert not hasattr(open_folder(folder), "test_set")
    assert len(open_folder(folder, "test").test_set) == 6


@pytest.mark.parametrize("part", ["train", "test"])
def test_image_folder_without_a_part_is_refused(folder, part):
    (folder / part).rename(folder / "elsewhere")
    with pytest.raises(RecipeError, match=rf"No folder .*{part}: `data.root` must hold"):
        open_folder(folder)


def test_image_folder_with_other_test_classes_is_refused(folder):
    (folder / "test" / "red").rename(folder / "test" / "green")
    with pytest.raises(RecipeError, match="green, red"):
        open_folder(folder)


def test_image_folder_without_images_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(RecipeError, match="No images"):
        open_folder(tmp_path)


class FakeCIFAR10(FakeData):
    classes = tuple("0123456789")

    def __init__(self, root, train=True, transform=None, download=False):
        super().__init__(50 if train else 20, (3, 32, 32), transform=transform)


def test_cifar10_parts(monkeypatch):
    monkeypatch.setattr(recipe_data, "CIFAR10", FakeCIFAR10)
    data = CIFAR10Data(num_workers=0, val_fraction=0.1)
    data.prepare_data()
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), data.num_classes) == (45, 5, 10)
    assert data.example_images.shape == (1, 3, 32, 32)
    image, again = data.val_set[0][0], data.val_set[0][0]
    assert torch.equal(image, again)
    data.setup("test")
    assert len(data.test_set) == 20


def test_cifar10_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"No CIFAR-10 in .* `data.download` is false"):
        CIFAR10Data(str(tmp_path), download=False).prepare_data()


def test_cifar10_download_failure_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("name resolution failed")

    monkeypatch.setattr(recipe_data, "CIFAR10", fail)
    with pytest.raises(RecipeError, match=r"could not be downloaded: .*name resolution failed"):
        CIFAR10Data().prepare_data()
