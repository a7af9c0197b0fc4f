"""The families of timm that a coverage run draws at random."""

from __future__ import annotations

import timm

from recipes.benchmarks.coverage_drawn import COUNT, drawn, smallest, uncovered
from recipes.benchmarks.coverage_models import registry


def test_a_seed_always_draws_the_same_families() -> None:
    drawn.cache_clear()
    first = drawn(("resnet18",), 5, 1)
    drawn.cache_clear()
    assert first == drawn(("resnet18",), 5, 1) != drawn(("resnet18",), 5, 2)


def test_families_with_a_covered_network_are_not_drawn() -> None:
    assert "resnet" in uncovered(()) and "resnet" not in uncovered(["resnet18"])


def test_the_smallest_network_is_none_of_those_for_tests_of_timm() -> None:
    assert smallest("mambaout") == "mambaout_femto"


def test_every_drawn_family_is_a_row() -> None:
    families = [e.name.partition("/")[2] for e in registry().values() if e.family == "drawn"]
    assert len(set(families)) == COUNT and set(families) <= set(timm.models.list_modules())
