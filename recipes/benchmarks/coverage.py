"""How much of which networks can be pruned.

Run ``python recipes/benchmarks/coverage.py [PATTERN ...] [--again] [--markdown]``.

Every network is built, analysed, cut by half in every group, compared with its masked self, trained for a step and
exported, in a process of its own with a limit on time and memory. One JSON file per network is written to the
output folder; networks that have one are skipped, so that a run which was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from rich.console import Console

from recipes.benchmarks.coverage_run import run_all
from recipes.benchmarks.coverage_table import as_markdown, as_table, is_bad, summary

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"timm": "timm", "drawn": "timm", "transformers": "transformers"}
"""What networks of a family need, beside torchvision."""
MARKDOWN = ROOT / "recipes" / "benchmarks" / "coverage.md"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process that is measured ends too
    from recipes.benchmarks.coverage_models import matching, registry

    names = matching(list(registry()), options.patterns)
    if options.list:
        print("\n".join(names))
        return 0
    if not names:
        sys.exit(f"error: no network matches {' '.join(options.patterns)}; --list shows all")
    options.libraries = sorted({LIBRARIES[f] for f in (name.partition("/")[0] for name in names) if f in LIBRARIES})
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    records = run_all(names, options, console)
    console.print(as_table(records))
    console.print(summary(records))
    if options.markdown is not None:
        options.markdown.write_text(as_markdown(records), encoding="utf-8")
    return 1 if any(is_bad(r) for r in records) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a name, or a shell pattern")
    parser.add_argument("--out", type=Path, default=Path("outputs/coverage"), help="folder of the JSON files")
    parser.add_argument("--again", action="store_true", help="also run networks that have a JSON file")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds of work a network may take")
    parser.add_argument("--memory-limit", type=float, default=14, help="GiB of memory a network may take")
    parser.add_argument("--threads", type=int, default=1, help="threads of the process that is measured")
    parser.add_argument("--markdown", type=Path, nargs="?", const=MARKDOWN, help="write the table, here by default")
    parser.add_argument("--list", action="store_true", help="only show the names")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
