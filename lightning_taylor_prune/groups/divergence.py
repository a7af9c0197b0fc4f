"""Where the network's code did not do what was predicted."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from torch import nn

from lightning_taylor_prune.labels.places import Site


@dataclass(frozen=True)
class Divergence:
    """Where the network's code did not do what was predicted.

    Attributes:
        site: Number of the trace, and position of the operator in it.
        message: What was expected and what the code did, with the source line.
        modules: The modules whose code was running, the innermost first.
        lines: Files and lines that were being executed, the innermost first.
        numbers: Integer arguments that the operator was called with.
    """

    site: Site
    message: str
    modules: tuple[nn.Module, ...] = ()
    lines: tuple[str, ...] = ()
    numbers: frozenset[int] = frozenset()


def frames_of(error: BaseException | None) -> tuple[tuple[nn.Module, ...], tuple[str, ...]]:
    """Return the modules whose code an exception passed through, and the lines, the innermost first."""
    modules: dict[int, nn.Module] = {}
    lines = []
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__ if error is not None else None)]):
        holder = frame.f_locals.get("self")
        if isinstance(holder, nn.Module):
            modules.setdefault(id(holder), holder)
        lines.append(f"{frame.f_code.co_filename}:{line}")
    return tuple(modules.values()), tuple(lines)
