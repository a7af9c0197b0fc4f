"""The registry of the networks that a coverage run looks at."""

from __future__ import annotations

import pytest
import timm

from recipes.benchmarks.coverage_models import matching, registry


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        pytest.param([], ["a/vit", "b/vit_small", "b/swin"], id="all"),
        pytest.param(["vit"], ["a/vit", "b/vit_small"], id="part"),
        pytest.param(["b/*"], ["b/vit_small", "b/swin"], id="shell pattern"),
        pytest.param(["a/", "swin"], ["a/vit", "b/swin"], id="several"),
    ],
)
def test_matching(patterns: list[str], found: list[str]) -> None:
    assert matching(["a/vit", "b/vit_small", "b/swin"], patterns) == found


def test_every_timm_name_exists() -> None:
    names = [entry.name.partition("/")[2] for entry in registry().values() if entry.family == "timm"]
    assert len(names) > 24 and [name for name in names if not timm.is_model(name)] == []
