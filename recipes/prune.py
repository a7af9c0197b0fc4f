"""Train, prune, retrain and compare an image classifier: ``python recipes/prune.py``.

Every setting lies in ``conf/``; ``python recipes/prune.py --help`` lists them.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.errors import HydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lightning_taylor_prune import PruningError
from recipes import stages
from recipes.command import resume_command
from recipes.errors import RecipeError
from recipes.interrupts import Interrupted
from recipes.recipe import say

CONFIGS = Path(__file__).resolve().parents[1] / "conf"
MISTAKES = (RecipeError, PruningError, MisconfigurationException, HydraException, OmegaConfBaseException)


def one_line(error: BaseException) -> str:
    """Return an error's message as one line; of an object that Hydra could not build, the reason and its key."""
    cause = error.__cause__
    if isinstance(error, hydra.errors.InstantiationException) and cause is not None:
        key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        return " ".join(f"{key}: {one_line(cause)}".removeprefix(": ").split())
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn the user's mistakes into one line on stderr and exit status 1."""
    try:
        yield
    except MISTAKES as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("error: stopped by SIGINT, before anything was made")


def remove_if_bare(folder: Path) -> None:
    """Remove a folder that holds nothing but what Hydra notes of a configuration."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {".hydra"}:
        shutil.rmtree(folder)


@hydra.main(config_path=str(CONFIGS), config_name="prune", version_base="1.3")
def prune(cfg: DictConfig) -> float | list[float]:
    """Run the recipe that the command line describes; returns what a sweeper may search by."""
    with mistakes_in_one_line():  # here too: of an exception that gets out, Hydra prints more than the reason
        try:
            found = stages.run(cfg)
        except Interrupted as stop:
            raise Interrupted(f"{stop}. Go on with: {resume_command(cfg.output_dir, left=stop.left)}") from stop
        except (*MISTAKES, KeyboardInterrupt):
            remove_if_bare(Path(cfg.output_dir))
            raise
    say(f"Results: {cfg.output_dir}", markup=False, soft_wrap=True)
    sought = [found[name] for name in cfg.objectives if name in found]
    return sought[0] if len(sought) == 1 else sought


def main() -> None:
    """Read the command line and run it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # between Lightning and torch
    warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty")  # stages share a run's folder
    with mistakes_in_one_line():
        prune()


if __name__ == "__main__":
    main()
