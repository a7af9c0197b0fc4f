import re
import shlex
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch import nn

CONF = Path(__file__).resolve().parents[2] / "conf"
IN_GROUPS = sorted(CONF.glob("*/**/*.yaml"))
COMMAND = ["#", "python", "recipes/prune.py"]
PARAMETERS = [nn.Parameter(torch.zeros(1))]


def schedule(cfg):
    return [instantiate(cfg.retrain.scheduler)(torch.optim.SGD(PARAMETERS, 0.1))]


# What an object built from a file of each group must be, and how the recipe builds it.
GROUPS = {
    "data": (L.LightningDataModule, lambda cfg: [instantiate(cfg.data)]),
    "model": (nn.Module, lambda cfg: [instantiate(cfg.model, in_channels=3, num_classes=10)]),
    "trainer": (L.Trainer, lambda cfg: [instantiate(cfg.trainer, num_nodes=1, devices=1)(logger=False)]),
    "pruning": (L.Callback, lambda cfg: [instantiate(cfg.pruning)]),
    "criterion": (L.Callback, lambda cfg: [instantiate(cfg.pruning)]),
    "schedule": (torch.optim.lr_scheduler.LRScheduler, schedule),
    "logger": (Logger, lambda cfg: [make(save_dir="out") for make in instantiate(cfg.logger).values()]),
    "recovery": (L.Callback, lambda cfg: [instantiate(cfg.recovery)]),
    "callbacks": (L.Callback, lambda cfg: list(instantiate(cfg.callbacks).values())),
}


def name(file):
    return str(file.relative_to(CONF).with_suffix(""))


def command(file):
    """The overrides of the command at the top of a file; of a sweep the first value of each."""
    lines = file.read_text().splitlines()
    words = shlex.split(lines[lines[0].startswith("# @package")])
    assert words[:3] == COMMAND
    typed = [word for word in words[3:] if word != "-m"]
    return [word.partition(",")[0] for word in typed] if "-m" in words else typed


def composed(*overrides, out="out"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("prune", [*overrides, f"output_dir={out}", f"run={out}"], return_hydra_config=True)


@pytest.fixture(params=IN_GROUPS, ids=name)
def file(request):
    return request.param


@pytest.fixture
def cfg(file, tmp_path):
    """The configuration that the command at the top of the file asks for."""
    return composed(*command(file), out=tmp_path)


def test_opening_command_selects_the_file(file, cfg):
    group = file.parent.name
    chosen = {stem for key, stem in cfg.hydra.runtime.choices.items() if key.partition("@")[0] == group}
    assert file.stem in chosen


def test_every_value_resolves(cfg):
    recipe = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.resolve(recipe)
    assert not OmegaConf.missing_keys(recipe)


@pytest.mark.parametrize("file", [f for f in IN_GROUPS if f.parent.name in GROUPS], ids=name, indirect=True)
def test_config_builds_its_object(file, cfg):
    kind, build = GROUPS[file.parent.name]
    built = build(cfg)
    assert built
    assert all(isinstance(thing, kind) for thing in built)


def test_every_group_is_looked_at():
    assert {file.parent.name for file in IN_GROUPS} - set(GROUPS) == {"experiment", "launcher", "sweeper"}


def test_top_level_file_opens_with_its_command():
    assert shlex.split((CONF / "prune.yaml").read_text().splitlines()[0]) == COMMAND


def test_default_logger_is_tensorboard_and_csv(compose_recipe):
    assert list(compose_recipe().logger) == ["tensorboard", "csv"]


@pytest.mark.parametrize("override", ["criterion=magnitude", "pruning.criterion=magnitude"])
def test_criterion_by_file_or_by_value(override):
    assert instantiate(composed(override).pruning).settings.criterion == "magnitude"


def test_worked_example_is_the_one_of_the_paper_trail():
    cfg = composed("experiment=cifar10_resnet20")
    assert cfg.pruning.max_prunes * cfg.pruning.every_n_steps == 1500
    prune, retrain = cfg.prune.optimizer, cfg.retrain.optimizer
    assert (cfg.data.batch_size, prune.lr, prune.momentum, cfg.pruning.filters_per_prune) == (256, 0.01, 0.9, 8)
    assert (retrain.lr, retrain.weight_decay, cfg.retrain.scheduler.step_size) == (0.01, 0.02, 2)
    assert (cfg.retrain.trainer.max_epochs, cfg.retrain.trainer.val_check_interval) == (10, 200)


@pytest.mark.parametrize(
    "overrides",
    [["nodes=2", "gpus=4"], ["experiment=imagenet_resnet50", "data.root=x", "nodes=3"]],
    ids=["by hand", "by experiment"],
)
def test_slurm_and_lightning_count_the_same_nodes_and_gpus(overrides):
    cfg = composed("launcher=slurm", *overrides)
    slurm, trainer = cfg.hydra.launcher, cfg.trainer
    assert slurm._target_.endswith("SlurmLauncher")
    assert trainer.num_nodes == slurm.nodes == cfg.nodes > 1
    assert trainer.devices == slurm.gpus_per_node == slurm.tasks_per_node == cfg.gpus > 1


def test_sweeper_searches_settings_that_exist():
    cfg = composed("sweeper=optuna")
    assert cfg.hydra.sweeper._target_.endswith("OptunaSweeper")
    assert len(cfg.hydra.sweeper.direction) == len(cfg.objectives)
    places = [key.rpartition(".") for key in cfg.hydra.sweeper.params]
    assert all(name in OmegaConf.select(cfg, parent) for parent, _, name in places)
    assert "compare" not in cfg.stage  # the test images are not for searching


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=name)
def test_commands_in_comments_name_files_that_are_there(file):
    chosen = re.findall(
        r"\b(data|model|trainer|criterion|logger|callbacks|launcher|sweeper|experiment)=([a-z0-9_]+)\b",
        file.read_text(),
    )
    assert all((CONF / group / f"{stem}.yaml").is_file() for group, stem in chosen if stem != "null")
