"""The command line of this run, and the one that resumes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig

PROGRAM = "python recipes/prune.py"


def overrides() -> list[str]:
    """Return the overrides that were typed; none where Hydra was not started from a command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command_line(words: Sequence[str] | None = None) -> str:
    """Return the command that runs a recipe with some overrides; by default those of this run."""
    return " ".join([PROGRAM, *map(shlex.quote, overrides() if words is None else words)])


def resume_command(output: str, typed: Sequence[str] | None = None, left: Sequence[str] = ()) -> str:
    """Return the command that continues a stopped run: all that was typed, its folder, and stages still to do."""
    own = [f"run={output}", *([f"stage=[{','.join(left)}]"] if left else [])]
    replaced = {word.partition("=")[0] for word in own}
    kept = [word for word in (overrides() if typed is None else typed) if word.partition("=")[0] not in replaced]
    return command_line([*kept, *own])
