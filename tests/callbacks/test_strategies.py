"""Which strategies are accepted: subclasses of DDP's, but not those that hold parameters in other ways."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import strategies

from lightning_taylor_prune.callbacks.strategies import SHARDED, check_strategy
from lightning_taylor_prune.errors import PruningError


def subclass_of(kind: Any) -> Any:
    """Return a user's subclass, not initialised."""
    derived = type("Own", (kind,), {})
    return derived.__new__(derived)


@pytest.mark.parametrize("kind", [strategies.DDPStrategy, strategies.SingleDeviceStrategy], ids=lambda k: k.__name__)
def test_subclass_of_a_supported_strategy_is_accepted(kind: Any) -> None:
    check_strategy(subclass_of(kind))


@pytest.mark.parametrize("name", sorted(SHARDED))
def test_strategy_that_holds_parameters_in_other_ways_is_refused_with_its_subclasses(name: str) -> None:
    with pytest.raises(PruningError, match="one device or `ddp`, but got Own"):
        check_strategy(subclass_of(getattr(strategies, name)))
