"""Everything that models are evaluated on: texts to predict, questions and instructions to answer."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nanoprune.data.chat_format import CHAT_DATE, chat_form, check_messages, is_learned
from nanoprune.data.conversations import encode_pairs, encode_prompt, learned_answers, said
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example
from nanoprune.data.tokenizer import end_token, load_tokenizer, tokenizer_hash
from nanoprune.evaluation.multiple_choice import EncodedQuestion, encode_questions
from nanoprune.evaluation.perplexity import Protocol, Text
from nanoprune.evaluation.written_answers import KINDS
from nanoprune.io.jsonl import read_jsonl
from nanoprune.statistics import evenly_spaced


class Items:
    """The texts, questions and instructions of an evaluation, in the tokens of one tokenizer.

    `protocol` has the prefix and the context that this tokenizer needs. `counts`: by set, how many items were
    left out, cut, or the like.
    """

    def __init__(self, dataset: Dataset, folder: Path, protocol: Protocol, window: int):
        """`folder`: of the tokenizer. `window`: the longest sequence that every model takes, in tokens."""
        self.dataset, self.window, self.protocol = dataset, window, protocol
        self.tokenizer_hash = tokenizer_hash(folder) or dataset.meta["tokenizer_hash"]
        if self.tokenizer_hash == dataset.meta["tokenizer_hash"]:
            folder, self.tokenizer, self.end = dataset.folder, dataset.tokenizer, dataset.meta["end_token"]
        else:
            self.tokenizer = load_tokenizer(folder)
            self.end = end_token(self.tokenizer, folder)
        today = dataset.meta.get("chat_date", CHAT_DATE)
        self.form = chat_form(folder, self.tokenizer, today) if dataset.chat else None
        ends_turn = self.form and self.form.end_of_turn
        self.stop = {self.tokenizer.token_to_id(ends_turn)} if ends_turn else set()
        if protocol.name == "rolling" and protocol.prefix is None:
            self.protocol = replace(protocol, prefix=self.end)
        self.test: list[Text] = []
        self.general: list[Text] = []
        self.questions: dict[str, list[EncodedQuestion]] = {}
        self.instructions: list[dict] = []
        self.counts: dict[str, dict[str, int]] = {}

    # ---- texts to predict
    def add_test(self, most: int | None = None) -> None:
        """At most `most` documents of the test split, evenly spaced (None: all)."""
        documents = self._spaced("the test documents", self.dataset.documents("test"), most)
        self.test = self._conversations(documents) if self.dataset.conversations else self._texts(documents)
        if not self.test:
            raise ValueError(f"the test split of {self.dataset.folder} has {len(documents)} document(s) of "
                             f"too few tokens, less than one cut of {self.protocol.context}: lower "
                             "--context, or take --protocol documents")

    def add_general(self, path: str, most: int | None = None) -> None:
        documents = [document for document in read_jsonl(path, ("text",)) if document["text"].strip()]
        if not documents:
            raise ValueError(f"general: {path}: no line has any text; give a JSONL file whose lines have a "
                             "`text`")
        self.general = self._texts(self._spaced("the general texts", documents, most))

    def _spaced(self, name: str, documents: Sequence[dict], most: int | None) -> list[dict]:
        chosen = evenly_spaced(documents, most or len(documents))
        self.counts[name] = {"not scored": len(documents) - len(chosen)}
        return chosen

    def _texts(self, documents: list[dict]) -> list[Text]:
        """The documents, or the cuts of their stream."""
        encodings = self.tokenizer.encode_batch([document["text"] for document in documents])
        tokens = [np.array([*encoding.ids, self.end], np.int64) for encoding in encodings]
        units = self.protocol.units([Example(row, np.ones(len(row), bool)) for row in tokens])
        unpredicted = int(self.protocol.prefix is None)  # tokens at the start
        if self.protocol.name == "stream":
            return [Text(cut, describe_text(f"cut {number}", self._decode(cut.tokens[unpredicted:])))
                    for number, cut in enumerate(units)]
        texts = []
        for number, (document, encoding, unit) in enumerate(zip(documents, encodings, units, strict=True)):
            text, month = document["text"], str(document.get("date") or "")[:7]
            if unpredicted and encoding.offsets:
                text = text[encoding.offsets[0][1] :]
            about = describe_text(document.get("id", str(number)), text, month, document.get("category"))
            texts.append(Text(unit, about))
        return texts

    def _decode(self, tokens: np.ndarray) -> str:
        return self.tokenizer.decode(tokens[tokens != self.end].tolist())

    def _conversations(self, documents: list[dict]) -> list[Text]:
        """The conversations, of which the answers are predicted.

        The protocol's context grows, so that none is cut.
        """
        examples = encode_pairs(documents, self.tokenizer, self.end, self.form)
        longest = max(map(len, examples)) - 1
        if longest > self.window:
            raise ValueError(f"a conversation of {self.dataset.folder} has {longest + 1} tokens, these "
                             f"models take {self.window}: prepare it with --max-pair-tokens "
                             f"{self.window + 1}")
        self.protocol = replace(self.protocol, context=max(self.protocol.context, longest))
        texts = []
        for document, example in zip(documents, examples, strict=True):
            answers = " ".join(learned_answers(document["messages"]))
            about = describe_text(document["id"], answers, category=document.get("task"))
            texts.append(Text(example, about))
        return texts

    # ---- questions and instructions to answer
    def add_questions(self, cut: bool, most: int | None = None) -> None:
        """Every question set, or at most `most` questions of each, drawn at random and spread over sources.
        """
        for name, questions in self.dataset.questions().items():
            encoded, counts = encode_questions(self.tokenizer, questions, self.window, cut)
            if encoded:
                drawn = np.random.default_rng(0).permutation(len(encoded))
                sources = [str(encoded[i].question.get("source", i)) for i in drawn]
                chosen = sorted(drawn[spread(sources, most or len(encoded))])
                counts["not drawn"] = len(encoded) - len(chosen)
                self.questions[name] = [encoded[i] for i in chosen]
            self.counts[name] = counts

    def add_instructions(self, most: int, max_new_tokens: int, cut: bool) -> None:
        """At most `most` held-out instructions: prompt, tokens, reference, kinds.

        `max_new_tokens`: the room that the answer needs in the window. `cut`: cut long prompts at their left.
        """
        path, room, self.most = self.dataset.folder / "pairs_test.jsonl", self.window - max_new_tokens, most
        pairs = read_jsonl(path, required=("messages",)) if path.is_file() else []
        chosen = [pairs[i] for i in sorted(spread([str(pair.get("task")) for pair in pairs], most))]
        counts = Counter({"not asked": len(pairs) - len(chosen)})
        for pair in chosen:
            turns = check_messages(pair["messages"], str(path))
            while turns and not is_learned(turns[-1]):  # of a wrong answer the right one may stand before it
                turns = turns[:-2]
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                continue
            *before, last = turns
            prompt = encode_prompt(before, self.tokenizer, self.form, pair.get("tools"))
            if len(prompt.tokens) > room:
                if not cut or room < 1:
                    counts["left out"] += 1
                    continue
                counts["cut"] += 1
            instruction = {"task": "none"} | {kind: str(pair[kind]) for kind in KINDS if pair.get(kind)}
            self.instructions.append(instruction | {
                "prompt": prompt.text, "tokens": prompt.tokens[-room:],
                "reference": last["content"] or said(last)})
        self.counts["held-out instructions"] = counts

    def notes(self) -> list[str]:
        """A clause on each count that is not zero, for the page of results."""
        meanings = {
            "left out": f"are longer than {self.window} tokens and left out",
            "cut": "were cut at the left",
            "merged": "choices merge with the last token of their prompt",
            "not scored": "are not scored (--documents, evenly spaced)",
            "not drawn": "are not asked (--questions, drawn at random, spread over their sources)",
            "not asked": f"are not asked (--answers {self.most}, as many of each task as may be)",
        }
        return [f"{counts[key]} of {name} {meaning}" for name, counts in self.counts.items()
                for key, meaning in meanings.items() if counts.get(key)]


def describe_text(name: str, text: str, month: str = "", category: str | None = None) -> dict:
    """The part of a text's row that no model decides; `text`: what is predicted."""
    return {"id": name, "month": month, "category": category or "", "bytes": len(text.encode()),
            "words": len(text.split())}


def spread(kinds: Sequence[Hashable], most: int) -> list[int]:
    """The numbers of at most so many items, as many of each kind as may be, the first of a kind first."""
    seen, rounds = Counter(), []  # in each round one item of every kind that has one left
    for number, kind in enumerate(kinds):
        rounds.append((seen[kind], number))
        seen[kind] += 1
    return [number for _, number in sorted(rounds)[:most]]
