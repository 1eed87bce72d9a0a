"""How well does a model predict, how well does it answer, how sure are we: several models on one dataset's test split.

    python eval.py Qwen/Qwen3-0.6B-Base models/base-less-25 runs/full runs/reduced --data data/bmw --out results
    python eval.py runs/full --data data/bmw --export-harness tasks        (the same questions for lm-evaluation-harness)

Prediction: nats per token under a protocol that is printed (--protocol, --context, --stride, --prefix-token); by default whole
documents in windows that do not overlap, no prefix token, so that the first token of a document is not scored. Answers: the
log-likelihood of " " + choice after "Question: ...\nAnswer:", token boundaries as in lm-evaluation-harness; `accuracy` takes
the highest sum, `accuracy_norm` the highest per character, `accuracy_bytes` per byte. Intervals: 95 %, bootstrap over
documents, or over what questions rest on (`source`); differences are paired. What was scored is kept in OUT/scores: after a
stop or a kill the same command goes on. Under torchrun the ranks share the work, for the same numbers.
"""

import argparse
import csv
import hashlib
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.data.chat_format import chat_form, encode_chat, question_prompt, render
from nanoprune.data.conversations import encode_pairs
from nanoprune.data.dataset import Dataset
from nanoprune.data.tokenizer import end_token, load_tokenizer, tokenizer_hash
from nanoprune.device import peak_memory, pick_device, reset_peak
from nanoprune.distributed import Ranks, join
from nanoprune.evaluation.comparison import compare, over_seeds, slices, summarize
from nanoprune.evaluation.lm_eval_tasks import export_tasks
from nanoprune.evaluation.multiple_choice import encode_questions, score_questions
from nanoprune.evaluation.perplexity import EDGES, PROTOCOLS, Protocol, text_losses
from nanoprune.evaluation.result_cache import ResultCache
from nanoprune.evaluation.results_page import markdown
from nanoprune.evaluation.written_answers import KINDS, SCORES, numbers, overlap_scores, write_answers
from nanoprune.figures.results import draw_categories, draw_results, draw_slices, draw_tradeoff
from nanoprune.figures.runs import draw_curves
from nanoprune.io.files import (
    file_hash,
    file_hashes,
    finite_or_none,
    make_folder,
    read_json,
    write_csv,
    write_json,
    write_text,
)
from nanoprune.io.hub import locate
from nanoprune.io.jsonl import read_jsonl
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.peft import config_folder, is_adapter, load_model
from nanoprune.nn.sampling import generate

SAMPLES, SAMPLE_TOKENS = 5, 60
GENERAL = Path(__file__).parent / "qa" / "general.jsonl"  # plain text on many things, written for this


# ---------------------------------------------------------------- one model
def texts_of(documents: list[dict], tokens: list[np.ndarray], protocol: Protocol, tokenizer, end: int) -> list[tuple]:
    """What the protocol scores as one: (its tokens, what it is: with the bytes and words that are predicted)."""
    units, found = protocol.units(tokens), []
    for i, unit in enumerate(units):
        if protocol.name == "stream":
            row, text = {"id": f"cut {i}", "month": "", "category": ""}, tokenizer.decode(unit[1:][unit[1:] != end].tolist())
        elif unit.ndim == 2:
            row = {"id": documents[i]["id"], "month": "", "category": documents[i].get("task") or ""}
            text = " ".join(turn["content"] for turn in documents[i]["messages"] if turn["role"] == "assistant")
        else:
            row = {"id": documents[i].get("id", str(i)), "month": (documents[i].get("date") or "")[:7],
                   "category": documents[i].get("category") or ""}
            unscored = "" if protocol.prefix is not None else tokenizer.decode(unit[:1].tolist())
            text = documents[i]["text"].removeprefix(unscored)
        found.append((unit, row | {"bytes": len(text.encode()), "words": len(text.split())}))
    return found


def score_text(model: Decoder, texts: list[tuple], protocol: Protocol, end: int, ranks: Ranks, label: str) -> list[dict]:
    """A row a text: what it is, nll in nats and tokens; the same by position."""
    nll, counts = text_losses(model, [tokens for tokens, _ in texts], protocol, end, ranks=ranks, label=label)
    return [about | {"nll": one.sum(), "tokens": int(count.sum())}
            | {f"nll_{first}": one[k] for k, first in enumerate(EDGES)}
            | {f"tokens_{first}": int(count[k]) for k, first in enumerate(EDGES)}
            for (_, about), one, count in zip(texts, nll, counts, strict=True)]


@torch.no_grad()
def measure_cost(model: Decoder, folder: Path, prompt: int = 256, new: int = 32, rounds: int = 4, seconds: float = 3) -> dict:
    """Size and speed of one sequence: reading a prompt, writing tokens with the cache.

    Medians of at most so many rounds, two at least, no more after so many seconds; the first warms up.
    """
    weight, marks, began = model.head_weight, [], time.perf_counter()
    prompt = min(prompt, max(1, model.config.max_position_embeddings - new - 1))
    while len(marks) < 2 or (len(marks) < rounds and time.perf_counter() - began < seconds):
        cache = KeyValueCache(model.config, 1, prompt + new, weight.device, model.dtype)
        feed, times = torch.arange(prompt, device=weight.device)[None] % model.config.vocab_size, [time.perf_counter()]
        for _ in range(new + 1):
            feed = model.last_logits(feed, cache).argmax(-1, keepdim=True)
            feed.cpu()  # waits for the device
            times.append(time.perf_counter())
        marks.append(np.diff(times))
    marks = np.array(marks[1:])
    token = marks[:, 1:].ravel()
    run = folder.parent if folder.name == "model" and (folder.parent / "train.csv").is_file() else None
    trained = list(csv.DictReader((run / "train.csv").read_text().splitlines())) if run else []
    return {"prefill_tokens_per_s": prompt / float(np.median(marks[:, 0])), "decode_tokens_per_s": 1 / float(np.median(token)),
            "token_p50_ms": 1000 * float(np.median(token)), "token_p95_ms": 1000 * float(np.quantile(token, 0.95)),
            "prompt_tokens": prompt, "new_tokens": new,
            "disk_mb": sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6,
            "training_s": float(trained[-1]["seconds"]) if trained else None,
            "training_tokens": int(trained[-1]["tokens"]) if trained else None}


class Asked:
    """What every model is measured on, in the tokens of one tokenizer."""

    def __init__(self, args, dataset: Dataset, folder: Path, window: int):
        own = tokenizer_hash(folder)
        self.hash = own or dataset.meta["tokenizer_hash"]
        same = own in (None, dataset.meta["tokenizer_hash"])
        self.tokenizer = dataset.tokenizer if same else load_tokenizer(folder)
        self.end = dataset.meta["end_token"] if same else end_token(self.tokenizer, folder)
        self.test = dataset.documents("test")
        split = dataset.split("test")
        self.form = chat_form(dataset.folder if same else folder, self.tokenizer) if dataset.chat else None
        self.stop = {self.tokenizer.token_to_id(self.form.end_of_turn)} if self.form else set()
        if dataset.conversations:
            examples = encode_pairs(self.test, self.tokenizer, self.end, self.form)
            self.test_tokens = [np.array(example, np.int64) for example in examples]
        else:
            self.test_tokens = [split[i] for i in range(len(split))] if same else self.tokens(self.test)
        self.general = read_jsonl(args.general, ("text",)) if args.general else []
        self.general_tokens = self.tokens(self.general)
        self.questions, self.counts, begin = {}, {}, self.tokenizer.encode("").ids
        for name, asked in dataset.questions().items():
            groups, self.counts[name] = encode_questions(self.tokenizer, asked, window, begin, args.cut)
            self.questions[name] = [(i, q, rows) for i, (q, rows) in enumerate(zip(asked, groups, strict=True)) if rows]
        path = dataset.folder / "pairs_test.jsonl"
        every = read_jsonl(path, ("messages",)) if path.is_file() else []
        held_out = of_each_task(every, args.answers)
        self.written, room = [], window - args.answer_tokens
        self.counts["held-out instructions"] = count = {"left out": 0, "cut": 0, "merged": 0,
                                                        "not asked": len(every) - len(held_out)}
        for one in filter(None, map(self.instruction, held_out)):
            if (long := len(one["tokens"]) > room) and (not args.cut or room < 1):
                count["left out"] += 1
                continue
            count["cut"] += long
            self.written.append(one | {"tokens": one["tokens"][-room:]})

    def tokens(self, documents: list[dict]) -> list[np.ndarray]:
        return [np.array([*self.tokenizer.encode(document["text"]).ids, self.end], np.int64) for document in documents]

    def instruction(self, pair: dict) -> dict | None:
        """The prompt before the last answer, in the form of training, and that answer."""
        *before, last = pair["messages"]
        if last["role"] != "assistant" or not before:
            return None
        about = {"reference": last["content"], "task": "none"} | {kind: str(pair[kind]) for kind in KINDS if pair.get(kind)}
        if self.form:
            text = "".join(piece for piece, _, _ in render(self.form, before, answer=True))
            return about | {"prompt": text, "tokens": encode_chat(self.tokenizer, self.form, before, answer=True)[0]}
        text = ""
        for turn in before:
            said = turn["content"]
            text += (" " + said) if turn["role"] == "assistant" else ("\n\n" if text else "") + (
                said if turn["role"] == "system" else question_prompt(said))
        return about | {"prompt": text, "tokens": self.tokenizer.encode(text).ids}


def evaluate(
    name: str, folder: Path, asked: Asked, args, protocol: Protocol, known: set[str], scores: ResultCache, ranks: Ranks
) -> dict:
    """Everything measured of one model, per document and per question."""
    device = pick_device(args.device)
    reset_peak(device)
    model = load_model(folder, device=device, dtype=getattr(torch, args.dtype)).eval()
    base = {"model": file_hashes(folder), "config": file_hash(config_folder(folder) / "config.json"), "dtype": args.dtype,
            "device": device.type, "torch": torch.__version__}
    if is_adapter(folder):
        base["base"] = model.base["base_sha256"]

    def texts(what: str, documents: list[dict], tokens: list) -> list[dict]:
        return scores.of(f"{name}-{what}", base | {"protocol": protocol.describe()},
                         texts_of(documents, tokens, protocol, asked.tokenizer, asked.end),
                         lambda some, label: score_text(model, some, protocol, asked.end, ranks, label))

    test, general = texts("test", asked.test, asked.test_tokens), texts("general", asked.general, asked.general_tokens)
    answers = {label: scores.of(f"{name}-{label}", base | {"protocol": "choices"}, questions,
                                lambda some, label: score_questions(model, some, ranks, label))
               for label, questions in asked.questions.items()}
    about = base | {"protocol": "written", "most": args.answer_tokens, "measures": sorted(overlap_scores("", "")),
                    "known": hashlib.sha256(" ".join(sorted(known)).encode()).hexdigest()}
    written = scores.of(f"{name}-written", about, asked.written, lambda some, label: write_answers(
        model, asked.tokenizer, some, known, args.answer_tokens, ranks, label, asked.stop))
    cost, samples = None, []
    if ranks.rank == 0:  # the others would slow it down
        cost = measure_cost(model, folder) | {"peak_mb": 1000 * peak_memory(device)}
        cost["trained_params"] = count_parameters(model)[1] if cost["training_s"] is not None or is_adapter(folder) else None
        window = model.config.max_position_embeddings
        for prompt in beginnings(asked.test):
            ids = asked.tokenizer.encode(prompt).ids[: window // 2]
            try:
                new = generate(model, torch.tensor([ids]), min(SAMPLE_TOKENS, window - len(ids)),
                               stop=model.stop_tokens | {asked.end})[0]
                samples.append(asked.tokenizer.decode(new))
            except ValueError as error:
                samples.append(f"({error})")
    ranks.wait()
    run = read_json(folder.parent / "config.json") if (folder.parent / "train.csv").is_file() else None
    like = json.dumps({k: v for k, v in run.items() if k not in ("name", "runs", "seed")}, sort_keys=True) if run else None
    return {"name": name, "path": str(folder), "blocks": model.config.num_hidden_layers, "original": list(model.config.blocks),
            "params": count_parameters(model)[0], "tokenizer": asked.hash, "test": test, "general": general,
            "answers": answers, "written": written, "cost": cost, "samples": samples, "seed": run["seed"] if run else None,
            "like": like}


def of_each_task(rows: list[dict], most: int) -> list[dict]:
    """At most so many of the rows, as many of each task as may be, in their order."""
    seen, turns = Counter(), []
    for i, row in enumerate(rows):
        turns.append((seen[row.get("task")], i))
        seen[row.get("task")] += 1
    return [rows[i] for i in sorted(i for _, i in sorted(turns)[:most])]


def beginnings(documents: list[dict], words: int = 8) -> list[str]:
    """The first words of a few documents, evenly spaced."""
    chosen = np.linspace(0, len(documents) - 1, min(SAMPLES, len(documents))).round().astype(int)
    return [" ".join(documents[i]["text"].split()[:words]) for i in chosen]


# ---------------------------------------------------------------- all of them
def check_arguments(args) -> None:
    for name, least in (("context", 2), ("stride", 0), ("answers", 0), ("answer_tokens", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, given {getattr(args, name)}")
    if args.stride and (args.protocol != "documents" or args.stride > args.context):
        raise ValueError(f"--stride {args.stride} is for --protocol documents, and at most --context ({args.context})")
    if args.general and not Path(args.general).is_file():
        raise ValueError(f"--general {args.general}: there is no such file; give a JSONL file whose lines have a `text`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="hub names, folders or runs; several seeds of one config are put together")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--out", default="results", help="folder for tables, CSVs and figures")
    parser.add_argument("--context", type=int, default=1024, help="longest window, in tokens")
    parser.add_argument("--protocol", default="documents", choices=PROTOCOLS, help="which tokens are predicted from what")
    parser.add_argument("--stride", type=int, default=0, help="tokens from window to window (0: they do not overlap)")
    parser.add_argument("--prefix-token", type=int, metavar="ID", help="put this token before each document, so that its first "
                        "token is scored; --protocol rolling takes the end-of-text token without")
    parser.add_argument("--general", metavar="JSONL", default=str(GENERAL), help="general text, to see what was forgotten "
                        "(lines with a `text`; '' for none)")
    parser.add_argument("--cut", action="store_true", help="cut prompts that are longer than the window at their left, instead "
                        "of leaving the question out")
    parser.add_argument("--answers", type=int, default=100, help="held-out instructions to answer, at most; of each task as "
                        "many as may be")
    parser.add_argument("--answer-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--export-harness", metavar="DIR", help="only write tasks for lm-evaluation-harness there")
    args = parser.parse_args()
    check_arguments(args)
    ranks, device, dataset = join(args.device), pick_device(args.device), Dataset(args.data)
    if not len(dataset.split("test")):
        raise ValueError(f"{args.data} has an empty test split; prepare it from more articles")
    if dataset.conversations and (args.protocol != "documents" or args.prefix_token is not None or args.export_harness):
        raise ValueError(f"{args.data} holds conversations, of which the answers are predicted: it takes --protocol documents "
                         "alone, no --prefix-token and no --export-harness")
    if args.export_harness:
        print("wrote " + ", ".join(map(str, export_tasks(dataset, Path(args.export_harness)))))
        return
    # Wrong names, configs and tokenizers are found before the first model is measured.
    folders, homes = {}, {}
    for name in args.models:
        with ranks.one_first():
            folders[name] = locate(name)
            homes[name] = config_folder(folders[name])
    configs = {name: Decoder.read_config(folder) for name, folder in homes.items()}
    window = min(config.max_position_embeddings for config in configs.values())
    asked = {}
    for name, folder in homes.items():
        key = tokenizer_hash(folder) or dataset.meta["tokenizer_hash"]
        if key not in asked:
            asked[key] = Asked(args, dataset, folder, window)
        size = asked[key].tokenizer.get_vocab_size()
        if configs[name].vocab_size < size:
            raise ValueError(f"{name} knows {configs[name].vocab_size} tokens, its tokenizer has {size}: they do not belong "
                             "together")
    if dataset.conversations:  # none is ever cut, unless a model is too small for it
        longest = max(unit.shape[1] for one in asked.values() for unit in one.test_tokens) - 1
        args.context = max(args.context, longest)
        if longest > window:
            raise ValueError(f"a conversation of {args.data} has {longest + 1} tokens, these models take {window}: prepare it "
                             f"with --max-pair-tokens {window + 1}")
    least = min(config.vocab_size for config in configs.values())
    if args.prefix_token is not None and not 0 <= args.prefix_token < least:
        raise ValueError(f"--prefix-token must be from 0 to {least - 1}, given {args.prefix_token}")
    if args.protocol == "stream":
        if len(asked) > 1:
            raise ValueError("--protocol stream cuts the text elsewhere for every tokenizer, and these models have several: "
                             "take --protocol documents")
        (one,), context = asked.values(), min(args.context, window)
        if not Protocol("stream", context).units(one.test_tokens):
            raise ValueError(f"the test split of {args.data} has {sum(map(len, one.test_tokens))} tokens, less than one cut of "
                             f"{context}: lower --context, or take --protocol documents")
    out = make_folder(args.out)
    short = {name: Path(name).name for name in args.models}
    labels = short if len(set(short.values())) == len(short) else {name: name.replace("/", "_") for name in args.models}
    # Only what is written is held against them: a large corpus takes a while to read.
    against = () if not any(one.written for one in asked.values()) else ("train", "val", "test")
    if against and dataset.conversations:
        known = {n for pair in read_jsonl(dataset.folder / "pairs.jsonl", ("messages",)) for n in numbers(json.dumps(pair))}
    else:
        known = {n for name in against for row in dataset.documents(name) for n in numbers(row["text"])}
    found, failure, scores = [], None, ResultCache(out / "scores", ranks)
    for name, folder in folders.items():
        one = asked[tokenizer_hash(homes[name]) or dataset.meta["tokenizer_hash"]]
        prefix = one.end if args.protocol == "rolling" and args.prefix_token is None else args.prefix_token
        protocol = Protocol(args.protocol, min(args.context, window), args.stride, prefix)
        try:
            found.append(evaluate(labels[name], folder, one, args, protocol, known, scores, ranks))
        except ValueError as error:  # what was measured before is written all the same
            failure = ValueError(f"{name}: {error}")
            break
    if not found:
        raise failure
    if ranks.rank == 0:
        report(args, dataset, found, next(iter(asked.values())), protocol, window, device, out)
    if failure:
        raise failure


def report(args, dataset: Dataset, found: list[dict], asked: Asked, protocol: Protocol, window: int, device, out: Path) -> None:
    """Tables, figures and the raw rows."""
    notes = []
    for label, counts in asked.counts.items():
        notes += [f"; {n} of {label} {said}" for n, said in (
            (counts["left out"], f"are longer than {window} tokens and left out"), (counts["cut"], "were cut at the left"),
            (counts["merged"], "choices merge with the last token of their prompt"),
            (counts.get("not asked"), f"are not asked (--answers {args.answers}, as many of each task as may be)")) if n]
    several = len({m["tokenizer"] for m in found}) > 1
    text = (f"Data {args.data}. Text: {protocol.describe()}; {args.dtype} on {device.type}. Questions by log-likelihood of the "
            f"choices{''.join(notes)}."
            + (" The models' tokenizers differ: they are compared in bits per byte only." if several else ""))
    summaries = [summarize(model) for model in found]
    pairs = list(itertools.combinations(found, 2))
    listed = len(pairs) * (1 + bool(asked.general) + len(asked.questions) + len(SCORES) * bool(asked.written))  # differences
    comparisons = [compare(a, b, listed) for a, b in pairs]
    seeds = over_seeds(found)
    samples = [{"prompt": prompt, "texts": {m["name"]: m["samples"][i] for m in found}}
               for i, prompt in enumerate(beginnings(asked.test))]
    for name in ("answers.csv", "answers.jsonl", "categories.png", "curves.png"):  # of others, if not written below
        (out / name).unlink(missing_ok=True)
    page = markdown(summaries, comparisons, seeds, text, samples)
    write_json(out / "results.json", finite_or_none({"protocol": text, "models": summaries, "comparisons": comparisons,
                                             "over_seeds": {"configs": seeds[0], "comparisons": seeds[1]}}))
    write_text(out / "results.md", page)
    write_text(out / "samples.jsonl", "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    write_csv(out / "models.csv", [
        {"model": m["name"], "tokenizer": m["tokenizer"], "blocks": m["blocks"], "params": m["params"], "nll": m["test"]["nll"],
         "perplexity": m["test"]["perplexity"], "perplexity_low": m["test"]["perplexity_interval"][0],
         "perplexity_high": m["test"]["perplexity_interval"][1], "bits_per_byte": m["test"]["bits_per_byte"],
         "bits_low": m["test"]["bits_per_byte_interval"][0], "bits_high": m["test"]["bits_per_byte_interval"][1]} | m["cost"]
        for m in summaries])
    write_csv(out / "accuracy.csv", [
        {"model": m["name"], "set": name, "category": category, "n": q["n"], "accuracy": q["accuracy"], "low": q["low"],
         "high": q["high"], "chance": m["qa"][name]["chance"], "longest": m["qa"][name]["longest"]}
        for m in summaries for name, whole in m["qa"].items() if whole["n"]
        for category, q in [("", whole | dict(zip(("low", "high"), whole["accuracy_interval"], strict=True)))]
        + [(c, one | dict(zip(("low", "high"), one["interval"], strict=True))) for c, one in whole["by_category"].items()]])
    write_csv(out / "documents.csv", [{"model": m["name"], "set": name} | row for m in found for name in ("test", "general")
                                      for row in m[name]])
    write_csv(out / "slices.csv", [row for m in found for row in slices(m)])
    write_csv(out / "questions.csv", [
        {"model": m["name"], "set": name} | row for m in found for name, rows in m["answers"].items() for row in rows])
    written = [{"model": m["name"]} | row for m in found for row in m["written"]]
    if written:
        write_csv(out / "answers.csv", written)
        write_text(out / "answers.jsonl", "".join(json.dumps(
            {key: one[key] for key in (*KINDS, "prompt", "reference") if key in one}
            | {"answers": {m["name"]: m["written"][i]["answer"] for m in found}}, ensure_ascii=False) + "\n"
            for i, one in enumerate(found[0]["written"])))
    figures = [draw_results(out, out / "comparison.png"), draw_slices(out, out / "slices.png"),
               draw_tradeoff(out, out / "tradeoff.png")]
    if any(q["by_category"] for m in summaries for q in m["qa"].values() if q["n"]):
        figures.append(draw_categories(out, out / "categories.png"))
    if runs := [Path(m["path"]).parent for m in found if m["like"]]:
        figures.append(draw_curves(runs, out / "curves.png"))
    print(page)
    tables = "results.json, samples.jsonl, models.csv, accuracy.csv, documents.csv, slices.csv, questions.csv"
    tables += ", answers.csv, answers.jsonl" * bool(written)
    print(f"wrote {out}/results.md, {tables} and {', '.join(map(str, figures))}")


if __name__ == "__main__":
    command_line.run(main, "stopped; the same command goes on")
