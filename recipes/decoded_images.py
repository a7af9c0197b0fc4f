"""A data set: the images of a folder, kept in memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """The images of a folder, decoded once and kept in memory as bytes: a quarter of what floats would take.

    Args:
        folder: The files; its transform makes one uint8 tensor ``[channels, h, w]`` of each, all of one shape.
        transform: What is done to an image every time it is asked for.
    """

    def __init__(self, folder: ImageFolder, transform: v2.Transform) -> None:
        self.images = torch.stack([image for image, _ in folder])
        self.labels = list(folder.targets)
        self.transform = transform

    def viewed(self, transform: v2.Transform) -> DecodedImages:
        """Return the same images, not copied, under another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]
