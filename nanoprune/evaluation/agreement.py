"""Agreement of models token by token: the same likeliest token, and the divergence of their predictions."""

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoprune.config import IGNORE
from nanoprune.data.token_file import Example
from nanoprune.device import matmul_dtype, to_device
from nanoprune.evaluation.perplexity import Protocol, Text
from nanoprune.nn.losses import HEAD_CHUNK
from nanoprune.progress import progress
from nanoprune.statistics import evenly_spaced

if TYPE_CHECKING:
    from model import Decoder

TOKENS, DOCUMENTS = 4096, 32  # that are compared at most


class FinalStates(NamedTuple):
    """All that a model's predictions on some tokens need."""

    hidden: Tensor  # (N, D) fp32, on the CPU: after the final norm
    documents: np.ndarray  # (N,): numbers of `ids`
    ids: list[str]  # of the documents
    head: "Decoder"  # on the CPU, without blocks


def beginnings(texts: list[Text]) -> list[Text]:
    """The first TOKENS / DOCUMENTS scored tokens, or more of fewer texts, of texts that are evenly spaced."""
    chosen, pieces = evenly_spaced(texts, DOCUMENTS), []
    most = TOKENS // len(chosen) - 1  # a prefix token scores one more
    for example, about in chosen:
        end = np.searchsorted(example.learned[1:].cumsum(), most) + 2
        pieces.append(Text(Example(example.tokens[:end], example.learned[:end]), about))
    return pieces


@torch.no_grad()
def final_states(model: "Decoder", texts: list[Text], protocol: Protocol) -> FinalStates:
    """Hidden states on the beginnings of texts. The model loses its blocks: only its head is kept."""
    texts, hidden, documents = beginnings(texts), [], []
    for batch in protocol.windows([text.example for text in texts]):
        scored = batch.targets != IGNORE
        x = model.hidden_states(to_device(batch.ids, model.device))
        hidden.append(x[to_device(scored, model.device)].float().cpu())
        documents.append(batch.documents.repeat(scored.sum(1)))
    dtype = matmul_dtype(model.model.norm.weight)
    model.model.layers = nn.ModuleList()
    head = model.requires_grad_(False).to("cpu", dtype)
    return FinalStates(torch.cat(hidden), np.concatenate(documents), [t.about["id"] for t in texts], head)


@torch.no_grad()
def compare_predictions(models: dict[str, FinalStates], device: torch.device) -> list[dict]:
    """A row per two models and document: tokens, of how many both hold the same likeliest, and the sum of
    KL(p || q) = sum of p (log p - log q) over the vocabulary, in nats (Kullback and Leibler, 1951).

    The models share a tokenizer. The logits are fp32 products of the hidden states and the head's weight, in
    chunks.
    """
    pairs = list(combinations(models, 2))
    if not pairs:
        return []
    first = next(iter(models.values()))
    heads = {name: states.head.to(device) for name, states in models.items()}
    vocabulary = min(head.config.vocab_size for head in heads.values())  # some are padded
    size = max(1, HEAD_CHUNK // vocabulary // len(models))
    same, kl = {pair: [] for pair in pairs}, {pair: [] for pair in pairs}
    for start in progress(range(0, len(first.hidden), size), "agreement"):
        log_p = {}
        for name, states in models.items():
            logits = heads[name].logits(states.hidden[start : start + size].to(device))
            log_p[name] = logits[:, :vocabulary].log_softmax(-1)
        for pair in pairs:
            p, q = map(log_p.get, pair)
            divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(1)
            agreed = (p.argmax(1) == q.argmax(1)) & divergence.isfinite()
            same[pair] += agreed.tolist()
            kl[pair] += divergence.tolist()
    rows = []
    for a, b in pairs:
        columns = (np.bincount(first.documents, values, len(first.ids)).tolist()
                   for values in (None, same[a, b], kl[a, b]))
        rows += [{"first": a, "second": b, "id": name, "tokens": tokens, "same": int(agreed), "kl": total}
                 for name, tokens, agreed, total in zip(first.ids, *columns, strict=True)]
    return rows
