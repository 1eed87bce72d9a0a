"""How well does a model predict, how well does it answer, how sure are we?

Several models are measured on one dataset's test split and compared.

    python eval.py Qwen/Qwen3-0.6B-Base models/less-25 runs/full runs/reduced --data data/bmw --out results
    python eval.py runs/full --data data/bmw --export-harness tasks     (the same for lm-evaluation-harness)
    python eval.py Qwen/Qwen3-0.6B-Base --data data/bmw --plan          (the differences that this can show)

Prediction: nats per token under a protocol that is printed (--protocol, --context, --stride, --prefix-token).
The default is whole documents in windows that do not overlap and no prefix token, so that the first token of
a document is not scored. Answers: the log-likelihood of " " + choice after the question and "Answer:", token
boundaries as in lm-evaluation-harness. `accuracy` takes the highest sum, `accuracy_norm` the highest per
character, `accuracy_bytes` per byte. Intervals: 95 %, over documents, or over what questions rest on
(`source`); differences are paired. Weights stay in fp32, products are in --dtype. Scores are stored in
OUT/scores: after a stop or a kill the same command resumes. Under torchrun the ranks share the work, for the
same numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from model import Decoder
from nanoprune import command_line
from nanoprune.command_line import option, parse_options
from nanoprune.data.dataset import Dataset
from nanoprune.data.prompts import read_prompts
from nanoprune.data.tokenizer import check_vocabulary, tokenizer_hash
from nanoprune.device import make_autocast, pick_device, pick_dtype
from nanoprune.distributed import Ranks, join
from nanoprune.evaluation import multiple_choice, perplexity, written_answers
from nanoprune.evaluation.agreement import compare_predictions, final_states
from nanoprune.evaluation.arms import describe_run, make_arms
from nanoprune.evaluation.cost import measure_speed, model_cost
from nanoprune.evaluation.items import Items
from nanoprune.evaluation.lm_eval_tasks import export_tasks
from nanoprune.evaluation.multiple_choice import score_questions
from nanoprune.evaluation.perplexity import PROTOCOLS, Protocol, Text, text_rows
from nanoprune.evaluation.plan import ASSUMED, describe_plan, question_plan, text_plan
from nanoprune.evaluation.result_cache import ResultCache
from nanoprune.evaluation.results_files import FILES, write_results
from nanoprune.evaluation.results_summary import data_and_machine
from nanoprune.evaluation.written_answers import corpus_numbers, overlap_scores, write_answers
from nanoprune.io.files import file_hashes, finite_or_none, json_hash, make_folder, write_json
from nanoprune.io.folders import claim
from nanoprune.io.hub import locate
from nanoprune.nn.identity import model_identity
from nanoprune.nn.lora import count_parameters
from nanoprune.nn.model_config import ModelConfig, read_parts
from nanoprune.nn.peft import config_folder, is_adapter
from nanoprune.nn.sampling import GREEDY, Sampling, generate
from nanoprune.statistics import evenly_spaced

SAMPLES, SAMPLE_WORDS, SAMPLE_TOKENS = 5, 8, 60  # continued beginnings of test documents, or --prompts
SAMPLED = Sampling(temperature=0.8, top_p=0.95)
GENERAL = Path(__file__).parent / "qa" / "general.jsonl"  # plain text on many things, written for this


@dataclass(frozen=True)
class Options:
    """The command line."""

    models: list[str] = option("hub names, folders or runs; several seeds of one config are put together",
                               name="models", nargs="+")
    data: str = option("dataset folder", required=True)
    out: str = option("folder for tables, CSVs and figures", "results")
    context: int = option("longest window, in tokens", 1024, least=2)
    protocol: str = option("which tokens are predicted from what", "documents", choices=PROTOCOLS)
    stride: int = option("tokens from window to window (0: they do not overlap)", 0, least=0)
    prefix_token: int | None = option("put the token of this ID before each document, so that its first "
                                      "token is scored; --protocol rolling takes the end-of-text token by "
                                      "default")
    general: str = option("general text, to see what was forgotten (JSONL, lines with a `text`; '' for none)",
                          str(GENERAL))
    prompts: str | None = option("file with text to continue, a beginning a line (default: beginnings of "
                                 "test documents)")
    cut: bool = option("cut prompts that are longer than the window at their left, instead of leaving the "
                       "question out", False)
    answers: int = option("most held-out instructions to answer, as many of each task as may be", 100,
                          least=0)
    answer_tokens: int = option("longest answer", 64, least=1)
    documents: int | None = option("most documents of the test split and of the general text, evenly spaced "
                                   "(default: all)", least=1)
    questions: int | None = option("most questions of each set, drawn at random and spread over their "
                                   "sources (default: all)", least=1)
    cost: bool = option("measure speed and memory at the end: three rounds of ten seconds for each model, in "
                        "processes of their own", False)
    plan: str | None = option("only say what difference these documents and questions can show, from the "
                              "first model with and without a block (default: the middle one)", nargs="?",
                              const="", metavar="BLOCK")
    changed: float | None = option("share of answers that change, for --plan (default: 0.2)")
    device: str = option("auto, cpu, cuda, cuda:N or mps", "auto")
    dtype: str = option("type of the products, as in training (auto: bfloat16 where the device has units for "
                        "it)", "auto", choices=["auto", "float32", "bfloat16", "float16"])
    export_harness: str | None = option("only write tasks for lm-evaluation-harness to this folder")

    def check(self) -> None:
        if self.changed is not None and (self.plan is None or not 0 < self.changed <= 1):
            raise ValueError(f"--changed goes with --plan, above 0 and up to 1; given {self.changed}")
        if self.plan is not None and (self.cost or self.export_harness):
            raise ValueError("--plan measures no model's cost and exports nothing: give it without --cost "
                             "and --export-harness")
        if self.stride and (self.protocol != "documents" or self.stride > self.context):
            raise ValueError(f"--stride {self.stride} is for --protocol documents, and at most --context "
                             f"({self.context})")

    def check_dataset(self, dataset: Dataset) -> None:
        if not len(dataset.split("test")):
            raise ValueError(f"{self.data} has an empty test split; prepare it from more articles")
        plain = self.protocol == "documents" and self.prefix_token is None and not self.export_harness
        if dataset.conversations and not plain:
            raise ValueError(f"{self.data} holds conversations, of which the answers are predicted: it takes "
                             "--protocol documents alone, no --prefix-token and no --export-harness")


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate: located, no weights read."""

    name: str
    label: str  # a short name, for tables
    folder: Path
    items: Items  # in the tokens of its tokenizer

    @cached_property
    def identity(self) -> dict:
        return model_identity(self.folder)


# ---------------------------------------------------------------- what is evaluated
def find_candidates(options: Options, dataset: Dataset, ranks: Ranks) -> list[Candidate]:
    """The models and their items.

    Wrong names, configs and tokenizers are found here, before the first model is measured.
    """
    folders, homes = {}, {}
    for name in options.models:
        with ranks.local_first():
            folders[name] = locate(name)
            homes[name] = config_folder(folders[name])  # of config.json and the tokenizer
    configs = {name: ModelConfig.read(home) for name, home in homes.items()}
    window = min(config.max_position_embeddings for config in configs.values())
    vocabulary = min(config.vocab_size for config in configs.values())
    if options.prefix_token is not None and not 0 <= options.prefix_token < vocabulary:
        raise ValueError(f"--prefix-token must be from 0 to {vocabulary - 1}, given {options.prefix_token}")
    by_tokenizer, candidates = {}, []
    names = {name: Path(name).absolute().name for name in options.models}
    if len(set(names.values())) < len(names):
        names = {name: name.replace("/", "_") for name in names}
    for name, label in names.items():
        key = tokenizer_hash(homes[name]) or dataset.meta["tokenizer_hash"]
        if key not in by_tokenizer:
            by_tokenizer[key] = make_items(options, dataset, homes[name], window)
        check_vocabulary(by_tokenizer[key].tokenizer, name, configs[name].vocab_size)
        candidates.append(Candidate(name, label, folders[name], by_tokenizer[key]))
    if options.protocol == "stream" and len(by_tokenizer) > 1:
        raise ValueError("--protocol stream cuts the text elsewhere for every tokenizer, and these models "
                         "have several: take --protocol documents")
    return candidates


def make_items(options: Options, dataset: Dataset, folder: Path, window: int) -> Items:
    """The texts, questions and instructions in the tokens of a folder's tokenizer."""
    protocol = Protocol(options.protocol, min(options.context, window), options.stride, options.prefix_token)
    items = Items(dataset, folder, protocol, window)
    items.add_test(options.documents)
    if options.general:
        items.add_general(options.general, options.documents)
    items.add_questions(options.cut, options.questions)
    items.add_instructions(options.answers, options.answer_tokens, options.cut)
    return items


def prompts_to_continue(path: str | None, documents: Sequence[dict]) -> list[dict]:
    """The lines of a file, or else the first words of a few documents, evenly spaced, and the words behind.
    """
    if path:
        return [{"prompt": prompt, "reference": ""} for prompt in read_prompts(path)]
    prompts = []
    for document in evenly_spaced(documents, SAMPLES):
        words = document["text"].split()[: SAMPLE_WORDS + SAMPLE_TOKENS]
        prompts.append({"prompt": " ".join(words[:SAMPLE_WORDS]),
                        "reference": " ".join(words[SAMPLE_WORDS:])})
    return prompts


# ---------------------------------------------------------------- one model
def evaluate(
    candidate: Candidate, options: Options, corpus: set[str], prompts: list[dict], cache: ResultCache,
    ranks: Ranks,
) -> dict:
    """Every result of a model: rows of texts, questions and answers; on rank 0 also its size, samples and
    final states.

    `corpus`: the numbers in the dataset's text. `prompts`: beginnings to continue. Autocast is the caller's.
    """
    folder, items = candidate.folder, candidate.items
    model = Decoder.from_pretrained(folder, device=pick_device(options.device)).eval()
    config, size = model.config, count_parameters(model)
    measure = cached_measure(candidate, options, model, cache)

    # ---- how well does it predict?
    texts = {name: predict(name, unscored, items, model, measure)
             for name, unscored in (("test", items.test), ("general", items.general))}

    # ---- how well does it answer?
    answers = choose(items, model, measure)
    settings = {"protocol": "written", "version": written_answers.VERSION, "most": options.answer_tokens,
                "stop": sorted(model.stop_tokens | items.stop),
                "tokenizer": json_hash(items.tokenizer.to_str()),
                "measures": sorted(overlap_scores("", "")), "known": json_hash(sorted(corpus))}
    written = measure("written", settings, items.instructions, lambda piece, *how: write_answers(
        model, items.tokenizer, piece, corpus, options.answer_tokens, items.stop, *how))

    # ---- what does it cost?
    cost, samples, states = None, [], None
    if ranks.rank == 0:
        cost = model_cost(model, folder, options.dtype)
        trained = cost["training_s"] is not None or is_adapter(folder)
        cost = {"trained_params": size.trained if trained else None} | cost
        samples = [continuations(model, prompt["prompt"], items) for prompt in prompts]
        states = final_states(model, items.test, items.protocol)
    ranks.barrier()
    return {
        "label": candidate.name, "name": candidate.label, "path": str(folder), "sha256": file_hashes(folder),
        "identity": json_hash(candidate.identity),
        "blocks": config.num_hidden_layers, "original": list(config.blocks),
        "history": config.extra.get("nanoprune_history", []),
        "params": size.total, "tokenizer": items.tokenizer_hash, **texts, "answers": answers,
        "written": written, "cost": cost, "samples": samples, "states": states} | describe_run(folder)


def cached_measure(
    candidate: Candidate, options: Options, model: Decoder, cache: ResultCache, **changes
) -> Callable[..., list[dict]]:
    """A function (name, settings, items, measure) of the rows of a model's items, from the cache if it has
    them; `changes`: made to the model since it was loaded.
    """
    identity = {"model": candidate.identity, "products": options.dtype,
                "device": model.device.type, "torch": torch.__version__} | changes
    return lambda name, settings, *item: cache.rows(f"{candidate.label}-{name}", identity | settings, *item)


def predict(name: str, texts: list[Text], items: Items, model: Decoder, measure: Callable) -> list[dict]:
    settings = {"protocol": items.protocol.describe(), "version": perplexity.VERSION}
    return measure(name, settings, texts, lambda piece, *how: text_rows(model, piece, items.protocol, *how))


def choose(items: Items, model: Decoder, measure: Callable) -> dict[str, list[dict]]:
    """The rows of every question set."""
    settings = {"protocol": "choices", "version": multiple_choice.VERSION}
    return {name: measure(name, settings, questions, lambda piece, *how: score_questions(model, piece, *how))
            for name, questions in items.questions.items()}


def plan(candidate: Candidate, options: Options, cache: ResultCache) -> dict:
    """The differences that the test split and the questions can show, from a model with and without a block.
    """
    items = candidate.items
    model = Decoder.from_pretrained(candidate.folder, device=pick_device(options.device)).eval()
    block = options.plan or str(model.config.num_hidden_layers // 2)

    def both(**changes) -> tuple[list[dict], dict[str, list[dict]]]:
        measure = cached_measure(candidate, options, model, cache, **changes)
        return predict("test", items.test, items, model, measure), choose(items, model, measure)

    parts = read_parts([block], model.config)  # a wrong block costs no time
    test, answers = both()
    model.drop_blocks(parts)
    test_without, answers_without = both(without=block)
    changed = options.changed or ASSUMED
    return {"model": candidate.name, "without": block, "changed": changed,
            "protocol": items.protocol.describe(), "text": text_plan(test, test_without),
            "questions": {name: question_plan(rows, answers_without[name], changed)
                          for name, rows in answers.items()}}


def continuations(model: Decoder, prompt: str, items: Items) -> dict[str, str]:
    """A prompt's greedy continuation and a sampled one, or why there is none."""
    window = model.config.max_position_embeddings
    ids, texts = items.tokenizer.encode(prompt).ids[: window // 2], {}
    for way, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        try:
            (tokens,) = generate(model, [ids], min(SAMPLE_TOKENS, window - len(ids)), sampling,
                                 stop=model.stop_tokens | {items.end})
            texts[way] = items.tokenizer.decode(tokens)
        except ValueError as error:
            texts[way] = f"({error})"
    return texts


# ---------------------------------------------------------------- all models
def describe_protocol(options: Options, candidates: list[Candidate], device: torch.device) -> str:
    """What a reader needs to know of it beside the numbers."""
    notes = "".join(f"; {note}" for note in candidates[0].items.notes())
    text = (f"Text: {candidates[-1].items.protocol.describe()}; products in {options.dtype} on "
            f"{device.type}. Questions by log-likelihood of the choices{notes}.")
    if len({candidate.items.tokenizer_hash for candidate in candidates}) > 1:
        text += " The models' tokenizers differ: they are compared in bits per byte only."
    return text


def main() -> None:
    options = parse_options(Options, __doc__)
    options.check()
    ranks = join(options.device)
    device = pick_device(options.device)  # a ValueError now rather than after the data is read
    options = replace(options, dtype=pick_dtype(options.dtype, device))
    autocast = make_autocast(options.dtype, device)
    dataset = Dataset(options.data)
    options.check_dataset(dataset)
    if options.export_harness:
        print("wrote " + ", ".join(map(str, export_tasks(dataset, Path(options.export_harness)))))
        return
    if options.plan is not None and len(options.models) > 1:
        print(f"note: --plan measures the first model alone, {options.models[0]}")
        options = replace(options, models=options.models[:1])
    candidates = find_candidates(options, dataset, ranks)
    out = make_folder(options.out)
    if ranks.rank == 0:
        names = ["plan.json"] if options.plan is not None else FILES
        claim("result", *(out / name for name in names), inputs=(options.general, options.prompts))
    cache = ResultCache(out / "scores", ranks)
    if options.plan is not None:
        with autocast():
            planned = plan(candidates[0], options, cache)
        if ranks.rank == 0:
            write_json(out / "plan.json", finite_or_none(planned))
            print("\n".join([*describe_plan(planned), f"wrote {out / 'plan.json'}"]))
        return
    prompts = prompts_to_continue(options.prompts, dataset.documents("test"))
    written = any(candidate.items.instructions for candidate in candidates)
    corpus = corpus_numbers(dataset) if written else set()  # a large corpus takes a while
    results, failure = [], None
    for candidate in candidates:
        try:
            with autocast():  # around all measurements: it casts the weights once
                results.append(evaluate(candidate, options, corpus, prompts, cache, ranks))
        except ValueError as error:  # the results of the models before are written all the same
            failure = ValueError(f"{candidate.name}: {error}")
            break
    # ---- how sure are we?
    if results and ranks.rank == 0:
        arms, agreement = make_arms(results), []
        for tokenizer in dict.fromkeys(result["tokenizer"] for result in results):
            agreement += compare_predictions(
                {arm.name: arm.first["states"] for arm in arms if arm.first["tokenizer"] == tokenizer},
                device)
        if options.cost:
            speeds = measure_speed(Decoder.from_pretrained,
                                   {arm.name: Path(arm.first["path"]) for arm in arms}, str(device),
                                   options.dtype)
            for arm in arms:
                arm.first["cost"] |= speeds[arm.name]
        about = data_and_machine(options.data, dataset.meta, device)
        about["protocol"] = describe_protocol(options, candidates, device)
        write_results(out, arms, agreement, about, prompts)
        print((out / "results.md").read_text(encoding="utf-8"))
        print(f"wrote {out}: results.md, results.html to send on, results.json, tables and figures")
    if failure:
        raise failure


if __name__ == "__main__":
    command_line.run(main, "stopped; the same command resumes")
