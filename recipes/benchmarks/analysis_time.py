"""How long the analysis of networks takes, on one thread.

Run ``OMP_NUM_THREADS=1 python recipes/benchmarks/analysis_time.py cait_xxs24_224 davit_small``. It prints a table in
Markdown, with the processor's time, which other work on the machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from lightning_taylor_prune import find_groups


def measure(name: str) -> str:
    """Return the row of a network of timm, built without trained weights and called with two images."""
    import timm

    model = timm.create_model(name)
    images = torch.zeros(2, *model.default_cfg["input_size"])
    before = time.process_time()
    groups = find_groups(model, images)
    seconds = time.process_time() - before
    operators = sum(len(trace.ops) for trace in groups.structure.propagation.traces)
    return f"| {name} | {operators:,} | {groups.params / 1e6:.1f} | {seconds:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a network of timm")
    names: list[str] = parser.parse_args().names
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"torch {version('torch')}, timm {version('timm')}, Python {sys.version.split()[0]}\n")
    print("| Network | Operators, both modes | Parameters, millions | Seconds |\n|---|---|---|---|")
    for name in names:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
