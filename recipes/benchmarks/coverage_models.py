"""The networks that ``recipes/benchmarks/coverage.py`` looks at: name -> how to build one, and how a trainer calls it.

Weights are random, images small and configurations short wherever that keeps what is characteristic of the network;
what is timed and counted is the network as it is built here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

from recipes.benchmarks.coverage_drawn import drawn, smallest

PLUGINS = "COVERAGE_MODELS"
"""Environment variable: modules (comma-separated) whose ``ENTRIES`` join the registry, for networks of one's own."""


@dataclass(frozen=True, eq=False)
class Built:
    """A network and one call of it.

    Attributes:
        model: The network, in training mode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        free_shapes: The shapes of what comes out depend on the weights (the number of boxes found, say).
        dtype: To be run in this precision, as double is too slow, or float32 too coarse.
        member: Which network it is, where the row is named after a family.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    free_shapes: bool = False
    dtype: torch.dtype | None = None
    member: str = ""


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        name: ``family/model``.
        build: Builds the network and its arguments.
        refusal: Expected to be refused with an error that says why.
    """

    name: str
    build: Callable[[], Built]
    refusal: bool = False

    @property
    def family(self) -> str:
        """Where the network comes from."""
        return self.name.partition("/")[0]


def images(pixels: int, batch: int = 2) -> tuple[Tensor]:
    """Return random images, shape ``[batch, 3, pixels, pixels]``."""
    return (torch.randn(batch, 3, pixels, pixels),)


# --- torchvision: classification -----------------------------------------------------------------------------------

_PIXELS = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}


def _classifier(name: str) -> Built:
    pixels = _PIXELS.get(name, 64)
    options: dict[str, Any] = {"image_size": pixels} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    with _cheap_init():
        return Built(torchvision.models.get_model(name, weights=None, **options), images(pixels))


def _cheap_init() -> Any:
    """Let weights of torchvision's largest be filled in seconds: uniform, with the variance that keeps signals."""

    def fill(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bound = (3.0 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.dim() > 1 else 0.1
        with torch.no_grad():
            return tensor.uniform_(-bound, bound)

    names = ["kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_", "normal_", "uniform_"]
    fillers: dict[str, Any] = dict.fromkeys(names, fill)
    return mock.patch.multiple(nn.init, **fillers)


# --- torchvision: the rest -----------------------------------------------------------------------------------------


def _segmentation(name: str) -> Built:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21, **options)
    return Built(model, images(64))


def _detector(name: str, pixels: int, **options: Any) -> Built:
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
    targets = [_target(name, pixels) for _ in range(2)]
    return Built(model, ([torch.rand(3, pixels, pixels) for _ in targets], targets), free_shapes=True)


def _target(name: str, pixels: int) -> dict[str, Tensor]:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.9]]) * pixels
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    if name.startswith("maskrcnn"):
        target["masks"] = (torch.rand(2, pixels, pixels) > 0.5).to(torch.uint8)
    if name.startswith("keypointrcnn"):
        points = boxes[:, None, :2] + torch.rand(2, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
        target["keypoints"] = torch.cat([points, torch.ones(2, 17, 1)], dim=2)
    return target


_SMALL = {"min_size": 128, "max_size": 128}
_RCNN = {**_SMALL, "box_score_thresh": 0.0, "rpn_pre_nms_top_n_train": 50, "rpn_pre_nms_top_n_test": 50}
_DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": _RCNN,
    "fasterrcnn_resnet50_fpn_v2": _RCNN,
    "fasterrcnn_mobilenet_v3_large_fpn": _RCNN,
    "maskrcnn_resnet50_fpn": _RCNN,
    "maskrcnn_resnet50_fpn_v2": _RCNN,
    "keypointrcnn_resnet50_fpn": _RCNN,
    "retinanet_resnet50_fpn": {**_SMALL, "score_thresh": 0.0},
    "retinanet_resnet50_fpn_v2": {**_SMALL, "score_thresh": 0.0},
    "fcos_resnet50_fpn": {**_SMALL, "score_thresh": 0.0},
    "ssd300_vgg16": {"score_thresh": 0.0},
    "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.0},
}


def _detection(name: str) -> Built:
    fixed = 300 if name.startswith("ssd300") else 320 if name.startswith("ssdlite") else 128
    return _detector(name, fixed, **_DETECTORS[name])


_CLIPS = {  # frames, pixels
    "r3d_18": (4, 32),
    "mc3_18": (4, 32),
    "r2plus1d_18": (4, 32),
    "s3d": (16, 224),
    "mvit_v1_b": (4, 64),
    "swin3d_t": (4, 64),
}


def _video(name: str) -> Built:
    frames, pixels = _CLIPS[name]
    mvit = partial(_small_mvit, torchvision.models.video.MViT, frames, pixels)
    with mock.patch.object(torchvision.models.video.mvit, "MViT", mvit):  # its sizes cannot be chosen otherwise
        model = torchvision.models.get_model(name, weights=None)
    clips = torch.randn(2 if frames < 16 else 1, 3, frames, pixels, pixels)
    # Depthwise convolutions over three axes take minutes in double precision.
    return Built(model, (clips,), dtype=torch.float32 if name == "mvit_v1_b" else None)


def _small_mvit(kind: type[nn.Module], frames: int, pixels: int, **options: Any) -> nn.Module:
    return kind(**{**options, "spatial_size": (pixels, pixels), "temporal_size": frames})


def _raft() -> Built:
    raft: Any = importlib.import_module("torchvision.models.optical_flow.raft")
    grid = raft.make_coords_grid
    # Its coordinates are of 32 bits, and what is looked up there amplifies rounding beyond the tolerance; every network
    # has a process of its own, so that this one may have them in double precision.
    raft.make_coords_grid = lambda *args, **kwargs: grid(*args, **kwargs).double()
    model = torchvision.models.optical_flow.raft_small(weights=None)
    return Built(model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)), {"num_flow_updates": 2})


def _quantizable(name: str, quantize: bool = False) -> Built:
    if quantize:
        torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    return Built(getattr(torchvision.models.quantization, name)(weights=None, quantize=quantize), images(64))


# --- timm ----------------------------------------------------------------------------------------------------------

_TIMM: dict[str, tuple[int, dict[str, Any]]] = {  # pixels, further options
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit3_small_patch16_224": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (224, {}),
    "swinv2_tiny_window8_256": (256, {}),
    "swinv2_cr_tiny_ns_224": (224, {}),
    "maxvit_pico_rw_256": (256, {}),
    "maxvit_rmlp_pico_rw_256": (256, {}),
    "coatnet_pico_rw_224": (224, {}),
    "coatnet_rmlp_nano_rw_224": (224, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "xcit_nano_12_p16_224": (64, {}),
    "hrnet_w18_small": (64, {}),
    "hrnet_w18": (64, {}),
    "dla34": (64, {}),
    "dla46x_c": (64, {}),
    "ghostnet_050": (64, {}),
    "ghostnetv2_100": (64, {}),
    "eca_nfnet_l0": (64, {}),
    "nfnet_f0": (64, {}),
    "nf_resnet50": (64, {}),
    "repvgg_a0": (64, {}),
    "poolformer_s12": (64, {}),
    "poolformerv2_s12": (64, {}),
    "efficientformerv2_s0": (224, {}),
    "fastvit_t8": (64, {}),
    "fastvit_sa12": (64, {}),
    "convnextv2_atto": (64, {}),
    "cspresnet50": (64, {}),
    "cspdarknet53": (64, {}),
    "levit_128s": (224, {}),
    "tiny_vit_5m_224": (224, {}),
    "edgenext_xx_small": (64, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "beit_base_patch16_224": (64, {"img_size": 64}),
    "beitv2_base_patch16_224": (64, {"img_size": 64}),
}


def _timm(name: str) -> Built:
    timm = importlib.import_module("timm")
    pixels, options = _TIMM[name]
    return Built(timm.create_model(name, pretrained=False, **options), images(pixels))


_PIXELS_OF_LARGE = {"deepseek_vit": 182, "gemma4_vit": 240}
"""Families whose smallest network is so large that it would take hours with images of the size it was made for."""


def _timm_family(family: str) -> Built:
    """Build the smallest network of a family as timm does, with images of the size that it was made for, mostly."""
    name = smallest(family)
    model = importlib.import_module("timm").create_model(name, pretrained=False)
    pixels = _PIXELS_OF_LARGE.get(family, model.default_cfg["input_size"][-1])
    # float32 rounds its output by more than the tolerance.
    return Built(model, images(pixels), dtype=torch.float64 if family == "gemma4_vit" else None, member=name)


# --- transformers --------------------------------------------------------------------------------------------------

_TOKENS = 12
_VOCABULARY = 99


def _transformers(model: str, config: str, options: Mapping[str, Any], call: str) -> Built:
    library = importlib.import_module("transformers")
    built = getattr(library, model)(getattr(library, config)(**options))
    return Built(built.train(), (), _CALLS[call]())


def _tokens() -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(_VOCABULARY, (2, _TOKENS)),
        "attention_mask": torch.ones(2, _TOKENS, dtype=torch.int64),
    }


def _language() -> dict[str, Tensor]:
    tokens = _tokens()
    return {**tokens, "labels": tokens["input_ids"]}


_CALLS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "tokens": _tokens,
    "language": _language,
    "classes": lambda: {**_tokens(), "labels": torch.tensor([0, 1])},
    "pixels": lambda: {"pixel_values": images(32)[0], "labels": torch.tensor([0, 1])},
}

_BERT = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
_VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
_GPT2 = {"vocab_size": _VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "use_cache": False}

_TRANSFORMERS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "vit_image_classification": ("ViTForImageClassification", "ViTConfig", _VIT, "pixels"),
    "bert": ("BertModel", "BertConfig", _BERT, "tokens"),
    "bert_sequence_classification": ("BertForSequenceClassification", "BertConfig", _BERT, "classes"),
    "bert_masked_lm": ("BertForMaskedLM", "BertConfig", _BERT, "language"),
    "gpt2": ("GPT2Model", "GPT2Config", _GPT2, "tokens"),
    "gpt2_lm": ("GPT2LMHeadModel", "GPT2Config", _GPT2, "language"),
    "llama": ("LlamaModel", "LlamaConfig", _LLAMA, "tokens"),
    "llama_causal_lm": ("LlamaForCausalLM", "LlamaConfig", _LLAMA, "language"),
    "llama_causal_lm_eager": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "attn_implementation": "eager"},
        "language",
    ),
}


# --- all of them ---------------------------------------------------------------------------------------------------


def _built_in() -> list[Entry]:
    classifiers = torchvision.models.list_models(module=torchvision.models)
    segmenters = torchvision.models.list_models(module=torchvision.models.segmentation)
    quantizable = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x0_5", "googlenet")
    return [
        *(Entry(f"transformers/{n}", partial(_transformers, *spec)) for n, spec in _TRANSFORMERS.items()),
        *(Entry(f"timm/{n}", partial(_timm, n)) for n in _TIMM),
        *(Entry(f"drawn/{family}", partial(_timm_family, family)) for family in drawn(tuple(_TIMM))),
        *(Entry(f"segmentation/{n}", partial(_segmentation, n)) for n in segmenters),
        *(Entry(f"detection/{n}", partial(_detection, n)) for n in _DETECTORS),
        *(Entry(f"video/{n}", partial(_video, n)) for n in _CLIPS),
        Entry("flow/raft_small", _raft),
        *(Entry(f"quantizable/{n}", partial(_quantizable, n)) for n in quantizable),
        Entry("quantizable/resnet18_quantized", partial(_quantizable, "resnet18", True), refusal=True),
        *(Entry(f"classification/{n}", partial(_classifier, n)) for n in classifiers),
    ]


def registry() -> dict[str, Entry]:
    """Return every network by name."""
    extra = [name for name in os.environ.get(PLUGINS, "").split(",") if name]
    entries = [*_built_in(), *(entry for name in extra for entry in importlib.import_module(name).ENTRIES)]
    return {entry.name: entry for entry in entries}


def matching(names: list[str], patterns: list[str]) -> list[str]:
    """Return the names that some pattern matches: a shell pattern, or part of the name; all if there is none."""
    return [n for n in names if not patterns or any(fnmatchcase(n, p) or p in n for p in patterns)]
