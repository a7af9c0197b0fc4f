"""Images in three parts, their split, and the loaders of a LightningDataModule."""

from __future__ import annotations

import signal
from typing import TypeAlias

import lightning as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import VisionDataset

from recipes.decoded_images import DecodedImages
from recipes.errors import RecipeError

ImageLoader: TypeAlias = DataLoader[tuple[Tensor, int]]
ImageSet: TypeAlias = Subset[tuple[Tensor, int]] | TensorDataset | VisionDataset | DecodedImages


def split_indices(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split ``range(count)`` at random into (kept, held out), the latter ``fraction`` of all."""
    if not 0 < fraction < 1:
        raise RecipeError(f"Expected a held-out fraction between 0 and 1, got {fraction}")
    held_out = round(count * fraction)
    if not 0 < held_out < count:
        raise RecipeError(f"{count} images are too few to hold out a fraction of {fraction}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[held_out:], order[:held_out]


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which reaches the processes that load images too, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ImageData(L.LightningDataModule):
    """Images and labels in three parts: ``train``; ``val``, held out of it to guide decisions; and ``test``.

    A subclass sets ``class_names``, ``train_set``, ``val_set`` and ``test_set``.

    Args:
        batch_size: Images in a mini-batch.
        num_workers: Processes that load images.
        val_fraction: Fraction of the training images that is held out for validation.
        split_seed: Seed of the split, apart from the seed of the run: all runs see the same parts.
    """

    def __init__(self, batch_size: int, num_workers: int, val_fraction: float, split_seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.class_names: list[str] = []
        self.train_set: ImageSet
        self.val_set: ImageSet
        self.test_set: ImageSet

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def example_images(self) -> Tensor:
        """A batch of one validation image, ``[1, channels, h, w]``."""
        return self.val_set[0][0].unsqueeze(0)

    def train_dataloader(self) -> ImageLoader:
        """Shuffled mini-batches; a smaller last one is dropped unless it is all there is."""
        drop_last = len(self.train_set) >= self.batch_size
        return self._loader(self.train_set, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> ImageLoader:
        """Validation images, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> ImageLoader:
        """Test images, in order."""
        return self._loader(self.test_set)

    def _loader(self, images: ImageSet, shuffle: bool = False, drop_last: bool = False) -> ImageLoader:
        trainer, sampler = self.trainer, None
        if trainer is not None and trainer.world_size > 1 and not shuffle:
            # Lightning's own sampler would evaluate some images twice.
            sampler = UnrepeatedDistributedSampler(images, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(
            images,
            batch_size=self.batch_size,
            sampler=sampler,
            shuffle=shuffle,
            worker_init_fn=ignore_interrupt,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _hold_out(self, train: ImageSet, val: ImageSet) -> None:
        """Split two views of the same images, transformed for training and for evaluation."""
        kept, held_out = split_indices(len(train), self.val_fraction, self.split_seed)
        self.train_set, self.val_set = Subset(train, kept), Subset(val, held_out)
