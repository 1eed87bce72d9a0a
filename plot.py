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
import csv
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import matplotlib.ticker

from stats import digits, spearman

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f", "#c98b2b", "#5c6b73")


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """Whole rows of a CSV file that must have these columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a kill can leave half a last line
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    if not rows or (missing := [c for c in columns if c not in rows[0]]):
        raise ValueError(f"{path} holds no rows" if not rows else f"{path} lacks the column(s) {', '.join(missing)}")
    return rows


def draw_curves(runs: list[Path], out: Path) -> Path:
    """Training loss (thin: every step, thick: running mean) and validation loss over tokens seen."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, run in zip(COLOURS * len(runs), runs, strict=False):
        rows = read_csv(run / "train.csv", ("tokens", "loss"))
        tokens, loss = [int(row["tokens"]) for row in rows], [float(row["loss"]) for row in rows]
        left.plot(tokens, loss, color=colour, alpha=0.25, linewidth=0.8)
        left.plot(tokens, running_mean(loss, max(1, len(loss) // 40)), color=colour, label=run.name)
        rows = read_csv(run / "eval.csv", ("tokens", "nll"))
        right.plot([int(row["tokens"]) for row in rows], [float(row["nll"]) for row in rows], "o-", color=colour,
                   markersize=3, label=run.name)
    for axes, title in ((left, "Training loss (running mean)"), (right, "Validation loss")):
        axes.set(title=title, xlabel="tokens seen", ylabel="nats per token")
        axes.set_yscale("log")  # the first steps would flatten the rest, where the runs differ
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return save(figure, out)


def draw_results(folder: Path, out: Path) -> Path:
    """Test perplexity (bits per byte where the tokenizers differ) and question accuracy, with 95 % intervals."""
    models = read_csv(folder / "models.csv", ("model", "tokenizer", "perplexity", "perplexity_low", "perplexity_high",
                                              "bits_per_byte", "bits_low", "bits_high"))
    several = len({row["tokenizer"] for row in models}) > 1
    keys = ("bits_per_byte", "bits_low", "bits_high") if several else ("perplexity", "perplexity_low", "perplexity_high")
    columns = ("model", "set", "category", "accuracy", "low", "high", "chance")
    answers = read_csv(folder / "accuracy.csv", columns) if _has_rows(folder / "accuracy.csv") else []
    answers = [row for row in answers if not row["category"]]
    names = [row["model"] for row in models]
    size = (10, 4) if answers else (5.5, 4)
    figure, panels = plt.subplots(1, 2 if answers else 1, figsize=size, layout="constrained", squeeze=False)
    left = panels[0][0]
    for i, row in enumerate(models):
        value, low, high = (float(row[key]) for key in keys)
        left.errorbar(i, value, [[value - low], [high - value]], fmt="o", color=COLOURS[i % len(COLOURS)], capsize=4)
        left.annotate(f"{value:.{digits(value, low, high)}f}", (i, value), xytext=(7, 0), textcoords="offset points",
                      va="center", fontsize=9)
    if max(float(row[keys[0]]) for row in models) > 5 * min(float(row[keys[0]]) for row in models):
        left.set_yscale("log")
    left.set(title=f"Test {'bits per byte' if several else 'perplexity'} (95 % interval)", xticks=range(len(names)),
             xlim=(-0.5, len(names) - 0.3))
    left.set_xticklabels(names, rotation=15)
    left.grid(alpha=0.3, axis="y")
    if answers:
        right, sets = panels[0][1], list(dict.fromkeys(row["set"] for row in answers))
        for i, name in enumerate(names):
            rows = {row["set"]: row for row in answers if row["model"] == name}
            at = [k + (i - (len(names) - 1) / 2) * 0.8 / len(names) for k, label in enumerate(sets) if label in rows]
            values = [[float(rows[label][key]) for label in sets if label in rows] for key in ("accuracy", "low", "high")]
            errors = [[v - low for v, low in zip(values[0], values[1], strict=True)],
                      [high - v for v, high in zip(values[0], values[2], strict=True)]]
            right.bar(at, values[0], 0.75 / len(names), yerr=errors, capsize=3, color=COLOURS[i % len(COLOURS)], label=name)
        for k, label in enumerate(sets):
            chance = next(float(row["chance"]) for row in answers if row["set"] == label)
            right.hlines(chance, k - 0.45, k + 0.45, color="black", linestyle=":", linewidth=1, label=None if k else "chance")
        right.set(title="Question accuracy (95 % interval)", ylim=(0, 1.05), xticks=range(len(sets)))
        right.set_xticklabels(sets)
        right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def _points(axes, rows: list[dict], names: list[str], key: str, measure: str) -> list[str]:
    """Each model's measure with its interval over every value of `key`, side by side; these values."""
    values = list(dict.fromkeys(row[key] for row in rows))
    for i, name in enumerate(names):
        mine = [row for row in rows if row["model"] == name]
        at = [values.index(row[key]) + (i - (len(names) - 1) / 2) * 0.7 / len(names) for row in mine]
        middle, low, high = ([float(row[end]) for row in mine] for end in (measure, "low", "high"))
        errors = [[max(0, m - end) for m, end in zip(middle, low, strict=True)],
                  [max(0, end - m) for m, end in zip(middle, high, strict=True)]]
        axes.errorbar(at, middle, errors, fmt="o", markersize=4, capsize=2, color=COLOURS[i % len(COLOURS)], label=name)
    return values


def draw_categories(folder: Path, out: Path) -> Path:
    """Question accuracy by category, with 95 % intervals: a panel a question set."""
    columns = ("model", "set", "category", "n", "accuracy", "low", "high", "chance")
    rows = [row for row in read_csv(folder / "accuracy.csv", columns) if row["category"]]
    sets, names = list(dict.fromkeys(row["set"] for row in rows)), list(dict.fromkeys(row["model"] for row in rows))
    widths = [len({row["category"] for row in rows if row["set"] == label}) for label in sets]
    figure, panels = plt.subplots(1, len(sets), figsize=(max(6, 1.1 * sum(widths) + 2.5), 4), layout="constrained",
                                  squeeze=False, width_ratios=widths, sharey=True)
    for axes, label in zip(panels[0], sets, strict=True):
        here = [row for row in rows if row["set"] == label]
        categories = list(dict.fromkeys(row["category"] for row in here))
        _points(axes, here, names, "category", "accuracy")
        axes.axhline(float(here[0]["chance"]), color="black", linestyle=":", linewidth=1)
        counts = {row["category"]: row["n"] for row in here}
        axes.set(title=label, ylim=(-0.03, 1.05), xticks=range(len(categories)), xlim=(-0.6, len(categories) - 0.4))
        axes.set_xticklabels([f"{c}\n(n = {counts[c]})" for c in categories], fontsize=8)
        axes.grid(alpha=0.3, axis="y")
    panels[0][0].set_ylabel("accuracy (95 % interval; dotted: chance)")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def draw_slices(folder: Path, out: Path) -> Path:
    """Test loss by month and by position in the document, with 95 % intervals."""
    rows = read_csv(folder / "slices.csv", ("model", "slice", "value", "nll", "low", "high"))
    names, kinds = list(dict.fromkeys(row["model"] for row in rows)), ("month", "position")
    shown = [(kind, [row for row in rows if row["slice"] == kind]) for kind in kinds]
    shown = [(kind, here) for kind, here in shown if here]
    figure, panels = plt.subplots(1, len(shown), figsize=(5.2 * len(shown) + 1, 4), layout="constrained", squeeze=False)
    for axes, (kind, here) in zip(panels[0], shown, strict=True):
        here = sorted(here, key=lambda row: row["value"]) if kind == "month" else here
        values = _points(axes, here, names, "value", "nll")
        axes.set(xlabel={"month": "month of the document", "position": "position in the document, tokens"}[kind],
                 xticks=range(len(values)))
        axes.set_xticklabels(values, fontsize=8, rotation=60 if len(values) > 6 else 0)
        axes.grid(alpha=0.3, axis="y")
    panels[0][0].set_ylabel("test nll, nats a token (95 % interval)")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, out)


def draw_tradeoff(folder: Path, out: Path) -> Path:
    """Test bits per byte, with 95 % intervals, over size and over the speed of writing."""
    rows = read_csv(folder / "models.csv", ("model", "params", "bits_per_byte", "bits_low", "bits_high", "decode_tokens_per_s"))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axes, column, label in zip(panels, ("params", "decode_tokens_per_s"), ("parameters", "written tokens/s"), strict=True):
        for i, row in enumerate(rows):
            value, low, high = (float(row[key]) for key in ("bits_per_byte", "bits_low", "bits_high"))
            axes.errorbar(float(row[column]), value, [[max(0, value - low)], [max(0, high - value)]], fmt="o", capsize=3,
                          color=COLOURS[i % len(COLOURS)], label=row["model"])
        axes.set(xlabel=label)
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.margins(x=0.15, y=0.15)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="test bits per byte (95 % interval)")
    panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("Quality against size and speed")
    return save(figure, out)


def draw_lengths(lengths: dict[str, list[int]], out: Path) -> Path:
    """How long the documents of each split are, in tokens."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    edges = [10 ** (k / 8) for k in range(8, 8 * len(str(max(map(max, lengths.values())))) + 1)]
    for colour, (name, found) in zip(COLOURS, lengths.items(), strict=False):
        axes.hist(found, edges, weights=[1 / len(found)] * len(found), histtype="step", linewidth=1.5, color=colour, label=name)
    axes.set(title="Length of the documents", xlabel="tokens", ylabel="share of the split", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return save(figure, out)


ESTIMATES = {"influence": "block influence", "angular": "angular distance", "taylor": "Taylor importance",
             "magnitude": "weight magnitude"}
HALVES = {"": "whole block", "attn": "its attention", "mlp": "its MLP"}


def draw_blocks(path: Path, out: Path) -> Path:
    """How much the loss rises without each block, with intervals, and below it what the cheap scores say of the same blocks."""
    rows = [row for row in read_csv(path, ("block", "nll", "difference")) if row["block"] != "none"]
    kinds = {half: [row for row in rows if row["block"].partition(".")[2] == half] for half in HALVES}
    blocks = [row["block"] for row in kinds[""]]
    scores = [name for name in ESTIMATES if rows[0].get(name)]
    size = (max(6, 0.35 * len(blocks) + 2), 3.4 + 1.3 * len(scores))
    figure, panels = plt.subplots(1 + len(scores), 1, figsize=size, sharex=True, layout="constrained", squeeze=False,
                                  height_ratios=[3] + [1] * len(scores))
    panels = panels[:, 0]
    finite = [float(row["difference"]) for row in rows if math.isfinite(float(row["difference"]))]
    for k, (half, kind) in enumerate(kinds.items()):
        known = [row for row in kind if math.isfinite(float(row["difference"]))]
        if not known:
            continue
        at = [blocks.index(row["block"].partition(".")[0]) + 0.22 * k for row in known]
        values = [float(row["difference"]) for row in known]
        errors = None
        if known[0].get("difference_low"):
            errors = [[max(0, v - float(row["difference_low"])) for v, row in zip(values, known, strict=True)],
                      [max(0, float(row["difference_high"]) - v) for v, row in zip(values, known, strict=True)]]
        panels[0].errorbar(at, values, errors, fmt="os^"[k], color=COLOURS[k], capsize=3, markersize=5, label=HALVES[half])
        if half == "":
            best = min(range(len(values)), key=values.__getitem__)
            panels[0].annotate("missed least", (at[best], values[best]), xytext=(0, 14), textcoords="offset points",
                               ha="center", fontsize=8, arrowprops={"arrowstyle": "-", "linewidth": 0.6})
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        panels[0].set_yscale("log")
    else:
        panels[0].axhline(0, color="black", linewidth=0.6)
    if any(kinds[half] for half in ("attn", "mlp")):
        panels[0].legend(frameon=False, fontsize=8)
    panels[0].set(title="The loss without each block (95 % intervals)", ylabel="rise, nats per token")
    for axes, name in zip(panels[1:], scores, strict=True):
        known = [row for row in kinds[""] if row[name] and math.isfinite(float(row["nll"]))]
        axes.bar([blocks.index(row["block"]) for row in known], [float(row[name]) for row in known], 0.6, color=COLOURS[0])
        low = min(float(row[name]) for row in known)
        high = max(float(row[name]) for row in known)
        if low > 0.5 * high:  # else all bars look the same
            axes.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))
        rank = spearman([float(row["nll"]) for row in known], [float(row[name]) for row in known])
        axes.set_title(f"{ESTIMATES[name]}: rank correlation with the loss {rank:+.2f}", fontsize=9, loc="left")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    panels[-1].set(xlabel="block removed", xticks=range(len(blocks)))
    panels[-1].set_xticklabels(blocks)
    for axes in panels:
        axes.grid(alpha=0.3, axis="y")
    return save(figure, out)


def draw_study(folder: Path, out: Path) -> Path:
    """What is lost to the full model without each block, before healing and after: paired differences, 95 % intervals."""
    whens = {"before": "before healing", "after": "after, to the full model fine-tuned as long"}
    columns = ("block", *(f"lost_{when}{end}" for when in whens for end in ("", "_low", "_high")))
    rows = [row for row in read_csv(folder / "study.csv", columns) if row["block"] != "none"]
    figure, axes = plt.subplots(figsize=(max(6, 0.45 * len(rows) + 2), 4.5), layout="constrained")
    for k, (when, label) in enumerate(whens.items()):
        known = [(i, row) for i, row in enumerate(rows) if math.isfinite(float(row[f"lost_{when}"]))]
        values = [float(row[f"lost_{when}"]) for _, row in known]
        errors = [[max(0, v - float(row[f"lost_{when}_low"])) for v, (_, row) in zip(values, known, strict=True)],
                  [max(0, float(row[f"lost_{when}_high"]) - v) for v, (_, row) in zip(values, known, strict=True)]]
        axes.errorbar([i + 0.16 * k - 0.08 for i, _ in known], values, errors, fmt="os"[k], color=COLOURS[1 - k], capsize=3,
                      markersize=5, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.yaxis.set_major_formatter("{x:g}")
    ends = [[float(row[f"lost_{when}_{end}"]) for when in whens for row in rows] for end in ("low", "high")]
    lowest, highest = min(filter(math.isfinite, ends[0]), default=0), max(filter(math.isfinite, ends[1]), default=1)
    axes.set_ylim(min(-0.005, 2 * lowest), max(0.005, 3 * highest))
    axes.set(title="What each block is worth (95 % intervals)", xlabel="block removed",
             ylabel="test loss lost to the full model, nats per token", xticks=range(len(rows)))
    axes.set_xticklabels([row["block"] for row in rows])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, fontsize=8)
    return save(figure, out)


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean over the last `width` values (fewer at the start)."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def save(figure, out: Path) -> Path:
    out = out if out.suffix else out.with_suffix(".png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150, metadata={"Software": None} if out.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the figure {out}: {error}; give a .png, .pdf or .svg in another folder") from error
    finally:
        plt.close(figure)
    return out


def _has_rows(path: Path) -> bool:
    return path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) > 1


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
    try:
        main()
    except ValueError as error:
        print(f"plot.py: {error}", file=sys.stderr)
        sys.exit(2)
