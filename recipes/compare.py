"""Turn a sweep into one table and one plot: ``python recipes/compare.py outputs/prune_sweep/FOLDER``.

Runs that differ in nothing but their seed are one setting, of which mean and standard deviation are shown. Choose
between settings by the accuracy on held-out images; that on test images is there to be reported, of what was chosen.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: Python then looks for modules in recipes/, not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml
from rich.console import Console
from rich.table import Table

from recipes.errors import RecipeError
from recipes.folder import OUTCOME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERRIDES = Path(".hydra") / "overrides.yaml"
NO_SETTING = {"seed", "run", "stage"}  # overrides that do not make a run another experiment


@dataclass(frozen=True)
class Measure:
    """Something that is measured of every run: its name in files, its heading, and how it is written."""

    name: str
    heading: str
    shown: Callable[[float], str]


MEASURES = (
    Measure("val_acc", "held-out accuracy (%)", lambda value: f"{100 * value:.2f}"),
    Measure("test_acc", "test accuracy (%)", lambda value: f"{100 * value:.2f}"),
    Measure("params", "learnables", lambda value: f"{value:,.0f}"),
)


@dataclass(frozen=True)
class Run:
    """One finished run: the overrides that it was started with, and what came out by name of the measure."""

    overrides: Mapping[str, str]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed only."""

    name: str
    runs: tuple[Run, ...]

    def values(self, measure: str) -> list[float]:
        """Return what was measured of each run; empty unless it was of all."""
        found = [run.values[measure] for run in self.runs if measure in run.values]
        return found if len(found) == len(self.runs) else []

    def mean(self, measure: str) -> float | None:
        """Return the mean over runs, None if not all were measured."""
        found = self.values(measure)
        return statistics.fmean(found) if found else None

    def deviation(self, measure: str) -> float | None:
        """Return the standard deviation over runs (of a sample), None of fewer than two."""
        found = self.values(measure)
        return statistics.stdev(found) if len(found) > 1 else None


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Return the finished runs anywhere below some folders, and the folders of the unfinished ones."""
    runs, unfinished = [], []
    for folder in folders:
        for file in sorted(folder.rglob(str(OVERRIDES))):
            place = file.parents[1]
            outcome = place / OUTCOME
            if outcome.is_file():
                typed = yaml.safe_load(file.read_text("utf-8")) or []
                runs.append(Run(as_dict(typed), json.loads(outcome.read_text("utf-8")) | test_accuracy(place)))
            else:
                unfinished.append(place)
    return runs, unfinished


def as_dict(overrides: Iterable[str]) -> dict[str, str]:
    """Turn ``["a=1", "+b=2"]`` into a mapping."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def test_accuracy(folder: Path) -> dict[str, float]:
    """Return the accuracy on test images of the pruned network, if the run's comparison was made."""
    file = folder / "comparison.json"
    rows = json.loads(file.read_text("utf-8")) if file.is_file() else []
    found = [row["pruned"] / 100 for row in rows if row["metric"] == "accuracy (%)"]
    return {"test_acc": found[0]} if found else {}


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Gather runs into settings, highest mean accuracy on held-out images first."""
    keys = sorted({key for run in runs for key in run.overrides} - NO_SETTING)
    varying = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        gathered.setdefault(name_of(run, varying), []).append(run)
    settings = [Setting(name, tuple(same)) for name, same in gathered.items()]
    return sorted(settings, key=lambda setting: (-(setting.mean("val_acc") or 0.0), setting.name))


def name_of(run: Run, varying: Sequence[str]) -> str:
    """Return what tells a run's setting from others: the value alone where only one thing differs."""
    chosen = {key: run.overrides.get(key, "default") for key in varying}
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    return " ".join(f"{key}={value}" for key, value in chosen.items()) or "all runs"


def measured(settings: Sequence[Setting]) -> list[Measure]:
    """Return the measures that at least one setting has."""
    return [measure for measure in MEASURES if any(setting.values(measure.name) for setting in settings)]


def rows_of(settings: Sequence[Setting]) -> list[list[str]]:
    """Return the table as text, its heading first."""
    measures = measured(settings)
    heading = ["setting", "runs", *(measure.heading for measure in measures)]
    return [heading, *([s.name, str(len(s.runs)), *(cell(s, m) for m in measures)] for s in settings)]


def cell(setting: Setting, measure: Measure) -> str:
    """Return mean and standard deviation as text."""
    mean, deviation = setting.mean(measure.name), setting.deviation(measure.name)
    if mean is None:
        return "-"
    return measure.shown(mean) + ("" if deviation is None else f" ± {measure.shown(deviation)}")


def as_table(rows: Sequence[Sequence[str]]) -> Table:
    """Lay the rows out for the terminal."""
    table = Table(title="Mean ± standard deviation over runs", title_justify="left")
    for i, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay the rows out as Markdown."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def write_csv(settings: Sequence[Setting], path: Path) -> None:
    """Write means and standard deviations with full precision."""
    measures = measured(settings)
    heading = [f"{measure.name}_{kind}" for measure in measures for kind in ("mean", "std")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "runs", *heading])
        for setting in settings:
            known = [value for m in measures for value in (setting.mean(m.name), setting.deviation(m.name))]
            writer.writerow([setting.name, len(setting.runs), *known])


def figure_of(settings: Sequence[Setting]) -> Figure:
    """Draw a panel for each measure: every run as a dot, mean and standard deviation of each setting as a bar."""
    from lightning_taylor_prune.report.canvas import Style, rc_context, shorten, tidy  # matplotlib: slow to import

    style, measures, places = Style(), measured(settings), range(len(settings))
    with rc_context(style.rc):
        figure = style.figure(1.1 + 0.35 * len(settings))
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            draw(axes, settings, measure, style.palette)
            axes.set_xlabel(measure.heading)
            tidy(axes, style)
        panels[0].set_yticks(places, [shorten(setting.name, 45) for setting in settings])
        panels[0].set_ylim(len(settings) - 0.5, -0.5)
    return figure


def draw(axes: Any, settings: Sequence[Setting], measure: Measure, palette: Any) -> None:
    """Draw one panel."""
    scale = 100 if measure.name.endswith("acc") else 1
    for place, setting in enumerate(settings):
        values, mean = setting.values(measure.name), setting.mean(measure.name)
        if mean is None:
            continue
        axes.scatter([scale * value for value in values], [place] * len(values), color=palette.before, s=18)
        spread = scale * (setting.deviation(measure.name) or 0.0)
        axes.errorbar(scale * mean, place, xerr=spread, fmt="D", color=palette.after, markersize=5, capsize=4)
    axes.grid(axis="x", color=palette.rule, alpha=0.4)
    axes.set_axisbelow(True)
    if measure.name == "params":
        axes.ticklabel_format(style="plain", axis="x")
        axes.locator_params(axis="x", nbins=3)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line; print and save the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folder of a sweep, or of single runs")
    parser.add_argument("--out", type=Path, help="where to write sweep.csv, .md and .png; by default the first folder")
    options = parser.parse_args(arguments)
    try:
        compare(options.folders, options.out or options.folders[0])
    except (RecipeError, OSError) as error:
        sys.exit(f"error: {error}")


def compare(folders: Sequence[Path], out: Path) -> None:
    """Compare all runs below some folders; print the table, save it and the plot."""
    runs, unfinished = read_runs(folders)
    if unfinished:
        print(f"Left out, not finished: {', '.join(map(str, unfinished))}", file=sys.stderr)
    if not runs:
        places = ", ".join(map(str, folders))
        raise RecipeError(f"No finished run in {places}: expected folders that recipes/prune.py wrote, with {OUTCOME}")
    from lightning_taylor_prune.report.canvas import save_png

    settings = settings_of(runs)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(settings, out / "sweep.csv")
    (out / "sweep.md").write_text(as_markdown(rows_of(settings)), "utf-8")
    save_png(figure_of(settings), out / "sweep.png")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(as_table(rows_of(settings)))
    console.print(f"Written: {out}/sweep.csv, sweep.md, sweep.png", markup=False, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
