"""How well does a model predict, how well does it answer, how sure are we: several models on one dataset's test split.

    python eval.py Qwen/Qwen3-0.6B-Base runs/full runs/reduced --data data/bmw --out results

Protocol. Prediction: whole documents, cut into windows of --context tokens that do not overlap; no prefix token, so the
first token of a document is not scored (with a Llama tokenizer it is the begin token). Answers: the log-likelihood of
" " + choice after "Question: ...\\nAnswer:", token boundaries as in lm-evaluation-harness; `accuracy` takes the highest
sum, `accuracy_norm` the highest sum per character. Intervals: 95 %, bootstrap over documents, or over what questions
rest on (`source`); differences are paired.
"""

import argparse
import csv
import io
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataset import IGNORE, Dataset, prompt_of, split_tokens
from files import locate, make_folder, write_json, write_text
from model import Cache, Decoder, document_nll, pick_device
from plot import draw_results
from stats import FEW, RESAMPLES, bootstrap

# ---------------------------------------------------------------- how well does it predict, how well does it answer


def choice_loglikelihoods(model: Decoder, rows: list[tuple[list[int], int]], batch_tokens: int = 8192) -> np.ndarray:
    """Summed log-likelihood in nats of each row's tokens from its prompt's end on; a row is (tokens, prompt length)."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    found, device, at = np.zeros(len(rows)), next(model.parameters()).device, 0
    while at < len(order):
        longest = len(rows[order[at]][0])
        batch = order[at : at + max(1, batch_tokens // longest)]
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        targets = torch.full((len(batch), longest), IGNORE)
        for row, i in enumerate(batch):
            tokens, prompt = rows[i]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            targets[row, prompt - 1 : len(tokens) - 1] = torch.tensor(tokens[prompt:])
        with torch.no_grad():
            losses = model(ids.to(device), targets.to(device), reduction="none")
        found[batch] = -losses.cpu().double().sum(1).numpy()
        at += len(batch)
    return found


def answer_questions(model: Decoder, questions: list[dict], tokenizer, window: int) -> list[dict]:
    """One row per question that fits the window: loglikelihood of the true answer, correct, correct_norm, category."""
    rows, kept = [], []
    for number, q in enumerate(questions):
        prompt = prompt_of(q["question"], q.get("context"))
        choices = [split_tokens(tokenizer, prompt, " " + choice) for choice in q["choices"]]
        if empty := [choice for choice, (tokens, n) in zip(q["choices"], choices, strict=True) if n >= len(tokens)]:
            raise ValueError(f"question {q['question']!r}: the choice {empty[0]!r} comes to no token of its own")
        if max(len(tokens) for tokens, _ in choices) <= window:
            kept.append((number, q, len(rows)))
            rows += choices
    scores, answers = choice_loglikelihoods(model, rows), []
    for number, q, first in kept:
        ll = scores[first : first + len(q["choices"])]
        per_character = ll / np.array([len(choice) for choice in q["choices"]])
        known = np.isfinite(ll).all()  # a broken model answers nothing; argmax would say the first choice
        answers.append({"question": number, "category": q.get("category", ""), "source": str(q.get("source", number)),
                        "chance": 1 / len(q["choices"]),
                        "correct": int(known and ll.argmax() == q["answer"]),
                        "correct_norm": int(known and per_character.argmax() == q["answer"]),
                        "loglikelihood": float(ll[q["answer"]])})
    return answers


@torch.no_grad()
def measure_speed(model: Decoder, prompt: int = 256, new: int = 32) -> dict:
    """Tokens a second of one sequence: reading a prompt, and writing new tokens with the cache (medians of three)."""
    weight, times = model.head_weight, []
    for _ in range(4):
        cache = Cache(model.config, 1, prompt + new, weight.device, weight.dtype)
        feed, marks = torch.arange(prompt, device=weight.device)[None] % model.config.vocab_size, [time.perf_counter()]
        for _ in range(new + 1):
            feed = model.last_logits(feed, cache).argmax(-1, keepdim=True)
            feed.cpu()  # waits for the device
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[-1] - marks[1]))
    read, write = np.median(times[1:], axis=0)  # the first round warms up
    return {"prefill_tokens_per_s": prompt / read, "decode_tokens_per_s": new / write,
            "prompt_tokens": prompt, "new_tokens": new}


# ---------------------------------------------------------------- how sure are we


def compare(a: dict, b: dict) -> dict:
    """What b has over a: test nll and each question set's accuracy, with 95 % intervals of the paired differences."""
    tokens = a["tokens"]
    difference = b["nll"] - a["nll"]
    found = {"models": [a["name"], b["name"]], "nll": _difference(difference, tokens, range(len(tokens)))}
    for name in a["answers"]:
        pairs = list(zip(a["answers"][name], b["answers"][name], strict=True))
        sources = [row["source"] for row, _ in pairs]
        for key in ("correct", "correct_norm"):
            gain = np.array([y[key] - x[key] for x, y in pairs], float)
            measure = key.replace("correct", "accuracy")
            found[f"{name} {measure}"] = _difference(gain, np.ones(len(gain)), sources)
    return found


def _difference(numerators: np.ndarray, denominators: np.ndarray, groups) -> dict:
    if not len(numerators):
        return {}
    low, high = bootstrap(numerators, denominators, list(groups))
    return {"difference": float(numerators.sum() / denominators.sum()), "interval": [low, high],
            "shown": low > 0 or high < 0, "groups": len(set(groups)),
            "method": f"paired bootstrap, {RESAMPLES} resamples, percentile, 95 %"}


# ---------------------------------------------------------------- one model, all results


def evaluate(name: str, folder: Path, dataset: Dataset, questions: dict, args: argparse.Namespace, window: int) -> dict:
    """Everything measured of one model, per document and per question."""
    model = Decoder.from_pretrained(folder, device=pick_device(args.device), dtype=getattr(torch, args.dtype)).eval()
    split = dataset.split("test")
    batches = list(split.windows(min(args.context, window)))
    nll, tokens = document_nll(model, tqdm(batches, desc=f"{name}: test", disable=None), len(split))
    sets = tqdm(questions.items(), desc=f"{name}: questions", disable=None)
    answers = {label: answer_questions(model, asked, dataset.tokenizer, window) for label, asked in sets}
    return {"name": name, "path": str(folder), "blocks": model.config.num_hidden_layers, "original": list(model.config.blocks),
            "params": sum(p.numel() for p in model.parameters()), "nll": nll, "tokens": tokens,
            "bytes": split.bytes, "answers": answers, "speed": measure_speed(model)}


def summarize(found: dict) -> dict:
    """A model's entry in results.json."""
    nll, tokens, nbytes = found["nll"], found["tokens"], found["bytes"]
    mean, (low, high) = nll.sum() / tokens.sum(), bootstrap(nll, tokens, range(len(nll)))
    test = {"nll": mean, "nll_interval": [low, high],
            "perplexity": math.exp(mean), "perplexity_interval": [math.exp(low), math.exp(high)],
            "bits_per_byte": nll.sum() / math.log(2) / nbytes.sum(), "tokens": int(tokens.sum()), "bytes": int(nbytes.sum()),
            "documents": len(nll)}
    qa = {}
    for name, rows in found["answers"].items():
        correct, norm = (np.array([row[key] for row in rows], float) for key in ("correct", "correct_norm"))
        n, sources = len(rows), [row["source"] for row in rows]
        qa[name] = {"n": n, "sources": len(set(sources)), "accuracy": correct.mean() if n else None,
                    "chance": float(np.mean([row["chance"] for row in rows])) if n else None}
        if n:
            qa[name] |= {"accuracy_interval": bootstrap(correct, np.ones(n), sources), "accuracy_norm": norm.mean(),
                         "accuracy_norm_interval": bootstrap(norm, np.ones(n), sources),
                         "mean_loglikelihood": float(np.mean([row["loglikelihood"] for row in rows])),
                         "stderr": correct.std(ddof=1) / math.sqrt(n) if n > 1 else None}
    known = {key: found[key] for key in ("name", "path", "blocks", "original", "params")}
    return known | {"test": test, "qa": qa, "speed": found["speed"]}


def markdown(summaries: list[dict], comparisons: list[dict], protocol: str) -> str:
    """results.md: one row a model, one row a difference."""
    sets = list(summaries[0]["qa"])
    head = ["model", "blocks", "parameters", "test perplexity [95 %]", "bits/byte", *(f"{s} accuracy [95 %]" for s in sets),
            "prefill tokens/s", "decode tokens/s"]
    lines = ["# Results", "", protocol, "", _table_row(head), _table_row(["---"] * len(head))]
    for m in summaries:
        test, speed = m["test"], m["speed"]
        cells = [m["name"], m["blocks"], f"{m['params']:,}", _interval(test["perplexity"], test["perplexity_interval"]),
                 f"{test['bits_per_byte']:.4f}"]
        cells += [_interval(q["accuracy"], q["accuracy_interval"]) if q["n"] else "-" for q in m["qa"].values()]
        lines.append(_table_row([*cells, f"{speed['prefill_tokens_per_s']:,.0f}", f"{speed['decode_tokens_per_s']:,.0f}"]))
    sizes = [f"{name}: {q['n']} questions on {q['sources']} sources" for name, q in summaries[0]["qa"].items()]
    test = summaries[0]["test"]
    lines += ["", f"Test split: {test['documents']} documents, {test['tokens']:,} scored tokens. {'; '.join(sizes)}."]
    if min([test["documents"], *(q["sources"] for q in summaries[0]["qa"].values())]) < FEW:
        lines.append(f"Intervals over fewer than {FEW} documents or sources are too narrow; over one there is none (nan).")
    if comparisons:
        lines += ["", "## Differences", "", "Second model less first, paired; an interval that contains 0 shows no difference. "
                  f"Pairs compared, without correction for their number: {len(comparisons)}.", "",
                  _table_row(["first", "second", "measure", "difference", "95 % interval", ""]), _table_row(["---"] * 6)]
    for c in comparisons:
        for measure, d in c.items():
            if measure != "models" and d and not measure.endswith("accuracy_norm"):
                name = "test nll" if measure == "nll" else measure
                verdict = "" if d["shown"] else "no difference shown"
                low, high = d["interval"]
                lines.append(_table_row([*c["models"], name, f"{d['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]", verdict]))
    return "\n".join(lines) + "\n"


def _interval(value: float, interval) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _table_row(cells: list) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write_csv(path: Path, rows: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="hub names, folders or runs")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--out", default="results", help="folder for tables, CSVs and figures")
    parser.add_argument("--context", type=int, default=1024, help="longest window, in tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    args = parser.parse_args()
    if args.context < 1:
        raise ValueError(f"--context must be at least 1, given {args.context}")
    device, dataset = pick_device(args.device), Dataset(args.data)
    questions = dataset.questions()
    if not len(dataset.split("test")):
        raise ValueError(f"{args.data} has an empty test split; prepare it from more articles")
    # Wrong names, configs and tokenizers are found before the first model is measured.
    folders = {name: locate(name) for name in args.models}
    configs = {name: Decoder.read_config(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        dataset.check_model(name, folder, configs[name].vocab_size)
    out = make_folder(args.out)
    window = min(config.max_position_embeddings for config in configs.values())
    short = {name: Path(name).name for name in args.models}
    labels = short if len(set(short.values())) == len(short) else {name: name for name in args.models}
    found, failure = [], None
    for name, folder in folders.items():
        try:
            found.append(evaluate(labels[name], folder, dataset, questions, args, window))
        except ValueError as error:  # what was measured before is written all the same
            failure = ValueError(f"{name}: {error}")
            break
    if not found:
        raise failure

    skipped = {label: len(asked) - len(found[0]["answers"][label]) for label, asked in questions.items()}
    left_out = "".join(f"; {n} of {label} are longer than {window} tokens and left out" for label, n in skipped.items() if n)
    protocol = (f"Data {args.data}. Whole documents in windows of {min(args.context, window)} tokens without overlap, no "
                f"prefix token, {args.dtype} on {device.type}. Questions by log-likelihood of the choices{left_out}.")
    summaries = [summarize(model) for model in found]
    comparisons = [compare(a, b) for a, b in itertools.combinations(found, 2)]
    report = markdown(summaries, comparisons, protocol)
    write_json(out / "results.json", {"protocol": protocol, "models": summaries, "comparisons": comparisons})
    write_text(out / "results.md", report)
    write_csv(out / "models.csv", [
        {"model": m["name"], "blocks": m["blocks"], "params": m["params"], "nll": m["test"]["nll"],
         "perplexity": m["test"]["perplexity"], "perplexity_low": m["test"]["perplexity_interval"][0],
         "perplexity_high": m["test"]["perplexity_interval"][1], "bits_per_byte": m["test"]["bits_per_byte"]}
        for m in summaries])
    write_csv(out / "accuracy.csv", [
        {"model": m["name"], "set": name, "n": q["n"], "accuracy": q["accuracy"], "low": q["accuracy_interval"][0],
         "high": q["accuracy_interval"][1], "chance": q["chance"]}
        for m in summaries for name, q in m["qa"].items() if q["n"]])
    ids = [row["id"] for row in dataset.documents("test")]
    write_csv(out / "documents.csv", [
        {"model": m["name"], "id": ids[i], "nll": m["nll"][i], "tokens": m["tokens"][i], "bytes": m["bytes"][i]}
        for m in found for i in range(len(ids))])
    write_csv(out / "questions.csv", [
        {"model": m["name"], "set": name} | row for m in found for name, rows in m["answers"].items() for row in rows])
    figure = draw_results(out, out / "comparison.png")
    print(report)
    print(f"wrote {out}/results.md, results.json, models.csv, accuracy.csv, documents.csv, questions.csv and {figure}")
    if failure:
        raise failure


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\neval.py: stopped", file=sys.stderr)
        sys.exit(130)
