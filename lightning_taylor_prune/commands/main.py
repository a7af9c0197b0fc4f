"""Read the command line, run the command, end with an exit code: 0 for success, 1 for an error, 2 for wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol

from lightning_taylor_prune.commands import inspect, report


class Command(Protocol):
    """What a module in this folder offers."""

    NAME: str
    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what the command takes."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Do what the command is for."""


COMMANDS: tuple[Command, ...] = (inspect, report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error ends as one line on the standard error stream."""
    parsed = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, ImportError, RuntimeError) as error:  # a PruningError is a RuntimeError
        if parsed.traceback:
            raise
        sys.exit(f"error: {one_line(error)}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = argparse.ArgumentParser(prog="taylor-prune", description="Structured pruning of PyTorch networks.")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(own)
        own.add_argument("--traceback", action="store_true", help="show where an error comes from")
        own.set_defaults(run=command.run)
    return whole


def one_line(error: BaseException) -> str:
    r"""Return the message of an error without its line breaks.

    Example:
        >>> one_line(ValueError("two\n  lines"))
        'two lines'
    """
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
