import shlex
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch import nn

CONF = Path(__file__).resolve().parents[2] / "conf"
IN_GROUPS = sorted(CONF.glob("*/*.yaml"))
COMMAND = ["#", "python", "recipes/prune.py"]

# What an object built from a file of each group must be, and how the recipe builds it.
GROUPS = {
    "data": (L.LightningDataModule, lambda cfg: [instantiate(cfg)]),
    "model": (nn.Module, lambda cfg: [instantiate(cfg, in_channels=3, num_classes=10)]),
    "trainer": (L.Trainer, lambda cfg: [instantiate(cfg)(logger=False)]),
    "pruning": (L.Callback, lambda cfg: [instantiate(cfg)]),
    "logger": (Logger, lambda cfg: [make(save_dir="out") for make in instantiate(cfg).values()]),
}


def name(file):
    return str(file.relative_to(CONF).with_suffix(""))


@pytest.fixture(params=IN_GROUPS, ids=name)
def file(request):
    return request.param


@pytest.fixture
def cfg(file):
    """The configuration that the command at the top of the file asks for."""
    lines = file.read_text().splitlines()
    words = shlex.split(lines[lines[0].startswith("# @package")])
    assert words[:3] == COMMAND
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("prune", [*words[3:], "output_dir=out"], return_hydra_config=True)


def test_opening_command_selects_the_file(file, cfg):
    assert cfg.hydra.runtime.choices[file.parent.name] == file.stem


def test_every_value_resolves(cfg):
    recipe = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.resolve(recipe)
    assert not OmegaConf.missing_keys(recipe)


def test_config_builds_its_object(file, cfg):
    group = file.parent.name
    kind, build = GROUPS[group]
    built = build(cfg[group])
    assert built
    assert all(isinstance(thing, kind) for thing in built)


def test_top_level_file_opens_with_its_command():
    assert shlex.split((CONF / "prune.yaml").read_text().splitlines()[0]) == COMMAND


def test_default_logger_is_tensorboard_and_csv(compose_recipe):
    assert list(compose_recipe().logger) == ["tensorboard", "csv"]
