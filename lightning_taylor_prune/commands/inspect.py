"""``taylor-prune inspect``: what can be removed from a network, before anything is."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from lightning_taylor_prune.commands.targets import add_target_arguments, build_target
from lightning_taylor_prune.report.inspection import Inspection, inspect

NAME = "inspect"
SUMMARY = "Say what can be removed from a network, before anything is: largest possible reductions, groups, locks."
EXAMPLES = """\
  taylor-prune inspect resnet50 --input 1,3,224,224
  taylor-prune inspect my_package.models:build --kwargs '{"num_classes": 10}' --input 1,3,32,32 --html groups.html
  taylor-prune inspect my_package.models:build_gpt --input 1,128:int64 --json > groups.json
  taylor-prune inspect resnet18 --input 1,3,224,224 --exclude 'layer4.*' --min-channels 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_target_arguments(parser)
    parser.add_argument("--exclude", nargs="+", default=[], metavar="LAYER", help="layers or patterns to keep whole")
    parser.add_argument("--min-channels", type=int, default=1, metavar="N", help="units every group keeps (1)")
    parser.add_argument("--max-pruning-ratio", type=float, default=1.0, metavar="R", help="largest share removed (1.0)")
    parser.add_argument("--rewrite-hard-coded", action="store_true", help="free what sizes in the code lock")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with a drawing of the groups")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")


def run(arguments: argparse.Namespace) -> None:
    """Inspect the network, and print what was found."""
    write = None if arguments.html is None else _page_writer()
    with contextlib.redirect_stdout(sys.stderr):  # what the network's own code prints is no part of the result
        target = build_target(arguments)
        found = inspect(
            target.model,
            target.inputs,
            target.kwargs,
            exclude=arguments.exclude,
            min_channels=arguments.min_channels,
            max_pruning_ratio=arguments.max_pruning_ratio,
            rewrite_hard_coded=arguments.rewrite_hard_coded,
        )
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        show(found)
    if write is not None:
        print(f"Drawing: {write(found, arguments.html)}", file=sys.stderr)


def _page_writer() -> Callable[[Inspection, Path], Path]:
    """Return what writes the page; a library that is missing for it is told before the analysis, not after."""
    from lightning_taylor_prune.report.inspection_page import write_inspection

    return write_inspection


def show(found: Inspection) -> None:
    """Print tables: with rich on a terminal, if it is there; plain text into a pipe or a file."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import rich

            rich.print(found)
            return
    print(found)
