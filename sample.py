"""Text from one or several checkpoints, shown side by side as it is written.

    python sample.py runs/full runs/reduced --prompt "Munich. The new BMW iX3"
    python sample.py runs/full runs/reduced --prompts qa/continue.txt --logprobs --out texts.jsonl
    python sample.py runs/reduced --chat --system "Answer in one sentence."

A chat without prompts reads turns from the terminal: /reset forgets the earlier ones, Ctrl-C ends the answer
that is being written, Ctrl-D the chat. A text depends on its prompt and --seed, and in float32 on no other
text. Log-probabilities are the model's, in nats, before temperature and filters.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from typing import get_args

import torch
from torch import Tensor

from model import Decoder
from nanoprune import command_line
from nanoprune.columns import print_growing
from nanoprune.command_line import option, parse_options
from nanoprune.config import Dtype, read_fields
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import encode_prompt
from nanoprune.data.prompts import read_prompts
from nanoprune.data.text_stream import TextStream
from nanoprune.data.tokenizer import END_TOKENS, check_vocabulary, end_token, load_tokenizer, tokenizer_hash
from nanoprune.device import pick_device, pick_dtype
from nanoprune.io.folders import claim
from nanoprune.io.hub import locate
from nanoprune.io.jsonl import write_jsonl
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.model_config import ModelConfig
from nanoprune.nn.packed import pack
from nanoprune.nn.peft import config_folder
from nanoprune.nn.sampling import Sampling, stream

TURN_END_TOKENS = ("<|im_end|>", "<|eot_id|>")  # of a chat's turn, for Qwen and Llama 3
BATCH = 8  # prompts that are continued together


@dataclass(frozen=True)
class Options:
    """The command line; the bounds of what decides how a token is drawn stand in `Sampling`."""

    models: list[str] = option("hub names, folders or runs", name="models", nargs="+")
    prompt: list[str] | None = option("repeat it for several prompts", type=str, action="append")
    prompts: str | None = option("a text file with a prompt a line", metavar="FILE")
    chat: bool = option("a prompt is the user's turn, in the model's chat template", False)
    system: str | None = option("the system's turn of a chat", metavar="TEXT")
    tokens: int = option("at most this many new tokens", 100, least=1)
    temperature: float = option("0 is greedy", 0.8)
    top_k: int = option("draw from the k likeliest tokens (0: all)", 0)
    top_p: float = option("draw from the fewest tokens that hold this probability", 0.95)
    min_p: float = option("draw from tokens that are this share as likely as the likeliest, or more", 0.0)
    repetition_penalty: float = option("above 1: what the text has is less likely", 1.0)
    stop: list[str] | None = option("end a text before this; may be repeated", type=str, action="append",
                                    metavar="TEXT")
    seed: int = option("of the random draws", 0)
    logprobs: bool = option("show and keep the log-probability of each token", False)
    device: str = option("auto, cpu, cuda, cuda:N or mps", "auto")
    dtype: str = option("type of weights and products (auto: bfloat16 where the device has units for it)",
                        "auto", choices=get_args(Dtype))
    out: str | None = option("also write the texts to this JSONL file")


class Checkpoint:
    """A model that writes, its side of a conversation, and all its texts."""

    def __init__(self, name: str, options: Options, sampling: Sampling):
        """Read all but the weights, so that mistakes show at once."""
        self.name, self.options, self.sampling = name, options, sampling
        self.device, self.folder = pick_device(options.device), locate(name)
        self.dtype = getattr(torch, pick_dtype(options.dtype, self.device))
        self.home = config_folder(self.folder)
        config, self.tokenizer = ModelConfig.read(self.home), load_tokenizer(self.home)
        self.window = config.max_position_embeddings
        check_vocabulary(self.tokenizer, name, config.vocab_size)
        self.form = chat_form(self.home, self.tokenizer) if options.chat else None
        self.turns, self.texts, self.failure = [], [], None

    @cached_property
    def model(self) -> Decoder:
        model = Decoder.from_pretrained(self.folder, device=self.device, dtype=self.dtype).eval()
        pack(model)
        return model

    @cached_property
    def cache(self) -> KeyValueCache:
        return KeyValueCache(self.model, 1, 0)

    @property
    def stop_tokens(self) -> set[int]:
        names = [*END_TOKENS, *TURN_END_TOKENS, self.form and self.form.end_of_turn]
        return self.model.stop_tokens | {self.tokenizer.token_to_id(name) for name in names if name} - {None}

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, in a chat behind the earlier turns that the window has room for."""
        turns, ids = self.turns, self._encode(prompt, self.turns)
        while len(ids) + self.options.tokens > self.window:
            if not turns:
                raise ValueError(f"{self.name} was made for {self.window} tokens: a prompt of {len(ids)} and "
                                 f"--tokens {self.options.tokens} do not fit; change one of them")
            turns = turns[(len(turns) + 2) // 4 * 2 :]  # less half of the questions and their answers
            ids = self._encode(prompt, turns)
        if len(turns) < len(self.turns):
            print(f"note: the conversation has outgrown the {self.window} tokens of {self.name}, which goes "
                  f"on from the last {len(turns) // 2} question(s)")
            self.turns = turns
        return ids

    def _encode(self, prompt: str, turns: list[tuple[str, str]]) -> list[int]:
        if not self.form:
            return self.tokenizer.encode(prompt).ids or [end_token(self.tokenizer, self.home)]
        if not prompt.strip():
            raise ValueError("--chat has nothing to answer: the prompt is empty; give it some text")
        turns = [("system", self.options.system), *turns, ("user", prompt)]
        messages = [{"role": role, "content": content} for role, content in turns if content]
        return encode_prompt(messages, self.tokenizer, self.form).tokens

    def write(self, texts: list["Text"]) -> Iterator[None]:
        """Write texts, by a token each from step to step; `failure` is why they ended early."""
        self.texts += texts
        self.failure = None
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            try:
                for tokens, logits in stream(
                        self.model, [text.tokens for text in batch], self.options.tokens, self.sampling,
                        self.stop_tokens, self.cache if len(texts) == 1 else None):
                    for text, token, row in zip(batch, tokens, logits, strict=True):
                        text.write(token, row)
                    yield
                    if all(text.ended for text in batch):
                        break
            except ValueError as error:
                self.failure, batch = error, texts[start:]  # the later ones have no other end
                return
            finally:
                for text in batch:
                    text.write(None)
                    if answer := text.text.strip():  # to go on from in a chat
                        self.turns += [("user", text.prompt), ("assistant", answer)]


class Text(TextStream):
    """A checkpoint's text behind a prompt, to be shown and kept."""

    def __init__(self, checkpoint: Checkpoint, prompt: str):
        super().__init__(checkpoint.tokenizer, checkpoint.encode(prompt), checkpoint.options.stop or ())
        self.prompt, self.unshown = prompt, f"\n[{checkpoint.name}]\n"
        self.logprobs = [] if checkpoint.options.logprobs else None

    def write(self, token: int | None, logits: Tensor | None = None) -> None:
        """Add a token, drawn from logits (V,); None ends the text."""
        if self.ended:
            return
        self.unshown += self.add(token)
        if token is not None and self.logprobs is not None:
            row = {"token": self.tokenizer.decode([token], skip_special_tokens=False), "id": token,
                   "logprob": float(logits.log_softmax(-1)[token])}
            self.logprobs.append(row)
            self.unshown += f"[{row['logprob']:.2f}]"
        if self.ended:
            self.unshown += "\n"


# ---------------------------------------------------------------- on the terminal
def write_all(checkpoints: list[Checkpoint], prompts: list[str], title: str = "\n> {}") -> None:
    """Write every checkpoint's text behind every prompt, and show them prompt by prompt as they grow."""
    width = shutil.get_terminal_size().columns
    texts = {checkpoint: [Text(checkpoint, prompt) for prompt in prompts] for checkpoint in checkpoints}
    shown = chain.from_iterable(print_growing(title.format(group[0].prompt), group, width)
                                for group in zip(*texts.values(), strict=True))
    writers = [checkpoint.write(own) for checkpoint, own in texts.items()]
    try:
        next(shown)  # titles and names, while weights are read
        for _ in zip_longest(*writers):  # a token of each in turn
            next(shown, None)
    finally:
        for writer in writers:
            writer.close()
        next(shown, None)
    for checkpoint in checkpoints:  # the others have written all the same
        if checkpoint.failure:
            raise ValueError(f"{checkpoint.name}: {checkpoint.failure}")


def converse(checkpoints: list[Checkpoint]) -> None:
    """Answer the turns that a user types, until the input ends."""
    print("/reset forgets what was said; Ctrl-C ends an answer, Ctrl-D the chat")
    while True:
        try:
            turn = input("\n> ").strip()
            if turn == "/reset":
                for checkpoint in checkpoints:
                    checkpoint.turns.clear()
            elif turn:
                write_all(checkpoints, [turn], title="")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends the chat)")
        except ValueError as error:  # a turn that does not fit is not the end
            print(error)


def main() -> None:
    options = parse_options(Options, __doc__)
    sampling = read_fields(Sampling, vars(options), "options")
    prompts = (options.prompt or []) + (read_prompts(options.prompts) if options.prompts else [])
    if not (prompts or options.chat) or (options.system and not options.chat):
        raise ValueError("give --prompt, --prompts or --chat; --system goes with --chat alone")
    if "" in (options.stop or ()):
        raise ValueError("--stop must be a text of at least one character")
    if options.out:
        claim("text", options.out, inputs=(options.prompts,))
    checkpoints = [Checkpoint(name, options, sampling) for name in options.models]
    if len({tokenizer_hash(checkpoint.home) for checkpoint in checkpoints}) > 1:
        print("note: the tokenizers differ: compare texts, not tokens or log-probabilities")
    if prompts:
        write_all(checkpoints, prompts)
    else:
        converse(checkpoints)
    if options.out:
        write_jsonl(options.out, [
            {"model": checkpoint.name, "prompt": text.prompt, "text": text.text}
            | ({"logprobs": text.logprobs} if options.logprobs else {})
            for checkpoint in checkpoints for text in checkpoint.texts])
        print(f"\nwrote {options.out}")


if __name__ == "__main__":
    command_line.run(main)
