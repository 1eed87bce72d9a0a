"""The writing half of a dataset folder: texts to tokens, tokens to files. The format stands in `dataset`."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TextIO

from tokenizers import Encoding

from nanoprune.data.chat_format import ChatForm
from nanoprune.data.conversations import Conversation, encode_pairs, with_task
from nanoprune.data.corpus import Corpus, ahead, first_and_last_day
from nanoprune.data.token_file import write_documents, write_examples
from nanoprune.data.tokenizer import end_token, first_token, load_tokenizer, vocabulary
from nanoprune.io.files import make_folder
from nanoprune.io.jsonl import json_line, write_jsonl
from nanoprune.progress import progress

BATCH = 1024  # documents tokenized at a time


class DatasetWriter:
    """A folder with a tokenizer that becomes a dataset; `form` is the chat form of its conversations, or
    None.
    """

    def __init__(self, folder: Path, form: ChatForm | None, task_prefix: bool, max_pair_tokens: int | None):
        self.folder, self.form = folder, form
        self.task_prefix, self.max_pair_tokens = task_prefix, max_pair_tokens or sys.maxsize
        self.tokenizer = load_tokenizer(folder)
        self.vocab_size = vocabulary(self.tokenizer)
        self.end = end_token(self.tokenizer, folder)
        self.begins = bool(self.tokenizer.encode("").ids)  # it adds a token at the beginning of each text
        self.too_long = Counter()  # conversations left out, by reason

    # ---------------------------------------------------------------- documents
    def write_split(self, name: str, corpus: Corpus) -> dict:
        """Write one split's JSONL and token file; return its entry of meta.json.

        `bytes` counts the text that a document's predictions stand for. This is all of it, less its first
        token if the tokenizer adds no begin token, as nothing predicts that one.
        """
        documents = corpus.splits[name]

        def encoded_documents(lines: TextIO) -> Iterator[tuple[list[int], int]]:
            for document, encoding in self._encode_ahead(name, corpus):
                lines.write(json_line(document))
                text, tokens = document["text"], encoding.ids
                unpredicted = "" if self.begins else first_token(self.tokenizer, tokens, text)
                nbytes = len(text.encode()) - len(unpredicted.encode())
                yield [*tokens, self.end], nbytes

        with open(self.folder / f"{name}.jsonl", "w", encoding="utf-8") as lines:
            path = self.folder / f"{name}.safetensors"
            totals = write_documents(path, encoded_documents(lines), len(documents), self.vocab_size)
        first, last = first_and_last_day(documents)
        return {"documents": len(documents)} | totals | {"first": first, "last": last}

    def _encode_ahead(self, name: str, corpus: Corpus) -> Iterator[tuple[dict, Encoding]]:
        """The documents and their encodings; the next batch is tokenized while one is written."""
        documents = corpus.splits[name]
        starts = progress(range(0, len(documents), BATCH), f"tokenizing {name}")
        batches = ([corpus[document] for document in documents[start : start + BATCH]] for start in starts)

        def encoded(batch: list[dict]) -> Iterable[tuple[dict, Encoding]]:
            texts = [document["text"] for document in batch]
            return zip(batch, self.tokenizer.encode_batch_fast(texts), strict=True)

        with ThreadPoolExecutor(1) as pool:
            yield from chain.from_iterable(ahead(pool, encoded, batches, most=2))

    def write_replay(self, texts: list[str]) -> int:
        """Write general text to mix in; return the number of its tokens."""
        documents = (([*encoding.ids, self.end], 0) for encoding in self.tokenizer.encode_batch(texts))
        path = self.folder / "replay.safetensors"
        return write_documents(path, documents, len(texts), self.vocab_size)["tokens"]

    # ---------------------------------------------------------------- conversations and questions
    def encode(self, pairs: list[dict]) -> list[Conversation]:
        """The conversations that are short enough; the others are counted in `too_long`, and none is ever
        cut.
        """
        if self.task_prefix:
            pairs = [with_task(pair) for pair in pairs]
        conversations, longest = [], self.max_pair_tokens
        examples = encode_pairs(pairs, self.tokenizer, self.end, self.form)
        for pair, example in zip(pairs, examples, strict=True):
            learned = int(example.learned.sum())
            if len(example) <= longest:
                conversations.append(Conversation(pair, example))
            elif learned <= longest:
                self.too_long["question too long"] += 1
            else:
                self.too_long["answer alone too long"] += 1
                question = pair["messages"][-2]["content"]
                print(f"warning: the answers to “{question[:60]}” alone have {learned} tokens, more than "
                      f"--max-pair-tokens {longest}; left out")
        return conversations

    def write_conversations(
        self, name: str, conversations: list[Conversation], nbytes: list[int] | None = None
    ) -> None:
        """Write a file of conversations and their tokens; `nbytes`: the bytes of each one's answers."""
        write_jsonl(self.folder / f"{name}.jsonl", [conversation.row for conversation in conversations])
        examples = [conversation.example for conversation in conversations]
        write_examples(self.folder / f"{name}.safetensors", examples, self.vocab_size, nbytes)

    def write_questions(self, question_sets: dict[str, list[dict]]) -> None:
        for name, questions in question_sets.items():
            write_jsonl(make_folder(self.folder / "qa") / f"{name}.jsonl", questions)
