"""Every figure, from the CSVs alone.

    python plot.py runs/full runs/reduced --out curves.png     training and validation loss of runs
    python plot.py results --out comparison.png                perplexity and accuracy with intervals
    python plot.py results/accuracy.csv --out categories.png   accuracy by category
    python plot.py results/slices.csv --out slices.png         loss by month and by position
    python plot.py results/models.csv --out tradeoff.png       quality over size and speed
    python plot.py blocks.csv --out blocks.png                 the loss without each block, and what estimates it
    python plot.py runs/which --out which.png                  a study: each block before and after healing
"""

import argparse
from pathlib import Path

import matplotlib.ticker

from nanoprune import command_line
from nanoprune.figures.blocks import draw_blocks
from nanoprune.figures.results import draw_categories, draw_results, draw_slices, draw_tradeoff
from nanoprune.figures.runs import draw_curves
from nanoprune.figures.study import draw_study

matplotlib.use("Agg")
RESULTS = {"accuracy.csv": draw_categories, "slices.csv": draw_slices, "models.csv": draw_tradeoff}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, help="run folders, one results folder or table of it, or one table of "
                        "block scores")
    parser.add_argument("--out", type=Path, required=True, help="the figure's file: .png, .pdf or .svg")
    args = parser.parse_args()
    first = args.sources[0]
    if all((source / "train.csv").is_file() for source in args.sources):
        print(f"wrote {draw_curves(args.sources, args.out)}")
    elif len(args.sources) == 1 and (first / "models.csv").is_file():
        print(f"wrote {draw_results(first, args.out)}")
    elif len(args.sources) == 1 and (first / "study.csv").is_file():
        print(f"wrote {draw_study(first, args.out)}")
    elif len(args.sources) == 1 and first.name in RESULTS:
        print(f"wrote {RESULTS[first.name](first.parent, args.out)}")
    elif len(args.sources) == 1 and first.suffix == ".csv":
        print(f"wrote {draw_blocks(first, args.out)}")
    else:
        wrong = [str(source) for source in args.sources if not (source / "train.csv").is_file()]
        raise ValueError(f"nothing to draw from {', '.join(wrong)}: give run folders (with train.csv), one results folder "
                         "(with models.csv) or one of its tables, one study (with study.csv) or one table of block scores "
                         "(.csv)")


if __name__ == "__main__":
    command_line.run(main)
