"""Log-likelihoods of the choices of questions, each distinct prefix of prompts and choices computed once.

The token sequences of many questions are laid out as one tree. A token that several sequences share as part
of a common prefix stands there once, sees its ancestors alone, and has its depth as position. A context of
500 tokens with four choices is then some 520 tokens of work, not 2,080. The head sees only the places where
answers are predicted.
"""

from collections import Counter
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from nanoprune.data.chat_format import question_prompt
from nanoprune.device import to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.attention import Layout, Visible

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model import Decoder


VERSION = 1  # of the log-likelihoods: raise it when they or the columns of their rows change


class Choice(NamedTuple):
    """A prompt and one answer to it."""

    tokens: list[int]
    prompt: int  # how many of the tokens are the prompt's


class EncodedQuestion(NamedTuple):
    number: int  # in its set, from 0
    question: dict
    choices: list[Choice]


class Tree:
    """Choices laid out as a tree of tokens, each node numbered after its parent."""

    def __init__(self):
        self.nodes: dict[tuple[int, int], int] = {}  # numbers from 0, by parent (-1: none) and token
        # by a choice's row among all choices: the nodes before each token of its answer, and that token's own
        self.predictions: dict[int, list[tuple[int, int]]] = {}

    def add(self, row: int, choice: Choice) -> None:
        """Lay out a choice; nodes that are there already are shared."""
        path, node = [], -1
        for token in choice.tokens:
            node = self.nodes.setdefault((node, token), len(self.nodes))
            path.append(node)
        self.predictions[row] = list(pairwise(path))[choice.prompt - 1 :]

    def layout(self, model: "Decoder") -> Layout:
        """Depths as positions; each node sees itself and its ancestors, or the window's nearest of them."""
        visible = torch.eye(len(self.nodes), dtype=torch.bool)
        for (parent, _), node in self.nodes.items():
            if parent >= 0:
                visible[node] |= visible[parent]
        depths = visible.sum(1) - 1
        by_window = {None: Visible(to_device(visible, model.device))}
        if window := model.config.sliding_window:
            near = depths[:, None] - depths < window
            by_window[window] = Visible(to_device(visible & near, model.device))
        return Layout(to_device(depths, model.device)[None], by_window)


def tree_loglikelihoods(model: "Decoder", tree: Tree) -> list[float]:
    """The summed log-likelihood in nats of the answer of each choice in the tree."""
    ids = torch.tensor([[token for _, token in tree.nodes]])
    x = model.hidden_states(to_device(ids, model.device), layout=tree.layout(model))
    predictions = sorted(set(chain.from_iterable(tree.predictions.values())))  # choices share some
    before, after = torch.tensor(predictions).T
    losses = model.loss(x[:, to_device(before, model.device)], ids[:, after], "none")
    nll = dict(zip(predictions, losses[0].cpu().double().tolist(), strict=True))
    return [-sum(map(nll.get, answer)) for answer in tree.predictions.values()]


@torch.no_grad()
def loglikelihoods(
    model: "Decoder", groups: list[list[Choice]], tree_tokens: int = 512, ranks: Ranks = ALONE,
    label: str = "questions",
) -> list[np.ndarray]:
    """Log-likelihoods in nats of each group's choices, summed over the tokens behind the prompt.

    A group holds the choices of a question.

    Trees take in groups until they hold `tree_tokens`, in the order of their tokens, so that those with a
    common context meet. Plain form: every choice in a forward pass of its own.
    """
    first_rows, trees = np.cumsum([0, *map(len, groups)]), []
    for g in sorted(range(len(groups)), key=lambda g: groups[g][0].tokens):
        if not trees or len(trees[-1].nodes) >= tree_tokens:
            trees.append(Tree())
        for row, choice in enumerate(groups[g], start=first_rows[g]):
            trees[-1].add(row, choice)
    values = np.zeros(first_rows[-1])
    for tree in ranks.shard(trees, label):
        values[list(tree.predictions)] = tree_loglikelihoods(model, tree)
    return np.split(ranks.sum(values), first_rows[1:])[:-1]


def encode_questions(
    tokenizer: "Tokenizer", questions: list[dict], window: int, cut: bool = False
) -> tuple[list[EncodedQuestion], dict[str, int]]:
    """The questions that fit the window, encoded, and counts of those left out, cut and merged.

    With `cut` a long prompt loses tokens at its left, behind the tokenizer's begin token if there is one. A
    choice that has no token of its own is an error. Where a prompt's last token and a choice's first would
    merge, the prompt's length decides, as in lm-evaluation-harness.
    """
    encoded, counts = [], Counter()
    begin = tokenizer.encode("").ids
    for number, question in enumerate(questions):
        prompt, choices = question_prompt(question["question"], question.get("context")), []
        prompt_ids = tokenizer.encode(prompt).ids
        for text in question["choices"]:
            tokens = tokenizer.encode(f"{prompt} {text}").ids
            length = min(len(prompt_ids), len(tokens))
            counts["merged"] += tokens[:length] != prompt_ids
            if length >= len(tokens) or not tokenizer.encode(text, add_special_tokens=False).ids:
                raise ValueError(f"question {question['question']!r}: the choice {text!r} comes to no token "
                                 "of its own; reword it")
            choices.append(Choice(tokens, length))
        excess = max(len(choice.tokens) for choice in choices) - window
        if excess > 0:
            start = len(begin) if choices[0].tokens[: len(begin)] == begin else 0
            if not cut or min(choice.prompt for choice in choices) - start <= excess:
                counts["left out"] += 1
                continue
            counts["cut"] += 1
            choices = [Choice(tokens[:start] + tokens[start + excess :], length - excess)
                       for tokens, length in choices]
        encoded.append(EncodedQuestion(number, question, choices))
    return encoded, counts


def score_questions(
    model: "Decoder", questions: list[EncodedQuestion], ranks: Ranks = ALONE, label: str = "questions"
) -> list[dict]:
    """A row per question: right or wrong by three rules, and by the longest choice alone.

    correct: the highest sum; correct_norm: the highest sum per character; correct_bytes: per byte of UTF-8.
    loglikelihoods: of every choice, in nats. Where one is not finite nothing is right.
    """
    values = loglikelihoods(model, [question.choices for question in questions], ranks=ranks, label=label)
    rows = []
    for (number, question, _), scores in zip(questions, values, strict=True):
        about = describe_question(number, question)
        about |= {"question": number, "difficulty": question.get("difficulty", "")}
        rows.append(answer_row(about, scores))
    return rows


def describe_question(number: int, question: dict) -> dict:
    """What decides, beside the log-likelihoods, which choice is taken and whether it is right; no text."""
    choices = question["choices"]
    return {"answer": question["answer"], "source": str(question.get("source", number)),
            "category": question.get("category", ""), "characters": [len(choice) for choice in choices],
            "bytes": [len(choice.encode()) for choice in choices]}


def answer_row(about: dict, scores: np.ndarray) -> dict:
    """The row of a question that is described so."""
    answer, characters, utf8_bytes = about["answer"], np.array(about["characters"]), np.array(about["bytes"])
    longest = characters == characters.max()
    finite = np.isfinite(scores).all()  # a broken model answers nothing: argmax would take the first

    def correct(values: np.ndarray) -> int:
        return int(finite and values.argmax() == answer)

    return {
        "question": about.get("question", ""),
        "category": about["category"],
        "difficulty": about.get("difficulty", ""),
        "source": about["source"],
        "chance": 1 / len(scores),
        "longest": float(longest[answer] / longest.sum()),
        "correct": correct(scores),
        "correct_norm": correct(scores / characters),
        "correct_bytes": correct(scores / utf8_bytes),
        "answer": answer,
        "answer_bytes": int(utf8_bytes[answer]),
        "loglikelihoods": scores.tolist(),
    }
