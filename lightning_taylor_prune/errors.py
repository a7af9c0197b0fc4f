"""Exceptions and warnings of the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_taylor_prune.groups.divergence import Divergence


class PruningError(RuntimeError):
    """Base class of everything this package raises while analysing or cutting a network."""


class TraceError(PruningError):
    """The network cannot be traced; the message names the line of the user's code and what to do.

    Attributes:
        in_forward: The forward pass itself could not be followed; submodules may still be traceable.
    """

    def __init__(self, message: str, in_forward: bool = False) -> None:
        super().__init__(message)
        self.in_forward = in_forward


class PlanError(PruningError, ValueError):
    """A plan does not fit the network it is applied to, or cannot be carried out."""


class ArgumentError(PlanError):
    """An argument cannot be used; the message names it, what was expected and what came."""


class VerificationError(PruningError):
    """The network's own code disagrees with the shapes a plan predicts; nothing was changed.

    Attributes:
        divergence: What disagreed: operator, source line, expected and actual shapes.
    """

    def __init__(self, message: str, divergence: Divergence | None = None) -> None:
        super().__init__(message)
        self.divergence = divergence


def missing_package(what: str, package: str, install: str) -> ImportError:
    """Return the error for a part of this package whose optional dependency cannot be imported.

    Args:
        what: The part, as the beginning of a sentence.
        package: The dependency.
        install: What to install with pip.

    Example:
        >>> missing_package("The progress bar needs", "rich", "rich")
        ImportError('The progress bar needs rich, which cannot be imported: pip install rich')
    """
    return ImportError(f"{what} {package}, which cannot be imported: pip install {install}")


class PruningWarning(UserWarning):
    """The package skipped or reset something that the user may want to know about."""
