"""A study's measured runs: small files that stand under version control, found by what decides their numbers.

measured/none-lr0.001-s0-1a2b3c4d5e.json
                        a run: sums of nll by document, log-likelihoods of every choice by question
measured/items.json     the documents and questions that these are of; none of their text
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanoprune.config import Config, Study
from nanoprune.data.dataset import Dataset
from nanoprune.distributed import Ranks
from nanoprune.evaluation import multiple_choice, perplexity
from nanoprune.evaluation.items import Items
from nanoprune.evaluation.multiple_choice import describe_question, loglikelihoods
from nanoprune.evaluation.perplexity import score_text
from nanoprune.evaluation.result_cache import example_as_lists
from nanoprune.io.files import file_hash, finite_or_none, json_hash, read_json, write_text

if TYPE_CHECKING:
    from model import Decoder

# Settings that change no number but in its last digits, and names and paths: what these hold is hashed.
APART = {"name", "runs", "base", "revision", "data", "teacher", "device", "threads", "batch_size",
         "accumulation", "recompute", "compile", "parallel", "log", "log_every", "save_every"}
# Settings in which the runs of a study may differ.
OF_A_RUN = {"seed", "lr", "drop_blocks", "max_steps", "eval_every"}


@dataclass(frozen=True)
class RunResult:
    """A run, measured; of one that diverged nothing but that."""

    diverged: bool = False
    steps: int = 0
    tokens: int = 0  # trained on, padding included
    seconds: float = 0.0  # of its steps by their median, and of the teacher's one run over the training rows
    parameters: int = 0
    # At each validation: `tokens` trained on; by document, sums of `nll` and tokens `predicted`.
    validation: list[dict] = field(default_factory=list)
    # By the form of the weights, "trained" or one of ROUNDED: `bytes`, `test` and `general` (sums of nll by
    # document), `questions` (by set, log-likelihoods of all choices by question).
    measures: dict[str, dict] = field(default_factory=dict)


class Measured:
    """The files of a study's measured runs."""

    def __init__(
        self, study: Study, dataset: Dataset, items: Items, base: dict, versions: dict[str, int], writes: bool
    ):
        """`base`: hashes of the base. `versions`: of what is measured. Rank 0 alone `writes`."""
        data = {f"{name}.safetensors": file_hash(path) for name in ("train", "val", "pairs", "replay")
                if (path := dataset.folder / f"{name}.safetensors").is_file()}
        for name, texts in (("test split", items.test), ("general text", items.general)):
            data[name] = json_hash([text.example for text in texts], example_as_lists)
        for name, questions in items.questions.items():
            data[f"qa/{name}"] = json_hash([question.choices for question in questions])
        self.common = {"base": base, "data": data}
        self.versions = versions | {"perplexity": perplexity.VERSION,
                                    "multiple_choice": multiple_choice.VERSION}
        self.folder, self.writes = study.folder / "measured", writes
        self.training, self.adapters = study.training, study.adapters

    def about(self, config: Config, teacher: dict | None) -> dict:
        """Everything that decides a run's numbers; `teacher`: the same of the run that teaches it."""
        settings = {key: value for key, value in config.to_dict().items() if key not in APART
                    and (teacher or not key.startswith("teacher"))}
        about = self.common | {"settings": settings | {"rows_per_step": config.rows_per_step},
                               "versions": self.versions, "teacher": teacher and json_hash(teacher)}
        return json.loads(json.dumps(about))  # as it is read again, with lists

    def path(self, name: str, about: dict) -> Path:
        return self.folder / f"{name}-{json_hash(about)[:10]}.json"

    def read(self, about: dict) -> RunResult | None:
        """The result of exactly this run; None where there is none."""
        for path in self.folder.glob(f"*-{json_hash(about)[:10]}.json"):
            content = read_json(path)
            if content["about"] == about:
                result = RunResult(**content["result"])
                for mark in result.validation:
                    mark["nll"] = [math.nan if nll is None else nll for nll in mark["nll"]]
                return result
        return None

    def write(self, name: str, about: dict, result: RunResult) -> None:
        if self.writes:
            content = {"about": about, "result": finite_or_none(asdict(result))}
            write_text(self.path(name, about), json.dumps(content) + "\n")
            print(f"wrote {self.path(name, about)}")

    def check(self) -> None:
        """ValueError if the folder holds runs of another base, dataset or of other settings."""
        others = []
        for path in sorted(self.folder.glob("*-*.json")):
            then = read_json(path)["about"]
            adapters = self.adapters if then["settings"].get("lora") else {}
            now = self.about(replace(self.training, **adapters), None)
            changed = [f"{part}: {key} {then[part].get(key)}, now {now[part].get(key)}"
                       for part in ("base", "data", "settings")
                       for key in differing_keys(now[part], then[part])]
            if changed:
                others.append((path.name, "; ".join(changed)))
            elif then["versions"] != self.versions:
                print(f"note: {path} is of an older version of a measure, and is measured again")
        if others:
            name, changed = others[0]
            raise ValueError(
                f"{self.folder} holds {len(others)} run(s) of another base, dataset or other settings: of "
                f"{name} these differ ({changed}). Restore them, give this study another name, or move the "
                "folder away")


def differing_keys(now: dict, then: dict) -> list[str]:
    """Keys in which a study's runs must not differ, and do; those of teachers and adapters may."""
    return [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)
            and key not in OF_A_RUN and not key.startswith(("teacher", "lora", "frozen"))]


def final_validation(run: RunResult) -> float:
    """The validation loss of a run in nats per token; inf where it diverged."""
    if run.diverged:
        return math.inf
    loss = sum(run.validation[-1]["nll"]) / sum(run.validation[-1]["predicted"])
    return math.inf if math.isnan(loss) else loss


def measure_model(model: "Decoder", items: Items, autocast: Callable, ranks: Ranks) -> dict:
    """Sums of nll by document of both texts, log-likelihoods of all choices by question set; six decimals."""
    measures = {"questions": {}}
    with autocast():
        for name, texts in (("test", items.test), ("general", items.general)):
            batches = items.protocol.windows([text.example for text in texts])
            nll = score_text(model, batches, len(texts), ranks=ranks, label=name).nll
            measures[name] = nll.round(6).tolist()
        for name, questions in items.questions.items():
            choices = [question.choices for question in questions]
            measures["questions"][name] = [values.round(6).tolist() for values in
                                           loglikelihoods(model, choices, ranks=ranks, label=name)]
    return measures


def describe_items(items: Items) -> dict:
    """What the numbers are of: names, dates and sizes of documents, answers and sources of questions."""
    about = {}
    for name, texts in (("test", items.test), ("general", items.general)):
        about[name] = [text.about | {"tokens": int(text.example.learned[1:].sum())} for text in texts]
    about["questions"] = {name: [describe_question(number, question) for number, question, _ in questions]
                          for name, questions in items.questions.items()}
    return about
