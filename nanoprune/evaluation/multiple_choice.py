"""Log-likelihoods of the choices of questions, each distinct prefix of prompts and choices computed once.

The token sequences of many questions are laid out as one tree. A token that several sequences share as part
of a common prefix stands there once, sees its ancestors alone, and has its depth as position. A context of
500 tokens with four choices is then some 520 tokens of work, not 2,080. The head sees only the places where
answers are predicted.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from nanoprune.data.chat_format import question_prompt
from nanoprune.data.tokenizer import split_tokens
from nanoprune.device import to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.attention import Layout, Visible

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from model import Decoder


class Choice(NamedTuple):
    """A prompt and one answer to it."""

    tokens: list[int]
    prompt: int  # how many of the tokens are the prompt's


class EncodedQuestion(NamedTuple):
    number: int  # in its set, from 0
    question: dict
    choices: list[Choice]


class Leaf(NamedTuple):
    """A choice in a tree: its row among all choices, its nodes, the length of its prompt."""

    row: int
    nodes: list[int]
    prompt: int

    def predictions(self) -> list[tuple[int, int]]:
        """Pairs of nodes: the one before each token of the answer, and that token's own."""
        return [(self.nodes[t - 1], self.nodes[t]) for t in range(self.prompt, len(self.nodes))]


class Tree:
    """Choices laid out as a tree of tokens: ids, parents and depths, parents before their children."""

    def __init__(self):
        self.ids, self.parents, self.depths, self.children = [], [], [], {}
        self.leaves: list[Leaf] = []

    def add(self, row: int, choice: Choice) -> None:
        """Lay out a choice; nodes that are there already are shared."""
        nodes, parent = [], -1
        for token in choice.tokens:
            if (node := self.children.get((parent, token))) is None:
                node = self.children[parent, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(parent)
                self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
            nodes.append(node)
            parent = node
        self.leaves.append(Leaf(row, nodes, choice.prompt))

    def layout(self, window: int | None, device) -> Layout:
        """Depths as positions; each node sees itself and its ancestors.

        In blocks with sliding attention it sees the `window` nearest of them.
        """
        visible = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible[node] |= visible[parent]
        depths = torch.tensor(self.depths)
        by_window = {None: Visible(to_device(visible, device))}
        if window:
            near = depths[:, None] - depths[None, :] < window
            by_window[window] = Visible(to_device(visible & near, device))
        return Layout(to_device(depths, device)[None], by_window)


def tree_loglikelihoods(model: Decoder, tree: Tree) -> list[float]:
    """The summed log-likelihood in nats of each leaf's answer."""
    ids = torch.tensor(tree.ids)
    x = model.hidden_states(to_device(ids[None], model.device),
                            layout=tree.layout(model.config.sliding_window, model.device))
    predictions = sorted({pair for leaf in tree.leaves for pair in leaf.predictions()})  # leaves share some
    before, after = torch.tensor(predictions).T
    losses = model.loss(x[:, to_device(before, model.device)], ids[after][None], "none")
    nll = dict(zip(predictions, losses[0].cpu().double().tolist(), strict=True))
    return [-sum(nll[pair] for pair in leaf.predictions()) for leaf in tree.leaves]


@torch.no_grad()
def loglikelihoods(
    model: Decoder, groups: list[list[Choice]], tree_tokens: int = 512, ranks: Ranks = ALONE,
    label: str = "questions",
) -> list[np.ndarray]:
    """Log-likelihoods in nats of each group's choices, summed over the tokens behind the prompt.

    A group holds the choices of a question.

    Trees take in groups until they hold `tree_tokens`, in the order of their tokens, so that those with a
    common context meet. Plain form: every choice in a forward pass of its own.
    """
    first_rows, trees = np.cumsum([0, *map(len, groups)]), []
    for g in sorted(range(len(groups)), key=lambda g: groups[g][0].tokens):
        if not trees or len(trees[-1].ids) >= tree_tokens:
            trees.append(Tree())
        for row, choice in enumerate(groups[g], start=first_rows[g]):
            trees[-1].add(row, choice)
    values = np.zeros(first_rows[-1])
    for tree in ranks.shard(trees, label):
        values[[leaf.row for leaf in tree.leaves]] = tree_loglikelihoods(model, tree)
    values = np.array(ranks.sum(values.tolist()))
    return [values[start:stop] for start, stop in pairwise(first_rows)]


def encode_questions(
    tokenizer: Tokenizer, questions: list[dict], window: int, cut: bool = False
) -> tuple[list[EncodedQuestion], dict[str, int]]:
    """The questions that fit the window, encoded, and counts of those left out, cut and merged.

    With `cut` a long prompt loses tokens at its left, behind the tokenizer's begin token if there is one. A
    choice that has no token of its own is an error. Where a prompt's last token and a choice's first would
    merge, the prompt's length decides, as in lm-evaluation-harness.
    """
    encoded, counts = [], {"left out": 0, "cut": 0, "merged": 0}
    begin = tokenizer.encode("").ids
    for number, question in enumerate(questions):
        prompt, choices = question_prompt(question["question"], question.get("context")), []
        prompt_ids = tokenizer.encode(prompt).ids
        for text in question["choices"]:
            tokens, length = split_tokens(tokenizer, prompt, " " + text)
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
    model: Decoder, questions: list[EncodedQuestion], ranks: Ranks = ALONE, label: str = "questions"
) -> list[dict]:
    """A row per question: right or wrong by three rules, and by the longest choice alone.

    correct: the highest sum; correct_norm: the highest sum per character; correct_bytes: per byte of UTF-8.
    margin: of the true choice over the best other, in nats. Where a log-likelihood is not finite nothing is
    right.
    """
    values = loglikelihoods(model, [question.choices for question in questions], ranks=ranks, label=label)
    return [question_row(number, question, scores)
            for (number, question, _), scores in zip(questions, values, strict=True)]


def question_row(number: int, question: dict, scores: np.ndarray) -> dict:
    """The row of a question from the log-likelihoods (choices,) of its choices."""
    answer, choices = question["answer"], question["choices"]
    characters = np.array([len(choice) for choice in choices])
    utf8_bytes = np.array([len(choice.encode()) for choice in choices])
    longest = characters == characters.max()
    finite = bool(np.isfinite(scores).all())  # a broken model answers nothing: argmax would take the first
    return {
        "question": number,
        "category": question.get("category", ""),
        "difficulty": question.get("difficulty", ""),
        "source": str(question.get("source", number)),
        "chance": 1 / len(scores),
        "longest": float(longest[answer] / longest.sum()),
        "correct": int(finite and scores.argmax() == answer),
        "correct_norm": int(finite and (scores / characters).argmax() == answer),
        "correct_bytes": int(finite and (scores / utf8_bytes).argmax() == answer),
        "loglikelihood": float(scores[answer]),
        "margin": float(scores[answer] - np.delete(scores, answer).max()),
    }
