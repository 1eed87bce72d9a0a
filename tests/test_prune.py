"""prune.py: what is left without a block is what transformers computes without it, and its scores are the references'."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from small import ROOT, SHAPE, read_rows, run_main

from dataset import Dataset, load_tokenizer, read_jsonl
from model import Decoder, ModelConfig
from prune import choose_documents, drop_blocks, score_blocks

TWO_WINDOWS = dict(use_sliding_window=True, sliding_window=4, max_window_layers=2)
FAMILIES = {"qwen3": {}, "qwen2": {"model_type": "qwen2"}, "llama": {"model_type": "llama", "tie_word_embeddings": False},
            "sliding": TWO_WINDOWS}


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


@pytest.mark.parametrize("blocks, message", [
    ([4], "cannot drop block 4: this model has 4 blocks, 0 to 3"), ([-1], "cannot drop block -1"),
    ([True], "cannot drop block True"), ([1.0], "cannot drop block 1.0"), ([2, 2], "block 2 is named more than once"),
    ([0, 1, 2, 3], "cannot drop all 4 blocks")])
def test_wrong_indices(blocks, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        drop_blocks(model, blocks)
    assert model.config.num_hidden_layers == len(model.model.layers) == 4


def test_scores_are_losses_without_each_block(world):
    """And the model is left as it was."""
    dataset, model = Dataset(world.data), Decoder.from_pretrained(world.model).eval()
    split = dataset.split("val")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = score_blocks(model, list(split.windows(32)), len(split))
    assert [row["block"] for row in rows] == ["none", 0, 1, 2]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for row in rows:
        other = Decoder.from_pretrained(world.model).eval()
        drop_blocks(other, [] if row["block"] == "none" else [row["block"]])
        total = count = 0
        for i in range(len(split)):
            for start in range(0, len(split[i]) - 1, 32):  # each window by itself, no padding
                piece = torch.from_numpy(split[i][start : start + 33])[None]
                with torch.no_grad():
                    total += float(other(piece[:, :-1], piece[:, 1:], reduction="sum"))
                count += piece.shape[1] - 1
        assert row["nll"] == pytest.approx(total / count, rel=1e-5) and row["tokens"] == count
        assert row["difference"] == pytest.approx(row["nll"] - rows[0]["nll"])
    ranked = sorted(rows[1:], key=lambda row: row["rank"])
    assert [row["nll"] for row in ranked] == sorted(row["nll"] for row in rows[1:])


def test_a_loss_that_is_not_finite_ranks_last(world):
    dataset, model = Dataset(world.data), Decoder.from_pretrained(world.model).eval()
    split = dataset.split("val")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    rows = score_blocks(model, list(split.windows(32)), len(split))
    assert {row["block"]: row["rank"] for row in rows}[1] == 1


def test_some_tokens_are_whole_documents_evenly_spaced(world):
    split = Dataset(world.data).split("train")
    chosen = choose_documents(split, len(split.tokens) // 3)
    assert chosen == {0, 3, 6, 9} and choose_documents(split, 0) == choose_documents(split, 10**9) == set(range(12))
    assert choose_documents(split, 1) == {0}


def test_a_model_is_replaced_whole_or_not_at_all(world, tmp_path, monkeypatch, capsys):
    """A second model takes the first one's folder; what fails half way, and what is no model's folder, stays as it was."""
    out = tmp_path / "less"
    for block in ("0", "1"):
        assert run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", block, "--out", out)[0] == 0
        assert Decoder.read_config(out).blocks == ((1, 2) if block == "0" else (0, 2))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("files.copy_tokenizer", full_disk)
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "2", "--out", out)
    assert code == 2 and "No space left" in err and before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["less"]  # nothing half is left beside it
    monkeypatch.undo()
    (out / "notes.txt").write_text("mine")
    for place, message in ((out, "holds more than a model (notes.txt)"), (out / "notes.txt", "is a file")):
        code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "2", "--out", place)
        assert code == 2 and message in err and (out / "notes.txt").read_text() == "mine"


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
    for block in range(Decoder.read_config(folder).num_hidden_layers):
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
    code, out, _ = run_main(monkeypatch, capsys, "prune.py", world.model, "--data", world.data, "--score", tmp_path / "b.csv")
    rows = read_rows(tmp_path / "b.csv")
    assert code == 0 and f"wrote {tmp_path / 'b.csv'}" in out
    assert [row["block"] for row in rows] == ["none", "0", "1", "2"]
    assert sorted(row["rank"] for row in rows) == ["", "1", "2", "3"]
    code, out, _ = run_main(monkeypatch, capsys, "prune.py", world.model, "--drop", "2,0", "--out", tmp_path / "reduced")
    assert code == 0 and "1 blocks" in out and f"wrote {tmp_path / 'reduced'}" in out
    assert Decoder.from_pretrained(tmp_path / "reduced").config.blocks == (1,)
    assert (tmp_path / "reduced" / "tokenizer.json").read_bytes() == (world.model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("arguments, message", [
    (["--drop", "7", "--out", "{tmp}/r"], "cannot drop block 7"),
    (["--drop", "1,1", "--out", "{tmp}/r"], "named more than once"),
    (["--drop", "0,1,2", "--out", "{tmp}/r"], "cannot drop all 3 blocks"),
    (["--drop", "one", "--out", "{tmp}/r"], "given 'one'"),
    (["--drop", "1"], "--drop with --out FOLDER"), (["--score", "{tmp}/b.csv"], "--score goes with --data FOLDER"),
    (["--score", "{tmp}/b.csv", "--data", "{data}", "--out", "{tmp}/x"], "--score goes with --data"),
    (["--score", "{tmp}", "--data", "{data}"], "is a folder; give the CSV file"),
    ([], "give either --score"),
    (["--drop", "1", "--out", "{base}"], "is the base itself"),
    (["--drop", "1", "--out", "/dev/null/r"], "choose another place to write to"),
    (["--score", "{tmp}/b.csv", "--data", "{tmp}/nowhere"], "is not a dataset folder"),
    (["--score", "{tmp}/b.csv", "--data", "{data}", "--device", "tpu"], "device: given 'tpu'; allowed are auto, cpu"),
    (["--score", "{tmp}/b.csv", "--data", "{data}", "--context", "0"], "--context must be at least 1"),
    (["--score", "/dev/null/b.csv", "--data", "{data}"], "choose another place to write to"),
])
def test_commands_answer_mistakes(world, tmp_path, monkeypatch, capsys, arguments, message):
    arguments = [a.format(tmp=tmp_path, base=world.model, data=world.data) for a in arguments]
    code, _, err = run_main(monkeypatch, capsys, "prune.py", world.model, *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert Decoder.from_pretrained(world.model).config.num_hidden_layers == 3
