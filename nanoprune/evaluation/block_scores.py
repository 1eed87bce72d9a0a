"""How much a block matters, or its attention or MLP alone: the loss without it, and the scores that others estimate it by.

A part is (block, ""), (block, "attn") or (block, "mlp"); a removal is some of them. Every measure takes `windows` as
`dataset.Split.windows` yields them: (ids, targets, document numbers). Under torchrun each rank takes its share of them,
and all get the same numbers as one process alone.
"""

import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from model import Decoder
from nanoprune.config import IGNORE
from nanoprune.device import synchronize, to_device
from nanoprune.distributed import ALONE, Ranks
from nanoprune.nn.losses import head_loss
from nanoprune.statistics import average_ranks, bootstrap, spearman, spearman_interval

ROOM = 2**28  # bytes of hidden states that are held at once
TOGETHER = 1024  # tokens that a block takes in one go, of several removals where the windows are fewer
ESTIMATES = ("influence", "angular", "taylor", "magnitude")  # of the loss without a block; the lowest is missed least
SCORE_COLUMNS = ("block", "original", "nll", "nll_low", "nll_high", "difference", "difference_low", "difference_high",
                 "perplexity", "rank", *(name + end for name in ESTIMATES for end in ("", "_rank")),
                 "parameters", "time_saved", "tokens", "documents")
SOURCES = {
    "nll": "mean over tokens, each document in windows of its own, no prefix token; 95 % interval and paired difference from "
           "unpruned by bootstrap over documents, 10,000 resamples, percentile",
    "influence": "1 - cosine of a block's input and output, mean over positions (ShortGPT, arXiv:2403.03853)",
    "angular": "angle between the input and the output `span` blocks on, over pi, mean over the windows' last positions "
               "(Gromov et al., arXiv:2403.17887); the last block's output is taken before the final norm",
    "taylor": "sum of |weight x gradient of the mean loss| over the part's weights (shortened-llm, arXiv:2402.02834)",
    "magnitude": "sum of |weight| over the part's weights (arXiv:2402.02834)",
    "rank": "among the rows of one kind (block, attn, mlp), 1 is missed least",
    "time_saved": "share of a forward pass with its loss, measured while scoring",
}
Part = tuple[int, str]


def part_name(part: Part) -> str:
    return f"{part[0]}.{part[1]}".rstrip(".")


def window_tokens(model: Decoder, streams: int, most: int = 8192) -> int:
    """Tokens of a batch of windows with so many hidden states each that they fill ROOM, at least one window's."""
    return max(1, min(most, ROOM // (streams * model.config.hidden_size * 4)))


@torch.no_grad()
def losses_without(
    model: Decoder, windows: Iterable, documents: int, removals: list[tuple[Part, ...]], ranks: Ranks = ALONE
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(summed nll in nats (removals, documents), tokens (documents,), seconds in blocks and in the head).

    What several removals have in common at the model's start is computed once: every block takes in the hidden states of
    all removals that differ before it, and adds one of its own. Without each of L blocks that is half of L forward
    passes. Plain form: `document_nll` of the model less each removal, equal bit by bit for windows of TOGETHER tokens or more.
    """
    removals, windows, device = [tuple(sorted(r)) for r in removals], list(windows), model.head_weight.device
    trunk, config = model.model, model.config
    found = [np.zeros((len(removals) + 1, len(rows))) for _, _, rows in windows]  # the last line: tokens
    seconds = {"blocks": 0.0, "head": 0.0}
    for number in ranks.turns(range(len(windows)), "without"):
        ids, targets, _ = windows[number]
        began = time.perf_counter()
        x, rope, masks = trunk.begin(config, to_device(ids, device), trunk.embed_tokens)
        streams = {(): x}  # what has been removed so far: hidden states
        for i, layer in enumerate(trunk.layers):
            given = rope, masks[config.layer_types[i]], None, i
            after, whole = {}, []
            for removed in dict.fromkeys(tuple(p for p in removal if p[0] <= i) for removal in removals):
                before = tuple(p for p in removed if p[0] < i)
                if removed == before:
                    whole.append(removed)
                else:
                    (_, part), = removed[len(before):]
                    after[removed] = layer(streams[before], *given, skip=part) if part else streams[before]
            few = max(1, TOGETHER // ids.numel())
            for some in (whole[k : k + few] for k in range(0, len(whole), few)):
                x = torch.cat([streams[removed] for removed in some]) if few > 1 else streams[some[0]]
                after |= zip(some, layer(x, *given).split(len(ids)), strict=True)
            streams = after
        synchronize(device)
        seconds["blocks"] += time.perf_counter() - began
        began = time.perf_counter()
        for k, removal in enumerate(removals):
            losses = head_loss(trunk.norm(streams[removal]), model.head_weight, targets, "none")
            found[number][k] = losses.cpu().double().sum(1).numpy()
        seconds["head"] += time.perf_counter() - began
        found[number][-1] = (targets != IGNORE).sum(1).numpy()
    sums = np.zeros((len(removals) + 1, documents))
    everywhere = ranks.sum(np.concatenate(found, axis=1).ravel().tolist()) if found else []
    rows = np.concatenate([rows for _, _, rows in windows]) if found else []
    for line, values in zip(sums, np.array(everywhere).reshape(len(removals) + 1, -1), strict=True):
        np.add.at(line, rows, values)
    return sums[:-1], sums[-1].astype(np.int64), seconds


@torch.no_grad()
def similarities(
    model: Decoder, windows: Iterable, spans: dict[object, tuple[Part, Part]], ranks: Ranks = ALONE
) -> tuple[dict[object, tuple[float, float]], dict[Part, float]]:
    """Per span (first and last part): (influence, angular distance) of what goes in and what comes out; seconds by part.

    Block influence is 1 - cos(in, out), a mean over all positions (ShortGPT, arXiv:2403.03853); angular distance is
    arccos(cos(in, out)) / pi, a mean over the windows' last positions (Gromov et al., arXiv:2403.17887). What comes out of
    the last block is taken before the final norm.
    """
    trunk, config, device = model.model, model.config, model.head_weight.device
    sums, counts, seconds, windows = np.zeros((len(spans), 2)), np.zeros(2), {}, list(windows)
    for number in range(ranks.rank, len(windows), ranks.size):
        ids, targets, _ = windows[number]
        x, rope, masks = trunk.begin(config, to_device(ids, device), trunk.embed_tokens)
        states = [x]  # before every block, between its halves, and after the last
        for i, layer in enumerate(trunk.layers):
            given = rope, masks[config.layer_types[i]], None, i
            for half, other in (("attn", "mlp"), ("mlp", "attn")):
                synchronize(device)
                began = time.perf_counter()
                states.append(layer(states[-1], *given, skip=other))
                synchronize(device)
                for part in ((i, half), (i, "")):
                    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began
        counted = to_device(targets != IGNORE, device)
        last = counted.sum(1) - 1
        rows = torch.arange(len(last), device=device)
        for k, ((first, a), (end, b)) in enumerate(spans.values()):
            into, out = states[2 * first + (a == "mlp")], states[2 * end + 2 - (b == "attn")]
            cosine = F.cosine_similarity(into.double(), out.double(), dim=-1)
            angle = cosine[rows, last].clamp(-1, 1).arccos() / np.pi
            sums[k] += float((1 - cosine)[counted].sum()), float(angle.sum())
        counts += int(counted.sum()), len(last)
    found = ranks.sum([*sums.ravel().tolist(), *counts.tolist()])
    sums, counts = np.array(found[:-2]).reshape(-1, 2), np.array(found[-2:])
    return dict(zip(spans, map(tuple, (sums / np.maximum(counts, 1)).tolist()), strict=True)), seconds


def taylor(model: Decoder, windows: Iterable, ranks: Ranks = ALONE) -> dict[str, float]:
    """Per block's parameter by name: the sum of |weight x gradient| (shortened-llm, arXiv:2402.02834), of the mean loss.

    One backward pass over all the windows; embedding and head take no gradient.
    """
    trunk, wanted, recompute = model.model, [p.requires_grad for p in model.parameters()], model.model.recompute
    model.requires_grad_(False)
    trunk.layers.requires_grad_(True)
    trunk.recompute = "blocks"
    windows = list(windows)
    tokens = max(1, sum(int((targets != IGNORE).sum()) for _, targets, _ in windows))
    for number in ranks.turns(range(len(windows)), "gradient"):
        ids, targets, _ = windows[number]
        (model(to_device(ids, model.head_weight.device), targets, reduction="sum") / tokens).backward()
    found = {}
    for name, p in trunk.layers.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        ranks.sum_tensor(gradient)
        found[name] = float((p.detach() * gradient).abs().double().sum())
    for p, before in zip(model.parameters(), wanted, strict=True):
        p.requires_grad_(before)
        p.grad = None
    trunk.recompute = recompute
    return found


def magnitude(model: Decoder) -> dict[str, float]:
    """Per block's parameter by name: the sum of |weight| (arXiv:2402.02834)."""
    return {name: float(p.detach().abs().double().sum()) for name, p in model.model.layers.named_parameters()}


def score_blocks(
    model: Decoder, windows: list, documents: int, parts: bool = False, span: int = 1, ranks: Ranks = ALONE
) -> tuple[list[dict], dict]:
    """(a row for the unpruned model and each of its blocks, with SCORE_COLUMNS; {what: seconds or correlations}).

    `windows` yields (ids, targets, document numbers) as `dataset.Split.windows` does, of `documents` documents. With
    `parts` rows for each block's attention and MLP follow it. Angular distances are to `span` blocks on. A loss that is
    not finite ranks last. The model is left as it was.
    """
    config, layers = model.config, model.model.layers
    count = config.num_hidden_layers
    halves = [(i, half) for i in range(count) for half in ("", "attn", "mlp") if not half or (parts and not config.without[i])]
    nll, tokens, seconds = losses_without(model, windows, documents, [(), *((part,) for part in halves)], ranks)
    chosen = tokens > 0
    nll, tokens = nll[:, chosen], tokens[chosen]
    numbers = np.flatnonzero(chosen)
    low, high = bootstrap(nll, tokens, numbers)
    less, more = bootstrap(nll - nll[0], tokens, numbers)
    began = time.perf_counter()
    near = {part: (part, part) for part in halves}
    near |= {("to", i): ((i, ""), (i + span - 1, "")) for i in range(count - span + 1)}
    similar, times = similarities(model, windows, near, ranks)
    seconds["similarities"], began = time.perf_counter() - began, time.perf_counter()
    slopes, weights = taylor(model, windows, ranks), magnitude(model)
    seconds["taylor"] = time.perf_counter() - began
    forward = sum(time for (_, half), time in times.items() if not half) + seconds["head"] / len(nll)
    rows = []
    for k, part in enumerate([None, *halves]):
        mean = float(nll[k].sum() / max(tokens.sum(), 1))
        row = dict.fromkeys(SCORE_COLUMNS, "") | {
            "block": "none", "nll": mean, "nll_low": low[k], "nll_high": high[k],
            "difference": mean - rows[0]["nll"] if rows else 0.0, "difference_low": less[k], "difference_high": more[k],
            "perplexity": float(np.exp(mean)), "parameters": 0, "time_saved": 0.0,
            "tokens": int(tokens.sum()), "documents": len(tokens)}
        if part is not None:
            i, half = part
            inside = [name for name, _ in layers[i].named_parameters() if in_half(name, half)]
            angular = similar.get(("to", i)) if not half else similar[part]
            row |= {"block": part_name(part), "original": part_name((config.blocks[i], half)), "influence": similar[part][0],
                    "angular": angular[1] if angular else "",
                    "taylor": sum(slopes[f"{i}.{name}"] for name in inside),
                    "magnitude": sum(weights[f"{i}.{name}"] for name in inside),
                    "parameters": sum(layers[i].get_parameter(name).numel() for name in inside),
                    "time_saved": times.get(part, 0.0) / max(forward, 1e-9)}
        rows.append(row)
    correlations = {}
    for half in ("", "attn", "mlp") if parts else ("",):
        kind = [row for row in rows[1:] if row["block"].partition(".")[2] == half]
        for name in ("nll", *ESTIMATES):
            known = [row for row in kind if row[name] != ""]
            for row, rank in zip(known, average_ranks([row[name] for row in known]), strict=True):
                row["rank" if name == "nll" else f"{name}_rank"] = f"{rank:g}"
            losses, values = [row["nll"] for row in known], [row[name] for row in known]
            if name != "nll":
                correlations[f"{name} {half}".strip()] = {
                    "spearman": float(spearman(losses, values)), "interval": spearman_interval(losses, values),
                    "of": len(known)}
    return rows, {"seconds": seconds, "correlations": correlations}


def in_half(name: str, half: str) -> bool:
    """Whether a block's parameter goes with its attention ("attn"), its MLP ("mlp") or the whole ("")."""
    return not half or (name.startswith(("self_attn", "input_layernorm")) == (half == "attn"))
