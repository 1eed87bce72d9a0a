"""Every figure, from the CSVs alone.

    python plot.py runs/full runs/reduced --out curves.png     training and validation loss of runs
    python plot.py results --out comparison.png                each step's changes, and accuracy
    python plot.py results/accuracy.csv --out categories.png   accuracy by category
    python plot.py results/slices.csv --out slices.png         loss by month and by position
    python plot.py results/models.csv --out tradeoff.png       quality over size, and speed of eval.py --cost
    python plot.py blocks.csv --out blocks.png                 the loss without each block, and its estimates
    python plot.py runs/which --out which.png                  a study: each block before and after healing
    python plot.py runs/which/exchange.csv --out exchange.png  the same study: what one block buys

Runs may still be going. A table of them, as Markdown or with --out runs.csv as CSV:

    python plot.py --runs runs
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from nanoprune import command_line
from nanoprune.command_line import option, parse_options
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.results import draw_categories, draw_results, draw_slices, draw_tradeoff
from nanoprune.figures.runs import draw_curves
from nanoprune.figures.study import draw_exchange, draw_study
from nanoprune.io.files import write_csv
from nanoprune.io.folders import claim
from nanoprune.io.markdown import interval_table
from nanoprune.training.run_table import run_table

FOLDERS = {"models.csv": draw_results, "study.csv": draw_study}  # by the table that a folder holds
TABLES = {"accuracy.csv": draw_categories, "slices.csv": draw_slices, "models.csv": draw_tradeoff,
          "exchange.csv": draw_exchange}


@dataclass(frozen=True)
class Options:
    """The command line."""

    sources: list[Path] = option("run folders, one results folder or table of it, one study or one table of "
                                 "block scores", name="sources", nargs="*")
    runs: Path | None = option("list the runs in this folder", metavar="FOLDER")
    out: Path | None = option("the figure's file: .png, .pdf or .svg; the table's: .csv")


def draw(sources: list[Path], out: Path) -> Path | None:
    """The figure that the sources are for, None where it would be empty; ValueError where there is none."""
    if all(any((source / log).is_file() for log in ("train.csv", "eval.csv")) for source in sources):
        runs = {source.name: source for source in sources}
        return draw_curves(runs if len(runs) == len(sources) else {str(run): run for run in sources}, out)
    source, *others = sources
    if not others:
        for table, draw_folder in FOLDERS.items():
            if (source / table).is_file():
                return draw_folder(source, out)
        if source.name in TABLES:
            return TABLES[source.name](source.parent, out)
        if source.suffix == ".csv":
            return draw_blocks(source, out)
    raise ValueError(f"nothing to draw from {', '.join(map(str, sources))}: give run folders (with "
                     "train.csv), one results folder (with models.csv) or one of its tables, one study (with "
                     "study.csv) or one table of block scores (.csv)")


def list_runs(folder: Path, out: Path | None) -> None:
    """Print a table of the runs in a folder, or write it to a CSV file."""
    rows, passed_over = run_table(folder)
    for line in passed_over:
        print(line, file=sys.stderr)
    if not rows or (out and out.suffix != ".csv"):
        raise ValueError(f"--runs {folder}, --out {out}: give the folder that holds the runs and, for their "
                         "table, a .csv file or nothing")
    if out:
        claim("table", out)
        write_csv(out, rows)
        print(f"wrote {out}")
    else:
        print("\n".join(interval_table(rows)))


def main() -> None:
    options = parse_options(Options, __doc__)
    out = options.out
    if bool(options.runs) == bool(options.sources) or not (options.runs or out):
        raise ValueError("give what to draw and --out FILE, or --runs FOLDER for a table of its runs")
    if options.runs:
        return list_runs(options.runs, out)
    out = out if out.suffix else out.with_suffix(".png")
    claim("figure", out)
    if draw(options.sources, out) is None:
        raise ValueError(f"{options.sources[0]} has nothing to show: sets of fewer than ten questions and "
                         "single months are left out")
    print(f"wrote {out}")


if __name__ == "__main__":
    command_line.run(main)
