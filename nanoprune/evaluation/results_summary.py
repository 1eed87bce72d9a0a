"""The first screen of results.md: what was compared, and what followed."""

import math
from collections import defaultdict

import torch

from nanoprune import statistics
from nanoprune.device import environment
from nanoprune.evaluation.arms import ALTOGETHER, HEALED, REDUCED, REMOVED, TUNED, Arm, listed, without
from nanoprune.io.markdown import counted, table, with_interval

SAVED = {"parameters": "params", "bytes a token": "token_mb", "operations a token": "token_mflop"}


# ---------------------------------------------------------------- cells
def cell(values: dict, key: str, scale: float = 1) -> str:
    return with_interval(scale * values[key], [scale * end for end in values[f"{key}_interval"]])


def of_row(row: dict, sign: str = "+") -> str:
    """A difference of differences.csv, its unit and interval; "identical" where nothing differs."""
    if row["identical"]:
        return "identical"
    value, *interval = with_interval(row["difference"], (row["low"], row["high"]), sign).partition(" ")
    return f"{value} {row['unit']}{''.join(interval)}"


def with_range(cost: dict, key: str, form: str) -> str:
    if key not in cost:
        return "-"
    return f"{cost[key]:{form}} ({cost[f'{key}_low']:{form}} to {cost[f'{key}_high']:{form}})"


# ---------------------------------------------------------------- the screen, from above
def data_and_machine(folder: str, meta: dict, device: torch.device) -> dict[str, str]:
    """The dataset with the dates of its splits, and what the numbers were measured with, in words."""
    splits = [f"{split['documents']} of {split['first']} to {split['last']} for {name}"
              for name, split in meta.get("splits", {}).items() if split.get("first")]
    machine = environment(device)
    return {"data": folder + (f": documents, {', '.join(splits)}" if splits else ""),
            "machine": f"commit {(machine['git'] or 'unknown')[:7]}, {machine['device']}, "
                       f"{machine['threads']} threads, torch {machine['torch']}"}


def headline(arms: list[Arm], steps: dict) -> str:
    removed = {arm.removed for _, arm in steps[REDUCED] + steps[REMOVED]}
    if len(removed) == 1:
        (blocks,) = removed
        return f"What block {blocks} was worth" if "," not in blocks else f"What blocks {blocks} were worth"
    return arms[0].name if len(arms) == 1 else f"{len(arms)} models compared"


def compared(arms: list[Arm], about: dict) -> list[str]:
    """What was compared, on what, by which code, on which machine."""
    trainings, rows = defaultdict(list), []
    for arm in arms:
        first = arm.first
        if arm.tuned:
            trainings[trained(arm)].append(arm.name)
        elif not arm.removed:
            rows.append((arm.name, f"{first['label']}, {first['blocks']} blocks, weights "
                         f"{next(iter(first['sha256'].values()), '')[:8]}"))
    chosen = {(arm.removed, how) for arm in arms for how in chosen_by(arm.first["history"])}
    rows += [(without(blocks).removeprefix("without "), f"chosen {how}") for blocks, how in sorted(chosen)]
    rows += [(" and ".join(names), training) for training, names in trainings.items()]
    rows += [("data", about["data"]), ("machine", about["machine"])]
    return table([{"compared": what, "": text} for what, text in rows])


def chosen_by(history: list[dict]) -> list[str]:
    """How the removed blocks were chosen; the config of a run names only which."""
    hows = []
    for entry in history:
        method = entry.get("method", "in a way that is not recorded")
        method = method if method.startswith(("by ", "in ")) else f"by {method}"
        if method != "by the config":
            hows.append(method + (f", scores in {entry['scores']}" if entry.get("scores") else ""))
    return hows


def trained(arm: Arm) -> str:
    run, tokens = arm.first["run"], arm.first["cost"]["training_tokens"]
    length = f"{run['epochs']:g} epoch(s)" if run["epochs"] else counted(run["max_steps"], "step")
    return (f"{length}, {tokens or 0:,} tokens, learning rate {run['lr']:g}, seeds: "
            f"{listed(arm.seeds)}")


def conclusions(models: list[dict], rows: list[dict]) -> list[str]:
    """What the block cost before healing and after, what fine-tuning did; and all this on questions."""
    text = [row for row in rows if row["measure"].startswith("test ")]
    times = {REMOVED: "**Before healing:** ", TUNED: "**Fine-tuning:** ", REDUCED: "**After healing:** ",
             ALTOGETHER: "**Against the untouched base:** "}
    told = [row for row in text if row["step"] in times] or [row for row in text if row["step"]]
    told = told or [row for row in text if row["first"] == models[0]["name"]]
    sentences = [times.get(row["step"], "") + text_sentence(row) for row in told]
    pairs = [(row["first"], row["second"]) for row in told]
    for name in models[0]["qa"]:
        answers = [row for row in rows if row["measure"] == f"{name} accuracy"
                   and (row["first"], row["second"]) in pairs]
        sentences.append(f"**Questions, {name}:** " + answers_sentence(name, models, answers))
    return sentences


def text_sentence(row: dict) -> str:
    first, second, measure = row["first"], row["second"], row["measure"]
    runs = f" ({row['seeds']} seeds)" if row["seeds"] > 1 else ""
    if row["step"] == REDUCED and not runs:
        runs = " (this pair of runs)"
    if math.isnan(row["difference"]):
        return f"{second} against {first}: a loss is not finite."
    if row["identical"]:
        return f"{second} predicts exactly as {first} does."
    if math.isnan(row["detectable"]):
        return f"too few documents to tell {first} from {second} in {measure} ({of_row(row)}){runs}."
    if not row["shown"]:
        could = f"; {row['detectable']:.2g} % would be shown in 8 of 10 such tests"
        return f"no difference shown from {first} to {second} in {measure}: {of_row(row)}{could}{runs}."
    above = "above"
    if row["difference"] < 0:  # the same difference, seen from the other model
        above = "below"
        row = row | {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
    return f"the {measure} of {second} is {of_row(row, '')} {above} that of {first}{runs}."


def answers_sentence(name: str, models: list[dict], rows: list[dict]) -> str:
    qa = [model["qa"][name] for model in models]
    if qa[0]["sources"] < statistics.LEAST:
        return f"too few to show anything ({counted(qa[0]['sources'], 'source')})."
    if all(q["accuracy_interval"][0] <= q["chance"] <= q["accuracy_interval"][1] for q in qa):
        return f"no model is shown to be off chance ({100 * qa[0]['chance']:.0f} %)."
    if len(qa) == 1:
        return f"{100 * qa[0]['accuracy']:.0f} % are right."
    if not rows:
        return "not compared, as the models' tokenizers differ."
    sentences = []
    for row in rows:
        if not row["shown"] and row["step"] not in (REDUCED, ""):
            continue
        remark = "" if row["shown"] or row["identical"] else (
            f", no difference shown ({row['detectable']:.2g} points would be, in 8 of 10 such tests)")
        sentences.append(f"{row['second']} against {row['first']} {of_row(row)}{remark}")
    return ("; ".join(sentences) or "no difference shown") + "."


def overview(models: list[dict]) -> list[str]:
    rows = []
    for model in models:
        row = {"model": model["name"]}
        if all(model["tokenizer"] == other["tokenizer"] for other in models):  # else it cannot be compared
            row["test perplexity"] = cell(model["test"], "perplexity")
        row["bits/byte"] = cell(model["test"], "bits_per_byte")
        row |= {f"{name}, % right": cell(q, "accuracy", 100) for name, q in model["qa"].items()}
        row |= {"parameters": f"{model['params']:,}", "MB in bf16": f"{model['cost']['bf16_mb']:,.4g}"}
        if "decode_tokens_per_s" in model["cost"]:
            row["written tokens/s"] = with_range(model["cost"], "decode_tokens_per_s", ",.4g")
        rows.append(row)
    return table(rows)


def forgotten(rows: list[dict]) -> list[str]:
    """How fine-tuning, and healing, changed the loss of general text."""
    told = [row for row in rows if row["measure"].startswith("general ") and row["step"] in (TUNED, HEALED)]
    return [f"On general text the {row['measure'][8:]} changes by {of_row(row)} from {row['first']} to "
            f"{row['second']}" + ("." if row["shown"] else ", no difference shown.") for row in told]


def saved(models: list[dict], steps: dict) -> list[str]:
    by_name, pairs = {model["name"]: model for model in models}, steps[REDUCED] or steps[REMOVED]
    if not pairs:
        return []
    full, reduced = (by_name[arm.name] for arm in pairs[0])
    before, after = (model["cost"] | {"params": model["params"]} for model in (full, reduced))
    shares = [f"{100 * (1 - after[key] / before[key]):.1f} % of the {label}" for label, key in SAVED.items()]
    if "decode_tokens_per_s" in before:
        ratio = after["decode_tokens_per_s"] / before["decode_tokens_per_s"]
        shares.append(f"and it writes {100 * (ratio - 1):+.1f} % tokens a second")
    name = reduced["name"]
    return [f"{name[0].upper()}{name[1:]} saves {', '.join(shares)} of {full['name']}."]


def doubts(arms: list[Arm], models: list[dict]) -> list[str]:
    """Where documents, sources or seeds are too few, or a loss is not finite."""
    lines, least = [], statistics.LEAST
    units = {"test documents": models[0]["test"]["documents"]}
    units |= {f"sources of {name}": q["sources"] for name, q in models[0]["qa"].items()}
    few = [f"{count} {name}" for name, count in units.items() if count < least]
    if few:
        lines.append(f"Too few: {', '.join(few)}. Over fewer than {least} differences have no interval, "
                     "and shares the exact one.")
    if any(arm.tuned and len(arm.runs) == 1 for arm in arms):
        lines.append("One seed: the intervals leave out what another seed would change.")
    lines += [f"{model['name']}: the loss of {counted(model['test']['not_finite'], 'test document')} is not "
              "finite." for model in models if model["test"]["not_finite"]]
    return lines
