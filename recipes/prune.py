"""Train, prune, retrain and compare an image classifier: ``python recipes/prune.py``.

Every setting lies in ``conf/``; ``python recipes/prune.py --help`` lists them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.errors import HydraException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes import stages
from recipes.errors import RecipeError

CONFIGS = Path(__file__).resolve().parents[1] / "conf"


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn the user's mistakes into one line on stderr and exit status 1."""
    try:
        yield
    except (RecipeError, MisconfigurationException, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


@hydra.main(config_path=str(CONFIGS), config_name="prune", version_base="1.3")
def prune(cfg: DictConfig) -> None:
    """Run the recipe that the command line describes."""
    with mistakes_in_one_line():
        stages.run(cfg)
    stages.console.print(f"Results: {cfg.output_dir}", markup=False, soft_wrap=True)


def main() -> None:
    """Read the command line and run it."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing and exiting
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # between Lightning and torch
    with mistakes_in_one_line():
        prune()


if __name__ == "__main__":
    main()
