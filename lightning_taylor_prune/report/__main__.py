"""Write the report of a run again: ``python -m lightning_taylor_prune.report RESULTS.json [FOLDER]``.

``taylor-prune report`` does the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_taylor_prune.report.results import Results


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m lightning_taylor_prune.report", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args(arguments))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("results", type=Path, help="file that Results.save wrote")
    parser.add_argument("folder", type=Path, nargs="?", help="folder for the report; by default that of the file")


def run(arguments: argparse.Namespace) -> None:
    """Write the report, and print its path.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The file does not hold results.
        ImportError: A library that draws is missing.
    """
    results = Results.load(arguments.results)
    from lightning_taylor_prune.report.page import write_report

    print(write_report(results, arguments.folder or arguments.results.parent))


if __name__ == "__main__":
    main()
