"""Runs of the coverage recipe."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from recipes.benchmarks.coverage import main
from recipes.benchmarks.coverage_models import PLUGINS
from tests.recipes.benchmarks import networks


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., int]]:
    """Run the recipe here, its networks in processes of their own; what it sets in this process is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ, {PLUGINS: networks.__name__}):
        yield lambda out, *arguments: main([*arguments, "--out", str(out)])
    signal.signal(signal.SIGTERM, handler)
