"""The same questions and documents as tasks for lm-evaluation-harness: YAML files and the JSONL files that they read.

    lm_eval --model hf --model_args pretrained=runs/full/model --include_path tasks --tasks nanoprune_closed_book
"""

import json
from pathlib import Path

from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset
from nanoprune.io.files import make_folder, write_text

QUESTIONS = """task: nanoprune_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
TEXT = """task: nanoprune_test
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
metadata:
  version: 1.0
"""


def export_tasks(dataset: Dataset, folder: Path) -> list[Path]:
    """Write a task for each question set, and one for the test split's perplexity; the paths written."""
    folder, written = make_folder(folder).resolve(), []
    sets = {name: (QUESTIONS, [
        {"prompt": question_prompt(q["question"], q.get("context")), "choices": q["choices"], "answer": q["answer"]} for q in asked])
        for name, asked in dataset.questions().items()}
    sets["test"] = (TEXT, [{"text": row["text"]} for row in dataset.documents("test")])
    for name, (task, rows) in sets.items():
        data = folder / f"nanoprune_{name}.jsonl"
        write_text(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        path = data.with_suffix(".yaml")
        write_text(path, task.format(name=name, path=json.dumps(str(data))))
        written += [data, path]
    return written
