"""Seconds until each script's `--help` is out, beside those of importing torch alone.

    python -m benchmarks.startup --rounds 5

In turn, fresh processes. Writes results/startup.csv and results/startup.md. """

import statistics
from itertools import product

import torch

from benchmarks.common import ROOT, clock, machine, make_parser, median_and_range, record, report, select
from benchmarks.tables import markdown
from nanoprune import command_line

TORCH = "import torch"
SCRIPTS = ("scrape", "prepare", "prune", "train", "eval", "study", "sample", "plot")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    commands = {TORCH: ["-c", TORCH]} | {f"{name}.py": [ROOT / f"{name}.py", "--help"] for name in SCRIPTS}
    measurements = []
    for turn, (name, command) in product(range(-1, args.rounds), commands.items()):
        seconds, _ = clock(command)
        if turn >= 0:  # the first round reads the files from the disk
            record(measurements, {"round": turn, "what": name, "seconds": round(seconds, 3)},
                   args.out / "startup.csv")
    seconds = {name: [row["seconds"] for row in select(measurements, what=name)] for name in commands}
    alone = statistics.median(seconds[TORCH])
    rows = [[name, median_and_range(values, ".2f"), f"{statistics.median(values) - alone:+.2f}"]
            for name, values in seconds.items()]
    about = f"{args.rounds} rounds; {machine()}; torch {torch.__version__}"
    report([*markdown(["what", "seconds", "beside torch alone"], rows), "", about], args.out, "startup")


if __name__ == "__main__":
    command_line.run(main)
