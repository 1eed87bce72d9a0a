"""What a model answers of a dataset's questions with the passage, from memory, and from the choices alone.

    python -m benchmarks.question_sets --model models/qwen2.5-coder --data data/bmw

Questions hold if a model answers more with the passage than without it, and if the choices alone give
nothing away. The same questions are asked in three ways; differences are paired, 95 % intervals resample
articles. A question of the training documents comes without its passage, which is the paragraph of its
sentence.
Questions without one (days of publication) are asked from memory and from the choices alone.

Products are in bfloat16 where the machine has units for it. Writes results/question_sets.csv, a row per
question and way, and results/question_sets.md.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.common import machine, make_parser, report
from benchmarks.tables import markdown
from model import Decoder
from nanoprune import command_line
from nanoprune.data.dataset import Dataset
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.device import fast_bfloat16, keep_freed_memory
from nanoprune.evaluation.multiple_choice import encode_questions, score_questions
from nanoprune.io.files import write_csv
from nanoprune.io.hub import locate
from nanoprune.statistics import mean

WAYS = ("with the passage", "from memory", "from the choices alone")
GAP = "____"


def find_passage(question: dict, documents: dict[str, dict]) -> str | None:
    """The paragraph in which the sentence of a question stands, with its gap filled."""
    sentence = question["question"].partition(GAP)
    document = documents.get(question.get("source"))
    if "context" in question or not sentence[1] or not document:
        return question.get("context")
    before, after = sentence[0].rpartition("“")[2], sentence[2].rpartition("”")[0]
    whole = before + question["choices"][question["answer"]] + after
    return next((paragraph for paragraph in document["text"].split("\n\n") if whole in paragraph), None)


def ask(question: dict, way: str, passage: str | None) -> dict:
    """The question as it is asked in one of the ways."""
    if way == "from the choices alone":
        return question | {"question": "", "context": None}
    return question | {"context": passage if way == "with the passage" else None}


def describe(rows: list[dict], metric: str) -> list[list[str]]:
    """Table rows of a set: accuracy in each way, and what the passage adds to the same questions."""
    by_way = {way: {row["question"]: row for row in rows if row["way"] == way} for way in WAYS}
    lines = []
    for way, answers in by_way.items():
        if answers:
            lines.append([way, *interval_cells([row[metric] for row in answers.values()],
                                               [row["source"] for row in answers.values()])])
    opened, closed, _ = by_way.values()
    if opened:
        differences = [row[metric] - closed[number][metric] for number, row in opened.items()]
        lines.append(["with the passage less from memory",
                      *interval_cells(differences, [row["source"] for row in opened.values()])])
    return lines


def interval_cells(values: list[float], sources: list[str]) -> list[str]:
    accuracy = mean(np.array(values, float))
    low, high = accuracy.interval(sources)
    return [str(len(values)), str(len(set(sources))), f"{accuracy.value:.3f} [{low:.3f}, {high:.3f}]"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a hub name, a model's folder or a run")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--limit", type=int, default=0, help="questions of a set, the first ones (0: all)")
    args = parser.parse_args()
    keep_freed_memory()
    dataset, folder = Dataset(args.data), locate(args.model)
    documents = {document["id"]: document for split in ("train", "test")
                 for document in dataset.documents(split)}
    tokenizer, model = load_tokenizer(folder), Decoder.from_pretrained(folder, dtype=torch.bfloat16).eval()
    units = fast_bfloat16(torch.device("cpu"))
    if not units:
        model.float()
    rows, lines = [], []
    for name, questions in dataset.questions().items():
        questions = questions[: args.limit or None]
        for way in WAYS:
            numbers = [number for number, question in enumerate(questions)
                       if way != WAYS[0] or find_passage(question, documents)]
            asked = [ask(questions[n], way, find_passage(questions[n], documents)) for n in numbers]
            encoded, _ = encode_questions(tokenizer, asked, model.config.max_position_embeddings)
            for row in score_questions(model, encoded, label=f"{name}, {way}"):
                rows.append({"set": name, "way": way, **row, "question": numbers[row["question"]]})
            write_csv(Path(args.out) / "question_sets.csv", rows)
        for metric in ("correct", "correct_norm"):
            of_set = [row for row in rows if row["set"] == name]
            lines += [[name, metric, *line] for line in describe(of_set, metric)]
    head = [f"{Path(args.model).name} on the questions of {Path(args.data).name}; {machine()}, "
            f"{'bfloat16' if units else 'float32'}; chance is 0.25.", ""]
    report(head + markdown(["set", "rule", "asked", "n", "articles", "value [95 %]"], lines), args.out,
           "question_sets")


if __name__ == "__main__":
    command_line.run(main)
