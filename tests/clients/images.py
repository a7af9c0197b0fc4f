"""Clients that see images and volumes: segmentation, medicine, earth, anomalies, diffusion, contrast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.clients.training import Client, Training, repeated, wrapped


def labelled(channels: int = 3, pixels: int = 64, classes: int = 3, dims: int = 2) -> tuple[Tensor, Tensor]:
    """Return images or volumes with a class for every pixel."""
    shape = (2, *[pixels] * dims)
    return torch.randn(2, channels, *shape[1:]), torch.randint(classes, shape)


def per_pixel(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    output = network(batch[0])
    return F.cross_entropy(output[0] if isinstance(output, (list, tuple)) else output, batch[1])


def smp(name: str, encoder: str) -> Training:
    library = importlib.import_module("segmentation_models_pytorch")
    network = getattr(library, name)(encoder, encoder_weights=None, in_channels=3, classes=3)
    loss = library.losses.DiceLoss("multiclass")
    return wrapped(network, lambda net, batch: loss(net(batch[0]), batch[1]), labelled)


def monai(name: str, dims: int, pixels: int, **options: Any) -> Training:
    network = getattr(importlib.import_module("monai.networks.nets"), name)(**options)
    return wrapped(network, per_pixel, partial(labelled, 1, pixels, 2, dims))


def monai_classifier(name: str, **options: Any) -> Training:
    network = getattr(importlib.import_module("monai.networks.nets"), name)(**options)
    return wrapped(network, per_pixel, lambda: (torch.randn(2, 1, 32, 32, 32), torch.randint(3, (2,))))


def torchgeo_byol() -> Training:
    task = importlib.import_module("torchgeo.trainers").BYOLTask("test_resnet", in_channels=4)
    return Training(task.train(), repeated(lambda: {"image": torch.rand(2, 4, 32, 32)}))


def torchgeo_segmentation() -> Training:
    task = importlib.import_module("torchgeo.trainers").SemanticSegmentationTask(
        "unet", "resnet18", in_channels=4, num_classes=3
    )
    keys = ("image", "mask")
    return Training(task.train(), repeated(lambda: dict(zip(keys, labelled(4), strict=True))))


def torchgeo_classification() -> Training:
    task = importlib.import_module("torchgeo.trainers").ClassificationTask("resnet18", in_channels=4, num_classes=3)
    return Training(task.train(), repeated(lambda: {"image": torch.rand(2, 4, 64, 64), "label": torch.tensor([0, 1])}))


def anomalib(name: str, **options: Any) -> Training:
    models, data = importlib.import_module("anomalib.models"), importlib.import_module("anomalib.data")
    parts = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
    module = getattr(models, name)(**parts, **options)
    return Training(module.train(), repeated(lambda: data.ImageBatch(image=torch.rand(2, 3, 64, 64))))


def denoise(network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    return F.mse_loss(network(**batch).sample, batch["sample"])


def diffusers_unet() -> Training:
    network = importlib.import_module("diffusers").UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    batch = lambda: {"sample": torch.randn(2, 3, 16, 16), "timestep": torch.tensor([1, 5])}  # noqa: E731
    return wrapped(network, denoise, batch)


def diffusers_autoencoder() -> Training:
    network = importlib.import_module("diffusers").AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    return wrapped(network, denoise, lambda: {"sample": torch.randn(2, 3, 16, 16)})


def open_clip() -> Training:
    library = importlib.import_module("open_clip")
    network = library.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2},
    )
    loss = library.ClipLoss()
    batch = lambda: (torch.randn(2, 3, 32, 32), torch.randint(99, (2, 12)))  # noqa: E731
    return wrapped(network, lambda net, batch: loss(*net(*batch)), batch)


def timm(name: str, **options: Any) -> Training:
    network = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=3, **options)
    return wrapped(network, per_pixel, lambda: (torch.randn(2, 3, 64, 64), torch.tensor([0, 1])))


SMP = {"library": "segmentation_models_pytorch", "package": "segmentation-models-pytorch"}
MONAI = {"library": "monai.networks.nets", "package": "monai"}
TORCHGEO = {"library": "torchgeo.trainers", "package": "torchgeo"}
ANOMALIB = {"library": "anomalib.models", "package": "anomalib"}
DIFFUSERS = {"library": "diffusers", "package": "diffusers"}
UNET = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (8, 16, 32),
    "strides": (2, 2),
    "num_res_units": 1,
}
VIT = {"img_size": 32, "hidden_size": 32, "mlp_dim": 64, "num_heads": 4}

CLIENTS = {
    "smp/unet": Client(**SMP, build=partial(smp, "Unet", "resnet18")),
    "smp/fpn": Client(**SMP, build=partial(smp, "FPN", "mobilenet_v2")),
    "smp/deeplabv3plus": Client(**SMP, build=partial(smp, "DeepLabV3Plus", "resnet18")),
    "smp/segformer": Client(**SMP, build=partial(smp, "Segformer", "mit_b0")),
    "monai/unet": Client(**MONAI, build=partial(monai, "UNet", 3, 16, **UNET)),
    "monai/segresnet": Client(
        **MONAI, build=partial(monai, "SegResNet", 3, 16, spatial_dims=3, init_filters=8, out_channels=2)
    ),
    "monai/unetr": Client(
        **MONAI, build=partial(monai, "UNETR", 3, 32, in_channels=1, out_channels=2, feature_size=8, **VIT)
    ),
    "monai/swinunetr": Client(
        **MONAI, build=partial(monai, "SwinUNETR", 3, 32, in_channels=1, out_channels=2, feature_size=12)
    ),
    "monai/densenet": Client(
        **MONAI, build=partial(monai_classifier, "DenseNet121", spatial_dims=3, in_channels=1, out_channels=3)
    ),
    "torchgeo/byol": Client(**TORCHGEO, build=torchgeo_byol),
    "torchgeo/segmentation": Client(**TORCHGEO, build=torchgeo_segmentation),
    "torchgeo/classification": Client(**TORCHGEO, build=torchgeo_classification),
    "anomalib/ganomaly": Client(**ANOMALIB, build=partial(anomalib, "Ganomaly", n_features=16)),
    "diffusers/unet": Client(**DIFFUSERS, build=diffusers_unet),
    "diffusers/autoencoder": Client(**DIFFUSERS, build=diffusers_autoencoder),
    "open_clip/vit": Client("open_clip", "open_clip_torch", open_clip),
    "timm/resnet18": Client("timm", "timm", partial(timm, "resnet18")),
    "timm/vit": Client("timm", "timm", partial(timm, "vit_tiny_patch16_224", img_size=64, depth=2)),
}
