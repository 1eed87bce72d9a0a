"""The same questions and documents as tasks for lm-evaluation-harness.

    lm_eval --model hf --model_args pretrained=runs/full/model --include_path tasks --tasks nanoprune_test
"""

import json
from pathlib import Path
from string import Template

from nanoprune.data.chat_format import question_prompt
from nanoprune.data.dataset import Dataset
from nanoprune.io.files import make_folder, write_text
from nanoprune.io.folders import claim
from nanoprune.io.jsonl import write_jsonl

SOURCE = """task: nanoprune_$name
dataset_path: json
dataset_kwargs:
  data_files:
    test: $path
test_split: test
metadata:
  version: 1.0
"""
QUESTIONS = SOURCE + """output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
TEXT = SOURCE + """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
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
"""


def export_tasks(dataset: Dataset, folder: Path) -> list[Path]:
    """Write a task for each question set and one for the test split's perplexity; return all paths."""
    folder, paths = make_folder(folder).resolve(), []
    for name, questions in dataset.questions().items():
        rows = [{"prompt": question_prompt(question["question"], question.get("context")),
                 "choices": question["choices"], "answer": question["answer"]} for question in questions]
        paths += write_task(folder, name, QUESTIONS, rows)
    texts = [{"text": document["text"]} for document in dataset.documents("test")]
    return paths + write_task(folder, "test", TEXT, texts)


def write_task(folder: Path, name: str, task: str, rows: list[dict]) -> list[Path]:
    """Write the rows and the task that reads them; return both paths."""
    data = folder / f"nanoprune_{name}.jsonl"
    config = data.with_suffix(".yaml")
    claim("task", data, config)
    write_jsonl(data, rows)
    write_text(config, Template(task).substitute(name=name, path=json.dumps(str(data))))
    return [data, config]
