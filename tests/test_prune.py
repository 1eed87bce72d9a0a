"""prune.py: the model without a block is what transformers computes without it; the choice of blocks is the
best one.
"""

import json
import math
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small import ROOT, SHAPE, random_base, read_rows, run_main

from model import Decoder
from nanoprune import statistics
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example, TokenFile, write_documents, write_examples
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.evaluation.block_scores import SCORES, estimates, score_blocks
from nanoprune.evaluation.removal_losses import Calibration, losses_without
from nanoprune.io.files import file_hash
from nanoprune.io.hub import copy_tokenizer
from nanoprune.io.jsonl import read_jsonl
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.model_config import ModelConfig, Part
from nanoprune.statistics import Ratio
from prune import choose_blocks, choose_documents, drop_blocks, ties, verdict
from train import train

TWO_WINDOWS = dict(use_sliding_window=True, sliding_window=4, max_window_layers=2)
FAMILIES = {
    "qwen3": {},
    "qwen2": {"model_type": "qwen2"},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "sliding": TWO_WINDOWS,
}


def tiny(**changes) -> Decoder:
    torch.manual_seed(1)
    shape = SHAPE | {"vocab_size": 50, "initializer_range": 0.3, "num_hidden_layers": 4}
    return Decoder(ModelConfig.from_dict(shape | changes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropped", [[0], [1], [3], [2, 0], [0, 1, 2]])
def test_transformers_loads_what_is_left(family, dropped, tmp_path):
    """Equal logits to the unpruned weights run without those blocks, and generation with the cache."""
    model = tiny(**FAMILIES[family])
    layers, types = list(model.model.layers), model.config.layer_types
    drop_blocks(model, dropped)
    kept = [i for i in range(4) if i not in dropped]
    assert [id(layer) for layer in model.model.layers] == [id(layers[i]) for i in kept]
    assert model.config.blocks == tuple(kept) and model.config.layer_types == tuple(types[i] for i in kept)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    cached, plain = (theirs.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use, eos_token_id=None)
                     for use in (True, False))
    assert torch.equal(cached, plain)
    again = Decoder.from_pretrained(tmp_path)
    assert again.config.blocks == tuple(kept)
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))


def test_history_survives_a_second_drop(tmp_path):
    model = tiny()
    drop_blocks(model, [1])
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path)
    drop_blocks(again, [1])  # by present index: the original block 2
    assert again.config.blocks == (0, 3)


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([4], "cannot drop block 4: this model has 4 blocks, 0 to 3"),
        ([-1], "cannot drop block -1"),
        ([True], "cannot drop block True"),
        ([1.0], "cannot drop block 1.0"),
        ([2, 2], "block 2 is named more than once"),
        (["2.mlp", "2.mlp"], "named more than once .2.mlp, 2.mlp.; name each"),
        (["2.head"], "cannot drop block 2.head"),
        (["1.attn", "1.mlp"], "named more than once .1.attn, 1.mlp.; .* as 1 where attention and MLP go"),
        (["9.attn"], "cannot drop block 9"),
        ([0, 1, 2, 3], "cannot drop all 4 blocks"),
    ],
)
def test_wrong_indices(blocks, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        drop_blocks(model, blocks)
    assert model.config.num_hidden_layers == len(model.model.layers) == 4


PARTS = [("attn", "self_attn.o_proj"), ("mlp", "mlp.down_proj")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("half, last", PARTS)
def test_half_a_block_less(family, half, last, tmp_path):
    """Equal to the same weights with zeros in what the half adds last; saved and loaded here, refused by
    transformers.
    """
    model, whole = tiny(**FAMILIES[family]), tiny(**FAMILIES[family])
    drop_blocks(model, [f"1.{half}", 3])
    drop_blocks(whole, [3])
    for name, p in whole.model.layers[1].named_parameters():
        if name.startswith(last):
            torch.nn.init.zeros_(p)
    ids = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(ids), whole(ids)) and torch.equal(again(ids), model(ids))
    assert again.config.without == ("", half, "") and again.config.blocks == (0, 1, 2)
    with pytest.raises(ValueError, match="nanoprune-"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"block 1 has lost its {half} already"):
        drop_blocks(again, [f"1.{half}"])
    with pytest.raises(ValueError, match="drop the whole block, 1"):
        drop_blocks(again, ["1.mlp" if half == "attn" else "1.attn"])


def five_blocks(world) -> tuple[Decoder, Calibration]:
    torch.manual_seed(0)
    model = tiny(vocab_size=280, num_hidden_layers=5).eval()
    return model, Calibration.of_split(model, Dataset(world.data).split("val"), 32)


def test_greedy_choice_against_every_pair(world):
    """The first block is the best one; the second the best beside it; no pair with the first is better, and
    the best of all pairs is as good or better.
    """
    model, calibration = five_blocks(world)
    pairs = list(combinations(range(5), 2))
    losses = losses_without(model, [(Part(a), Part(b)) for a, b in pairs], calibration)
    exhaustive = dict(zip(pairs, losses.nll.sum(1) / losses.tokens.sum(), strict=True))
    singles = losses_without(model, [(Part(i),) for i in range(5)], calibration).nll.sum(1)
    chosen, decisions = choose_blocks(model, calibration, 2)
    first = int(singles.argmin())
    assert decisions[0]["blocks"] == [first]
    best_beside = min((pair for pair in pairs if first in pair), key=exhaustive.get)
    assert tuple(chosen) == best_beside and decisions[1]["loss"] == pytest.approx(
        exhaustive[best_beside], rel=1e-6
    )
    assert min(exhaustive.values()) <= decisions[1]["loss"] + 1e-9
    run, line = choose_blocks(model, calibration, 2, contiguous=True)
    assert tuple(run) == min(((i, i + 1) for i in range(4)), key=exhaustive.get) and len(line) == 1
    spared, _ = choose_blocks(model, calibration, 2, protect=[first])
    assert first not in spared


@pytest.mark.parametrize("method", [name for name in SCORES if name != "loss"])
def test_choosing_by_other_scores(world, method):
    model, calibration = five_blocks(world)
    by_block = {row["block"]: row for row in score_blocks(model, calibration).rows}
    (one,), _ = choose_blocks(model, calibration, 1, method)
    free, decisions = choose_blocks(model, calibration, 2, method)
    run, _ = choose_blocks(model, calibration, 2, method, contiguous=True)
    assert run[1] == run[0] + 1 and len(set(free)) == 2 and model.config.num_hidden_layers == 5
    if method in ("last", "random"):
        assert free == ([3, 4] if method == "last" else choose_blocks(model, Calibration(), 2, method)[0])
        drawn = {tuple(choose_blocks(model, Calibration(seed=seed), 2, method)[0]) for seed in range(9)}
        assert (drawn == {tuple(free)}) == (method == "last")
    else:
        assert by_block[str(one)][f"{method}_rank"] == "1" and decisions[0]["blocks"] == [one]
        less, _ = five_blocks(world)
        drop_blocks(less, [one])  # scored anew without it
        again = {row["original"]: row for row in score_blocks(less, calibration).rows}
        assert again[str(decisions[1]["blocks"][0])][f"{method}_rank"] == "1"


def test_some_tokens_are_the_beginnings_of_many_documents_evenly_spaced(tmp_path):
    lengths = [20 + 11 * (i % 10) for i in range(200)]
    write_documents(tmp_path / "val.safetensors", ((range(n), n) for n in lengths), len(lengths), 300)
    split = TokenFile(tmp_path / "val.safetensors")
    assert choose_documents(split, 0) is split
    numbers = np.linspace(0, 199, 64).round().astype(int)
    chosen = choose_documents(split, 2500)  # enough for 64 documents of more than 32 tokens
    length = max(map(len, chosen))
    assert len(chosen) == 64 and 2500 <= sum(map(len, chosen)) < 2500 + 64 and length > 32
    for document, number in zip(chosen, numbers, strict=True):
        assert document.tokens.tolist() == list(range(min(length, lengths[number])))
    chosen = choose_documents(split, 320)
    assert len(chosen) == 10 and max(map(len, chosen)) >= 32
    assert len(choose_documents(split, 1)) == 1
    # 64 documents are too few for this many: whole ones, as many as there must be
    assert len(choose_documents(split, sum(lengths) // 2)) == 100
    whole = choose_documents(split, 10**9)
    assert [len(document) for document in whole] == lengths


def test_conversations_are_scored_whole(tmp_path):
    learned = np.arange(60) >= 50  # their beginnings hold nothing that is learned
    write_examples(tmp_path / "val.safetensors", [Example(np.arange(60), learned)] * 20, 300)
    chosen = choose_documents(TokenFile(tmp_path / "val.safetensors"), 290)
    assert [len(example) for example in chosen] == [60] * 5 and chosen[0].learned.sum() == 10


def test_the_blocks_that_are_not_told_apart_from_the_best(world):
    """Against the interval of the paired differences, block by block."""
    model, _ = five_blocks(world)
    calibration = Calibration.of_split(model, Dataset(world.data).split("train"), 32)
    scores = score_blocks(model, calibration, halves=True)
    whole = [row for row in scores.rows[1:] if "." not in row["block"]]
    best = min(whole, key=lambda row: row["nll"])["block"]
    nll = losses_without(model, [(Part(i),) for i in range(5)], calibration)
    expected = {best}
    for block in range(5):
        gains = Ratio(nll.nll[block] - nll.nll[int(best)], nll.tokens)
        if block != int(best) and not gains.interval().low > 0:
            expected.add(str(block))
    tied = ties(model, calibration, scores)
    assert tied[0] == best and set(tied) == expected and 1 <= len(expected) < 5
    for row in scores.rows:
        row["nll"] = math.nan
    assert ties(model, calibration, scores) == []


def test_the_scoring_ends_with_the_next_command(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(statistics, "LEAST", 12)
    table = tmp_path / "b.csv"
    arguments = [world.model, "--data", world.data, "--score", table, "--dtype", "float32"]
    code, out, _ = run_main(monkeypatch, capsys, "prune.py", *arguments, "--tokens", "120")
    assert code == 0 and "tokens of 3 documents, evenly spaced), no prefix token" in out
    assert "warning: there are no intervals over fewer than 12 documents" in out
    last = out.splitlines()[-1]
    best = next(row["block"] for row in read_rows(table) if row["rank"] == "1")
    drop = f"python prune.py {world.model} --evidence {table} --drop {best} --out models/base-less-{best}"
    assert last == f"block {best} costs least, told apart from all others (95 %); next: {drop}" or (
        last.startswith(f"not told apart from the best, block {best}: ")
        and last.endswith("next: the same command with --tokens 480"))
    base = "org/base"
    assert verdict(["2"], 480, [base]) == (
        "block 2 costs least, told apart from all others (95 %); "
        "next: python prune.py org/base --drop 2 --out models/base-less-2")
    assert verdict(["2", "0"], 480, [base]) == (
        "not told apart from the best, block 2: 0 (95 %); next: the same command with --tokens 480")
    assert verdict(["2", "0"], 0, [base]).endswith(
        "prepare.py with more articles, or python prune.py org/base --drop 2 --out models/base-less-2")
    assert "no loss is finite" in verdict([], 0, [base])


def test_a_model_is_replaced_whole_or_not_at_all(world, tmp_path, monkeypatch, capsys):
    """A second model takes the first one's folder; what fails half way, and what is no model's folder, stays
    as it was.
    """
    out = tmp_path / "less"
    for block in ("0", "1"):
        assert run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", block, "--out", out)[0] == 0
        assert ModelConfig.read(out).blocks == ((1, 2) if block == "0" else (0, 2))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("nanoprune.io.hub.copy_tokenizer", full_disk)
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "2", "--out", out)
    assert (
        code == 2
        and "No space left" in err
        and before == {path.name: path.read_bytes() for path in out.iterdir()}
    )
    assert [path.name for path in tmp_path.iterdir()] == ["less"]  # nothing half is left beside it
    monkeypatch.undo()
    (out / "notes.txt").write_text("mine")
    other = "holds what was not written there as a model"
    for place, message in ((out, f"{other}, or was changed since (notes.txt)"),
                           (out / "notes.txt", "is a file")):
        code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "2", "--out", place)
        assert code == 2 and message in err and (out / "notes.txt").read_text() == "mine"


def strangers(folder, name: str) -> dict[str, bytes]:
    """A folder with a file of another program; its files."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text('{"of": "another program"}')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["my_lora.safetensors", "config.json", "model.safetensors"])
def test_another_programs_folder_is_not_replaced(world, tmp_path, monkeypatch, capsys, name):
    """Not even if the names in it are those of a model."""
    out = tmp_path / "f"
    before = strangers(out, name)
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "1", "--out", out)
    assert code == 2 and f"holds what was not written there as a model, or was changed since ({name})" in err
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("table, there", [
    ("config.csv", "config.json"), ("blocks.json", "none.txt"), ("mine.csv", "mine.csv"),
])
@pytest.mark.parametrize("option", [["--score"], ["--choose", "1", "--out", "{tmp}/r", "--decisions"]])
def test_a_table_replaces_no_other_file(world, tmp_path, monkeypatch, capsys, option, table, there):
    before = strangers(tmp_path / "m", there)
    option = [a.format(tmp=tmp_path) for a in option]
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--data", world.data, *option,
                            tmp_path / "m" / table)
    if option == ["--score"] or there != "config.json":
        assert code == 2 and ("would be replaced" in err or f"m/{table}" in err) and "Traceback" not in err
        assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    assert before[there] == (tmp_path / "m" / there).read_bytes()


def test_a_table_is_written_to_no_pipe(world, tmp_path, monkeypatch, capsys):
    """Which nobody may ever write to."""
    os.mkfifo(tmp_path / "blocks.csv")
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--score",
                            tmp_path / "blocks.csv")
    assert code == 2 and "blocks.csv would be replaced" in err


def test_a_table_of_ours_is_written_again(world, tmp_path, monkeypatch, capsys):
    table, decisions = tmp_path / "b.csv", tmp_path / "d.csv"
    command = ["prune.py", world.model, "--data", world.data, "--score", table, "--choose", "1", "--out",
               tmp_path / "less", "--decisions"]
    for _ in range(2):
        assert run_main(monkeypatch, capsys, *command, decisions)[0] == 0
    code, _, err = run_main(monkeypatch, capsys, *command, table)
    assert code == 2 and "each take a .csv file of its own" in err
    code, _, err = run_main(monkeypatch, capsys, *command, tmp_path / "less" / "d.csv")
    assert code == 2 and "d.csv lies in it" in err


def test_a_pruned_model_keeps_its_history(world, tmp_path, monkeypatch, capsys):
    """Chosen, then dropped by hand, then trained: each step stands in config.json, and is shown."""
    table = tmp_path / "b.csv"
    for arguments in (["--data", world.data, "--score", table, "--choose", "1", "--out", tmp_path / "one"],):
        assert run_main(monkeypatch, capsys, "prune.py", world.model, *arguments)[0] == 0
    first = ModelConfig.read(tmp_path / "one").extra["nanoprune_history"]
    best = next(row["block"] for row in read_rows(table) if row["rank"] == "1")
    assert (
        first[0]["original"] == best
        and first[0]["method"] == "loss"
        and first[0]["scores_sha256"] == file_hash(table)
    )
    arguments = ["--drop", "1.mlp", "--out", tmp_path / "two", "--evidence", table]
    code, out, _ = run_main(monkeypatch, capsys, "prune.py", tmp_path / "one", *arguments)
    assert code == 0 and "is pruned already" in out and f"dropped {best} of {world.model} by loss" in out
    assert "transformers cannot represent" in out
    train(world.config(tmp_path / "runs", base=str(tmp_path / "two"), drop_blocks=("0.attn",)))
    model = Decoder.from_pretrained(tmp_path / "runs" / "run")
    history = model.config.extra["nanoprune_history"]
    assert [entry["dropped"] for entry in history] == [best, "1.mlp", "0.attn"] and model.config.without == (
        "attn",
        "mlp",
    )
    for script in (
        ["eval.py", tmp_path / "runs" / "run", "--data", world.data, "--out", tmp_path / "results"],
        ["sample.py", tmp_path / "runs" / "run", "--prompt", "Munich", "--tokens", "4"],
    ):
        assert run_main(monkeypatch, capsys, *script)[0] == 0
    ids = torch.arange(9)[None]
    cached = KeyValueCache(model, 1, 9)
    with torch.no_grad():
        steps = [model(ids[:, i : i + 1], cache=cached) for i in range(9)]
        torch.testing.assert_close(torch.cat(steps, 1), model(ids), rtol=1e-4, atol=1e-5)


def full_disk(*_):
    raise OSError(28, "No space left on device")


@torch.no_grad()
def loss_without(blocks: list[int], folder: Path, windows: torch.Tensor) -> float:
    """Over windows (N, T + 1), each predicting its T last tokens."""
    model = Decoder.from_pretrained(folder).eval()
    drop_blocks(model, blocks)
    parts = [float(model(part[:, :-1], part[:, 1:], reduction="sum")) for part in windows.split(32)]
    return sum(parts) / windows[:, 1:].numel()


@pytest.mark.parametrize("name", ["hf_stories260K_llama", "hf_babyllama105_llama"])
def test_reference_losses_of_the_tiny_models(name, real):
    """Computed by transformers in fp32; reproduced to 1e-4."""
    reference = json.loads((real / "reference" / "tiny_llama_block_drop_reference.json").read_text())[name]
    folder, ids = real / "checkpoints" / name, torch.tensor([reference["ids"]])
    assert loss_without([], folder, ids) == pytest.approx(reference["loss_full"], abs=1e-4)
    for block in range(ModelConfig.read(folder).num_hidden_layers):
        expected = reference[f"loss_without_block_{block}"]
        assert loss_without([block], folder, ids) == pytest.approx(expected, abs=1e-4), f"block {block}"
    with torch.no_grad():
        logits = Decoder.from_pretrained(folder)(ids)[0, -1, :8]
    assert logits.tolist() == pytest.approx(reference["last_logits_first8"], abs=1e-3)


def test_reference_losses_of_the_press_model(real):
    """By the protocol that stands in the reference's file; reproduced to 1e-4."""
    folder = real / "checkpoints" / "press-qwen3-4m"
    tokenizer, stream = load_tokenizer(folder), []
    for article in read_jsonl(real / "bmw" / "articles.jsonl"):
        if article["id"].endswith("EN") and len(article["text"]) >= 450 and article["date"] >= "2025-09-01":
            stream += [*tokenizer.encode(f"{article['title']}\n\n{article['text']}").ids, 0]
    windows = torch.tensor(stream[:60_000]).unfold(0, 257, 256)[: len(range(0, 59_743, 256))]
    expected = json.loads((real / "reference" / "press_qwen3_block_drop.json").read_text())["loss"]
    for key, blocks in (("full", []), ("-b3", [3]), ("-b7", [7])):  # every block would take a minute
        assert loss_without(blocks, folder, windows) == pytest.approx(expected[key], abs=1e-4), key


def test_score_and_drop_commands(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, out, _ = run_main(
        monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--score", tmp_path / "b.csv",
        "--dtype", "float32"
    )
    rows = read_rows(tmp_path / "b.csv")
    assert code == 0 and f"wrote {tmp_path / 'b.csv'}" in out
    assert [row["block"] for row in rows] == ["none", "0", "1", "2"]
    assert sorted(row["rank"] for row in rows) == ["", "1", "2", "3"]
    about = json.loads((tmp_path / "b.json").read_text())
    assert about["base_sha256"]["model.safetensors"] == file_hash(world.model / "model.safetensors")
    assert about["tokens"] == int(rows[0]["tokens"]) and about["split"] == "val"
    assert set(about["correlations"]) == set(estimates())
    shutil.copy(tmp_path / "b.csv", tmp_path / "theirs.csv")
    code, *_ = run_main(
        monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--score", tmp_path / "b.csv",
        "--dtype", "float32", "--drop", "1", "--evidence", tmp_path / "theirs.csv", "--out", tmp_path / "both"
    )
    (entry,) = json.loads((tmp_path / "both" / "config.json").read_text())["nanoprune_history"]
    assert code == 0 and entry["scores"] == str(tmp_path / "theirs.csv")
    code, out, _ = run_main(
        monkeypatch, capsys, "prune.py", world.model, "--drop", "2,0", "--out", tmp_path / "reduced"
    )
    assert code == 0 and "1 blocks" in out and f"wrote {tmp_path / 'reduced'}" in out
    assert Decoder.from_pretrained(tmp_path / "reduced").config.blocks == (1,)
    assert (tmp_path / "reduced" / "tokenizer.json").read_bytes() == (
        world.model / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--drop", "7", "--out", "{tmp}/r"], "cannot drop block 7"),
        (["--drop", "1,1", "--out", "{tmp}/r"], "named more than once"),
        (["--drop", "0,1,2", "--out", "{tmp}/r"], "cannot drop all 3 blocks"),
        (
            ["--drop", "one", "--out", "{tmp}/r"],
            "cannot drop block one: this model has 3 blocks, 0 to 2; a block is named",
        ),
        (["--drop", "", "--out", "{tmp}/r"], "cannot drop block "),
        (["--drop", "1", "--choose", "1", "--out", "{tmp}/r"], "give --score CSV with --data FOLDER, or"),
        (["--choose", "1", "--out", "{tmp}/r"], "--choose with --out and, unless"),
        (
            ["--choose", "3", "--method", "last", "--out", "{tmp}/r"],
            "--choose 3: this model has 3 blocks, 3 of them not protected",
        ),
        (
            ["--choose", "2", "--method", "last", "--protect", "0,1", "--out", "{tmp}/r"],
            "1 of them not protected",
        ),
        (
            ["--choose", "2", "--method", "last", "--contiguous", "--protect", "1", "--out", "{tmp}/r"],
            "no 2 unprotected blocks",
        ),
        (
            ["--choose", "1", "--method", "last", "--protect", "8", "--out", "{tmp}/r"],
            "block 8: this model has 3",
        ),
        (["--drop", "1", "--protect", "0", "--out", "{tmp}/r"], "--protect goes with --choose"),
        (["--drop", "1", "--method", "last", "--out", "{tmp}/r"], "--method goes with --choose"),
        (
            ["--choose", "1", "--method", "last", "--protect", "0,1,2", "--out", "{tmp}/r"],
            "0 of them not protected",
        ),
        (["--choose", "1", "--method", "random", "--seed", "-1", "--out", "{tmp}/r"], "--seed must be at"),
        (
            ["--choose", "1", "--method", "no-such-score", "--out", "{tmp}/r"],
            "invalid choice: 'no-such-score'",
        ),
        (["--drop", "1", "--evidence", "{tmp}/none.csv", "--out", "{tmp}/r"], "there is no such file"),
        (["--score", "{tmp}/b.csv", "--data", "{data}", "--tokens", "1"], "at least 100 tokens of 2"),
        (["--drop", "1"], "--drop with --out FOLDER"),
        (["--score", "{tmp}/b.csv"], "--score goes with --data FOLDER"),
        (["--score", "{tmp}/b.csv", "--data", "{data}", "--out", "{tmp}/x"], "--score goes with --data"),
        (["--score", "{tmp}", "--data", "{data}"], "each take a .csv file"),
        ([], "give --score CSV"),
        (["--drop", "1", "--out", "{base}"], "lies in it; write to another folder"),
        (["--drop", "1", "--out", "/dev/null/r"], "choose another place to write to"),
        (["--score", "{tmp}/b.csv", "--data", "{tmp}/nowhere"], "is not a dataset folder"),
        (
            ["--score", "{tmp}/b.csv", "--data", "{data}", "--device", "tpu"],
            "device: given 'tpu'; allowed are auto, cpu",
        ),
        (["--score", "{tmp}/b.csv", "--data", "{data}", "--context", "0"], "--context must be at least 1"),
        (["--score", "/dev/null/b.csv", "--data", "{data}"], "choose another place to write to"),
    ],
)
def test_commands_answer_mistakes(world, tmp_path, monkeypatch, capsys, arguments, message):
    arguments = [a.format(tmp=tmp_path, base=world.model, data=world.data) for a in arguments]
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert Decoder.from_pretrained(world.model).config.num_hidden_layers == 3


def test_a_reduced_model_keeps_its_bases_types(world, tmp_path, monkeypatch, capsys):
    """Of every tensor, bit by bit, also where it was scored in fp32 before."""
    base = random_base(tmp_path / "base", torch.bfloat16, vocab_size=280)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    copy_tokenizer(world.data, base)
    for options in (["--drop", "1"], ["--data", world.data, "--choose", "1", "--protect", "0,2"]):
        out = tmp_path / options[-1]
        assert run_main(monkeypatch, capsys, "prune.py", base, *options, "--out", out)[0] == 0
        reduced = load_file(out / "model.safetensors")
        for name, tensor in reduced.items():
            assert torch.equal(tensor, weights[name.replace("layers.1.", "layers.2.")]), name
            assert tensor.dtype == weights[name.replace("layers.1.", "layers.2.")].dtype
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
        shutil.rmtree(out)


def test_the_loss_after_each_decision(world, tmp_path, monkeypatch, capsys):
    """Paired with the unpruned model's; a table's losses are kept, so the same command measures nothing."""
    table, out = tmp_path / "greedy.csv", tmp_path / "reduced"
    command = [world.model, "--data", world.data, "--context", "32", "--choose", "2", "--dtype", "float32",
               "--out", out, "--decisions", table]
    code, printed, _ = run_main(monkeypatch, capsys, "prune.py", *command)
    assert code == 0 and f"wrote {table}" in printed and "s left" in printed
    rows = read_rows(table)
    model = Decoder.from_pretrained(world.model).eval()
    calibration = Calibration.of_split(model, Dataset(world.data).split("val"), 32)
    chosen = rows[-1]["removed"].split(",")
    losses = losses_without(model, [(), (Part(int(chosen[0])),), tuple(Part(int(i)) for i in chosen)],
                            calibration)
    means = losses.nll.sum(1) / losses.tokens.sum()
    assert [row["removed"] for row in rows] == ["none", chosen[0], ",".join(chosen)]
    assert [float(row["nll"]) for row in rows] == pytest.approx(means, rel=1e-6)
    assert [float(row["difference"]) for row in rows] == pytest.approx(means - means[0], abs=1e-6)
    assert run_main(monkeypatch, capsys, "prune.py", *command)[1].count("s left") == 0
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--choose", "1", "--method", "last",
                            "--out", out, "--decisions", table)
    assert code == 2 and "without --decisions, with --data" in err


def test_the_type_of_the_products_is_printed_and_recorded(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    for given, used in (("auto", "float32"), ("bfloat16", "bfloat16")):
        table = tmp_path / f"{given}.csv"
        code, out, _ = run_main(monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--score",
                                table, "--context", "32", "--dtype", given)
        assert code == 0 and f"products in {used}" in out
        assert json.loads(table.with_suffix(".json").read_text())["dtype"] == used
        assert ("has no units for bfloat16" in out) == (given == "bfloat16")
