"""Families of timm that nobody chose: a random draw from those that the list of ``coverage_models.py`` leaves out.

Which ones they are depends on the seed, and on timm's version as far as that adds families; both stand in the table.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Iterable
from typing import Any

SEED = 2026
COUNT = 40
TINY = "test_*"
"""timm's networks for its own tests, which stand for no family."""


@functools.cache
def drawn(covered: tuple[str, ...], count: int = COUNT, seed: int = SEED) -> tuple[str, ...]:
    """Return families of timm (the names of its files) of which no network is covered; none without timm.

    Args:
        covered: Names of timm's networks.
        count: How many families to draw.
        seed: Of the draw.
    """
    if importlib.util.find_spec("timm") is None:
        return ()
    return tuple(random.Random(seed).sample(uncovered(covered), count))


def uncovered(covered: Iterable[str]) -> list[str]:
    """Return the families of timm, sorted, that none of these networks belongs to."""
    models, covered = importlib.import_module("timm.models"), set(covered)
    members = {family: set(models.list_models(module=family)) for family in models.list_modules()}
    return sorted(family for family, names in members.items() if names and not names & covered)


def smallest(family: str) -> str:
    """Return the network of fewest parameters, the first by name of several; none is allocated for that."""
    names = importlib.import_module("timm").list_models(module=family, exclude_filters=TINY)
    return min(sorted(names), key=_parameters)


def _parameters(name: str) -> int:
    import torch

    timm: Any = importlib.import_module("timm")
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())
