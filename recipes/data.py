"""LightningDataModules: scikit-learn's digits, CIFAR-10, and a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from recipes.decoded_images import DecodedImages
from recipes.errors import RecipeError
from recipes.image_data import ImageData, ImageSet, split_indices


class DigitsData(ImageData):
    """1,797 handwritten digits, 8 x 8 grey pixels, bundled with scikit-learn.

    Args:
        test_fraction: Fraction of all images that is set apart for testing.
        batch_size: See :class:`ImageData`.
        num_workers: See :class:`ImageData`.
        val_fraction: See :class:`ImageData`.
        split_seed: See :class:`ImageData`.
    """

    MEAN, STD = 0.305, 0.376

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, val_fraction, split_seed)
        self.test_fraction = test_fraction

    def setup(self, stage: str | None = None) -> None:
        """Load all images and make the three parts."""
        digits = load_digits()
        images = (torch.from_numpy(digits.images).float().unsqueeze(1) / 16 - self.MEAN) / self.STD
        labels = torch.from_numpy(digits.target)
        rest, test = split_indices(len(labels), self.test_fraction, self.split_seed)
        training = TensorDataset(images[rest], labels[rest])
        self.class_names = [str(name) for name in digits.target_names]
        self.test_set = TensorDataset(images[test], labels[test])
        self._hold_out(training, training)


def as_floats(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    """Return the transforms from an image of bytes to a normalised float tensor."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]


class CIFAR10Data(ImageData):
    """CIFAR-10: 60,000 colour images, 32 x 32 pixels, in ten classes.

    Training images are flipped and cropped at random (padding 4).

    Args:
        root: Folder that holds the files, or in which they are stored.
        download: Download what is missing.
        batch_size: See :class:`ImageData`.
        num_workers: See :class:`ImageData`.
        val_fraction: See :class:`ImageData`.
        split_seed: See :class:`ImageData`.
    """

    MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        batch_size: int = 256,
        num_workers: int = 2,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, val_fraction, split_seed)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download the files if they are not there."""
        try:
            CIFAR10(self.root, download=self.download)
        except (RuntimeError, URLError) as error:
            hint = "could not be downloaded" if self.download else "`data.download` is false"
            raise RecipeError(f"No CIFAR-10 in `data.root={self.root}`, and {hint}: {error}") from error

    def setup(self, stage: str | None = None) -> None:
        """Open the part that ``stage`` needs: the test images only for ``"test"``."""
        plain = v2.Compose(as_floats(self.MEAN, self.STD))
        augment = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        if stage == "test":
            self.test_set = CIFAR10(self.root, train=False, transform=plain)
            return
        train = CIFAR10(self.root, transform=v2.Compose([*augment, *as_floats(self.MEAN, self.STD)]))
        self.class_names = train.classes
        self._hold_out(train, CIFAR10(self.root, transform=plain))


class ImageFolderData(ImageData):
    """Your own images, as ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Images are scaled and cropped to a square; training images are cropped anew at random and flipped.

    Args:
        root: Folder with the sub-folders of training and test images.
        image_size: Height and width that the network sees, in pixels.
        resize: Length of an image's shorter side before the middle is cut out; ``None``: ``image_size``.
        random_crop: How training images are cropped: ``"shift"``, by up to an eighth of their size after padding, or
            ``"zoom"``, to a part of random size and shape.
        test_folder: Name of the sub-folder of test images.
        in_memory: Decode all images once, at the start, and keep them: ``3 * image_size**2`` bytes each.
        batch_size: See :class:`ImageData`.
        num_workers: See :class:`ImageData`.
        val_fraction: See :class:`ImageData`.
        split_seed: See :class:`ImageData`.
    """

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self,
        root: str,
        image_size: int = 32,
        resize: int | None = None,
        random_crop: str = "shift",
        test_folder: str = "test",
        in_memory: bool = False,
        batch_size: int = 64,
        num_workers: int = 2,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, val_fraction, split_seed)
        if image_size < 1:
            raise RecipeError(f"Expected `data.image_size` to be at least 1 pixel, got {image_size}")
        if resize is not None and resize < image_size:
            raise RecipeError(f"Expected `data.resize` to be at least `data.image_size`, {image_size}, got {resize}")
        if random_crop not in ("shift", "zoom"):
            raise RecipeError(f"Expected `data.random_crop` to be shift or zoom, got {random_crop}")
        self.root = Path(root)
        self.image_size = image_size
        self.resize = image_size if resize is None else resize
        self.random_crop = random_crop
        self.test_folder = test_folder
        self.in_memory = in_memory

    def setup(self, stage: str | None = None) -> None:
        """Open the part that ``stage`` needs: the test images only for ``"test"``."""
        plain = v2.Compose(as_floats(self.MEAN, self.STD))
        middle = v2.Compose([v2.ToImage(), v2.Resize(self.resize), v2.CenterCrop(self.image_size)])
        if stage == "test":
            (self.test_set,) = self._views(self.test_folder, middle, [(middle, plain)])
            return
        zoom = self.random_crop == "zoom"
        crop = v2.RandomResizedCrop(self.image_size) if zoom else v2.RandomCrop(self.image_size, self.image_size // 8)
        augment = v2.Compose([crop, v2.RandomHorizontalFlip(), plain])
        train, val = self._views("train", middle, [(v2.ToImage() if zoom else middle, augment), (middle, plain)])
        self._hold_out(train, val)

    def _views(
        self, part: str, kept: v2.Transform, ways: Sequence[tuple[v2.Transform, v2.Transform]]
    ) -> list[ImageSet]:
        """Open the images of a part in several ways: what is done once (if they are kept in memory), and each time."""
        if not self.in_memory:
            return [self._open(part, v2.Compose([first, then])) for first, then in ways]
        images = DecodedImages(self._open(part, kept), kept)
        return [images.viewed(then) for _, then in ways]

    def prepare_data(self) -> None:
        """Check that both parts are there and have the same classes, before anything is trained."""
        classes = [self._open(part, None).classes for part in ("train", self.test_folder)]
        self.class_names = classes[0]
        if classes[0] != classes[1]:
            odd = sorted(set(classes[0]) ^ set(classes[1]))
            raise RecipeError(f"Folders of train and {self.test_folder} differ in {self.root}: {', '.join(odd)}")

    def _open(self, part: str, transform: v2.Transform | None) -> ImageFolder:
        folder = self.root / part
        if not folder.is_dir():
            needed = f"train/<class>/ and {self.test_folder}/<class>/"
            raise RecipeError(f"No folder {folder}: `data.root` must hold {needed}")
        try:
            return ImageFolder(folder, transform)
        except FileNotFoundError as error:
            raise RecipeError(f"No images of any class in {folder}: {error}".split("\n")[0]) from error
