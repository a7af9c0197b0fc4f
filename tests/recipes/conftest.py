from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def compose_into() -> Callable[..., DictConfig]:
    """Compose the configuration of `recipes/prune.py` from overrides, with its output in a folder."""

    def build(out: Path, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("prune", [f"output_dir={out}", f"run={out}", *overrides])

    return build


@pytest.fixture
def compose_recipe(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose the configuration of `recipes/prune.py` from overrides, with its output in `tmp_path`."""

    def build(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("prune", [f"output_dir={tmp_path}/out", *overrides])

    return build
