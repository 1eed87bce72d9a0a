"""How well does a model answer: log-likelihoods of the choices, each distinct prefix of prompts and choices computed once.

The token sequences of many questions are laid out as one tree: a token that several of them begin with alike stands there
once, sees its ancestors and nothing else, and has its depth as position. A context of 500 tokens with four choices is then some
520 tokens of work, not 2,080; the head sees only where answers are predicted.
"""

import numpy as np
import torch

from model import Decoder
from nanoprune.data.chat_format import question_prompt
from nanoprune.data.tokenizer import split_tokens
from nanoprune.device import to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.losses import head_loss
from nanoprune.nn.pointwise import rope_table

Row = tuple[list[int], int]  # tokens, and how many of them are the prompt's


class Tree:
    """Rows laid out as a tree of tokens: ids, parents and depths, parents before their children."""

    def __init__(self):
        self.ids, self.parents, self.depths, self.children = [], [], [], {}

    def add(self, tokens: list[int]) -> list[int]:
        """The nodes of a row's tokens; those that are there already are shared."""
        nodes, parent = [], -1
        for token in tokens:
            if (node := self.children.get((parent, token))) is None:
                node = self.children[parent, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(parent)
                self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
            nodes.append(node)
            parent = node
        return nodes

    def visible(self) -> torch.Tensor:
        """What each node sees, itself and its ancestors: bool (nodes, nodes)."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@torch.no_grad()
def loglikelihoods(
    model: Decoder, groups: list[list[Row]], most: int = 512, ranks: Ranks = ALONE, label: str = "questions"
) -> list[np.ndarray]:
    """Per group (a question's choices) the summed log-likelihood in nats of each row's tokens from its prompt's end on.

    Trees take in groups until they hold `most` tokens, in the order of their tokens, so that those with a context in common
    meet. Plain form: every row in a forward pass of its own.
    """
    order, trees = sorted(range(len(groups)), key=lambda g: groups[g][0][0] if groups[g] else []), []
    for g in order:
        if not trees or len(trees[-1][0].ids) >= most:
            trees.append((Tree(), []))
        tree, members = trees[-1]
        members += [(g, k, tree.add(tokens), prompt) for k, (tokens, prompt) in enumerate(groups[g])]
    rows = np.cumsum([0, *map(len, groups)])
    found, device, trunk = np.zeros(rows[-1]), model.head_weight.device, model.model
    for tree, members in ranks.turns(trees, label):
        ids, depths = to_device(torch.tensor(tree.ids)[None], device), torch.tensor(tree.depths)
        seen = tree.visible()
        near = depths[:, None] - depths[None, :]
        masks = {"full_attention": to_device(seen, device)}
        if window := model.config.sliding_window:
            masks["sliding_attention"] = to_device(seen & (near < window), device)
        x = trunk.embed_tokens(ids).to(model.dtype)
        rope = tuple(table[:, None].to(x.dtype) for table in rope_table(model.config, to_device(depths, device)[None]))
        for i, layer in enumerate(trunk.layers):
            x = layer(x, rope, masks[model.config.layer_types[i]], None, i)
        # From the node before each answer token to the token itself; several rows may ask for the same.
        asked = sorted({(nodes[t - 1], nodes[t]) for _, _, nodes, prompt in members for t in range(prompt, len(nodes))})
        before, after = torch.tensor(asked).T
        x, targets = trunk.norm(x[:, to_device(before, device)]), torch.tensor(tree.ids)[after][None]
        losses = head_loss(x, model.head_weight, targets, "none")
        value = dict(zip(asked, losses[0].cpu().double().tolist(), strict=True))
        for g, k, nodes, prompt in members:
            found[rows[g] + k] = -sum(value[nodes[t - 1], nodes[t]] for t in range(prompt, len(nodes)))
    found = np.array(ranks.sum(found.tolist()))
    return [found[start:stop] for start, stop in zip(rows[:-1], rows[1:], strict=True)]


def encode_questions(tokenizer, questions: list[dict], window: int, begin: list[int] = (), cut: bool = False) -> tuple[list, dict]:
    """(per question its choices' rows, or None where one is longer than the window; counts of what was notable).

    With `cut` a long prompt loses tokens at its left, behind the begin token if there is one. A choice that comes to no token
    of its own is an error; where the last token of a prompt and the first of a choice would merge, the prompt's length decides,
    as in lm-evaluation-harness, and the count says how often.
    """
    groups, counts = [], {"left out": 0, "cut": 0, "merged": 0}
    for q in questions:
        prompt, rows = question_prompt(q["question"], q.get("context")), []
        alone = tokenizer.encode(prompt).ids
        for choice in q["choices"]:
            tokens, n = split_tokens(tokenizer, prompt, " " + choice)
            counts["merged"] += tokens[:n] != alone
            if n >= len(tokens) or not tokenizer.encode(choice, add_special_tokens=False).ids:
                raise ValueError(f"question {q['question']!r}: the choice {choice!r} comes to no token of its own; reword it")
            assert 1 <= n < len(tokens)
            rows.append((tokens, n))
        if (longest := max(len(tokens) for tokens, _ in rows)) > window:
            keep = len(begin) if begin and rows[0][0][: len(begin)] == list(begin) else 0
            over = longest - window
            if not cut or min(n for _, n in rows) - keep <= over:
                counts["left out"] += 1
                groups.append(None)
                continue
            counts["cut"] += 1
            rows = [(tokens[:keep] + tokens[keep + over :], n - over) for tokens, n in rows]
        groups.append(rows)
    return groups, counts


def score_questions(
    model: Decoder, asked: list[tuple[int, dict, list[Row]]], ranks: Ranks = ALONE, label: str = "questions"
) -> list[dict]:
    """A row per (number, question, its choices' rows): what was right by three rules, and by the longest choice alone.

    correct: the highest sum; correct_norm: the highest sum per character; correct_bytes: per byte of UTF-8. margin: of the true
    choice over the best other, in nats. Where a log-likelihood is not finite nothing is right.
    """
    scored, found = loglikelihoods(model, [rows for _, _, rows in asked], ranks=ranks, label=label), []
    for (i, q, _), ll in zip(asked, scored, strict=True):
        true = q["answer"]
        lengths = np.array([len(choice) for choice in q["choices"]])
        nbytes = np.array([len(choice.encode()) for choice in q["choices"]])
        known = bool(np.isfinite(ll).all())  # a broken model answers nothing; argmax would say the first choice
        others = np.delete(ll, true)
        longest = lengths == lengths.max()
        found.append({
            "question": i, "category": q.get("category", ""), "difficulty": q.get("difficulty", ""),
            "source": str(q.get("source", i)), "chance": 1 / len(ll), "longest": float(longest[true] / longest.sum()),
            "correct": int(known and ll.argmax() == true), "correct_norm": int(known and (ll / lengths).argmax() == true),
            "correct_bytes": int(known and (ll / nbytes).argmax() == true), "loglikelihood": float(ll[true]),
            "margin": float(ll[true] - others.max())})
    return found
