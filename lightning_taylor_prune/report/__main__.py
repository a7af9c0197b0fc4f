"""Write the report of a run again: ``python -m lightning_taylor_prune.report RESULTS.json [FOLDER]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_taylor_prune.report.results import Results


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m lightning_taylor_prune.report", description=__doc__)
    parser.add_argument("results", type=Path, help="file that Results.save wrote")
    parser.add_argument("folder", type=Path, nargs="?", help="folder for the report; by default that of the file")
    parsed = parser.parse_args(arguments)
    try:
        results = Results.load(parsed.results)
        from lightning_taylor_prune.report.page import write_report

        page = write_report(results, parsed.folder or parsed.results.parent)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(page)


if __name__ == "__main__":
    main()
