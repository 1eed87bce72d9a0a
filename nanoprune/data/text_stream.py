"""Text that is written one token at a time."""

from collections.abc import Sequence

from tokenizers import Tokenizer

INCOMPLETE = "\ufffd"  # what decoders make of the first bytes of a character


class TextStream:
    """The text behind a prompt, in whole characters, up to a stop string.

    Some decoders take a space away from the beginning. A token's text is therefore what it adds to the text
    of the tokens before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()):
        self.tokenizer, self.tokens, self.stop = tokenizer, list(prompt), stop
        self.before, self.end = 0, len(prompt)  # of the tokens whose text came last
        self.text, self.held, self.ended = "", "", False

    def add(self, token: int | None) -> str:
        """Add a token, or None at the end. Return the text that is certain now."""
        self.ended = token is None
        self.tokens += [] if self.ended else [token]
        known = self.tokenizer.decode(self.tokens[self.before : self.end])
        text = self.tokenizer.decode(self.tokens[self.before :])
        if len(text) > len(known) and (self.ended or not text.endswith(INCOMPLETE)):
            self.held += text[len(known) :]
            self.before, self.end = self.end, len(self.tokens)
        piece = min((self.held.partition(stop)[0] for stop in self.stop), key=len, default=self.held)
        self.ended = self.ended or piece != self.held
        if not self.ended:  # what may be the beginning of a stop string waits
            begun = [n for stop in self.stop for n in range(len(stop)) if piece.endswith(stop[:n])]
            piece = piece[: len(piece) - max(begun, default=0)]
        self.held = self.held[len(piece) :]
        self.text += piece
        return piece
