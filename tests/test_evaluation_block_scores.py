"""Scores of blocks: the losses are those of the model without them, the estimates those of transformers."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from small import SHAPE, run_main

from model import Decoder
from nanoprune.data.dataset import Dataset
from nanoprune.data.token_file import Example
from nanoprune.device import make_autocast
from nanoprune.evaluation import block_scores, removal_losses
from nanoprune.evaluation.block_scores import SCORES, Score, score_blocks
from nanoprune.evaluation.perplexity import score_text
from nanoprune.evaluation.removal_losses import Calibration, KeptLosses, WindowStates, losses_without, without
from nanoprune.nn.model_config import Part, part_name
from prune import choose_blocks, choose_documents, drop_blocks


def load(world, split: str = "val") -> tuple[Decoder, Calibration]:
    model = Decoder.from_pretrained(world.model).eval()
    return model, Calibration.of_split(model, Dataset(world.data).split(split), 32)


def test_scores_are_losses_without_each_block(world):
    """And the model is left as it was."""
    model, calibration = load(world)
    split = Dataset(world.data).split("val")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = score_blocks(model, calibration).rows
    assert [row["block"] for row in rows] == ["none", "0", "1", "2"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for row in rows:
        other = Decoder.from_pretrained(world.model).eval()
        drop_blocks(other, [] if row["block"] == "none" else [row["block"]])
        total = count = 0
        for i in range(len(split)):
            for start in range(0, len(split[i]) - 1, 32):  # each window by itself, no padding
                piece = torch.from_numpy(split[i].tokens[start : start + 33])[None]
                with torch.no_grad():
                    total += float(other(piece[:, :-1], piece[:, 1:], reduction="sum"))
                count += piece.shape[1] - 1
        assert row["nll"] == pytest.approx(total / count, rel=1e-5) and row["tokens"] == count
        assert row["difference"] == pytest.approx(row["nll"] - rows[0]["nll"])
        assert row["nll_low"] <= row["nll"] <= row["nll_high"]
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    ranked = sorted(rows[1:], key=lambda row: row["rank"])
    assert [row["nll"] for row in ranked] == sorted(row["nll"] for row in rows[1:])


def test_angles_are_of_the_last_learned_position(world):
    """Also behind a prompt that is not learned, and a window without a learned token counts nothing."""
    model = Decoder.from_pretrained(world.model).eval()
    tokens, learned = np.resize(Dataset(world.data).split("val")[0].tokens, 65), np.zeros(65, bool)
    learned[50:61] = True
    conversation, document = Example(tokens, learned), Example(tokens[32:61], np.ones(29, bool))
    angles = [SCORES["angular"].function(model, [(Part(0),)], Calibration.of_split(model, [example], 32))
              for example in (conversation, document)]
    assert angles[0] == pytest.approx(angles[1], rel=1e-5) and angles[0][0] > 0


def test_a_loss_that_is_not_finite_ranks_last(world):
    model, calibration = load(world)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    rows = score_blocks(model, calibration).rows
    assert {row["block"]: row["rank"] for row in rows} == {"none": "", "0": "2.5", "1": "1", "2": "2.5"}


def test_shared_prefixes_give_the_plain_losses(world, monkeypatch):
    """Of blocks, halves and pairs: bit by bit what the pruned model itself gives."""
    states, bytes_of_each = 2 * SHAPE["num_hidden_layers"] + 1, 4 * SHAPE["hidden_size"]
    monkeypatch.setattr(removal_losses, "ROOM", 128 * states * bytes_of_each)
    model, calibration = load(world, "train")
    assert max(batch.ids.numel() for batch in calibration.windows) == 128
    removals = [(), *((Part(i, half),) for i in range(3) for half in ("", "attn", "mlp"))]
    removals += [(Part(0), Part(2)), (Part(2), Part(1, "mlp"))]
    losses = losses_without(model, removals, calibration)
    for nll, removal in zip(losses.nll, removals, strict=True):
        other = Decoder.from_pretrained(world.model).eval()
        drop_blocks(other, map(part_name, removal))
        plain = score_text(other, calibration.windows, calibration.documents)
        assert np.array_equal(plain.nll, nll), removal
        assert np.array_equal(plain.tokens, losses.tokens)


def test_a_model_is_whole_again_after_blocks_were_left_out(world):
    model, _ = load(world)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        whole = model(ids)
        with pytest.raises(ZeroDivisionError), without(model, [0, 2]):
            assert len(model.model.layers) == model.config.num_hidden_layers == 1
            raise ZeroDivisionError
        assert torch.equal(model(ids), whole) and model.config.blocks == (0, 1, 2)


def test_an_added_score_has_columns_and_can_be_chosen_by(world, monkeypatch):
    """One function and one entry suffice."""
    score = Score(
        lambda model, removals, calibration: [abs(removal[0].block - 1) for removal in removals],
        "distance from 1",
    )
    monkeypatch.setitem(SCORES, "no-such-score", score)
    model, calibration = load(world)
    scores = score_blocks(model, calibration)
    assert [row["no-such-score"] for row in scores.rows] == ["", 1, 0, 1]
    assert [row["no-such-score_rank"] for row in scores.rows] == ["", "2.5", "1", "2.5"]
    assert scores.correlations["no-such-score"]["of"] == 3
    assert block_scores.protocol()["no-such-score"] == "distance from 1"
    assert choose_blocks(model, calibration, 1, "no-such-score")[0] == [1]


def test_the_table_takes_three_passes(world, monkeypatch):
    """For the losses, for the gradient, and one for all that compares a block's input and output."""
    passes, block_inputs = [], Decoder.block_inputs
    monkeypatch.setattr(Decoder, "block_inputs", lambda *given: (passes.append(1), block_inputs(*given))[1])
    model, calibration = load(world)
    score_blocks(model, calibration, halves=True)
    assert len(passes) == 3 * len(calibration.windows)



def test_text_without_a_prediction_is_refused(world):
    model, _ = load(world)
    with pytest.raises(ValueError, match="holds no text to score on"):
        Calibration.of_split(model, [], 32)


def hidden_states(folder, ids) -> list[torch.Tensor]:
    """By transformers, fp64: into every block, and out of the last before the final norm."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    out = []
    theirs.model.layers[-1].register_forward_hook(
        lambda _, __, y: out.append(y[0] if isinstance(y, tuple) else y)
    )
    with torch.no_grad():
        states = theirs(ids, output_hidden_states=True, use_cache=False).hidden_states
    return [*states[:-1], out[0]]


def cosines(before: torch.Tensor, after: torch.Tensor) -> list[float]:
    return [float(cosine) for cosine in torch.nn.functional.cosine_similarity(before, after, dim=-1)]


def assert_scores_are_those_of_transformers(folder, data, context: int, tokens: int) -> None:
    """Block influence, angular distance, Taylor importance and magnitude, from transformers' states and
    autograd.
    """
    model, split = Decoder.from_pretrained(folder).eval(), Dataset(data).split("val")
    calibration = Calibration.of_split(model, choose_documents(split, tokens), context)
    by_block = {row["block"]: row for row in score_blocks(model, calibration, halves=True).rows}
    count = model.config.num_hidden_layers
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    influence, positions, total = np.zeros(count), 0, 0.0
    angular, pairs = np.zeros(count), np.zeros(count - 1)  # over one block, and over two
    for batch in calibration.windows:
        for row, aims in zip(batch.ids, batch.targets, strict=True):  # one at a time: no padding
            n = int((aims != -100).sum())
            states = [state[0] for state in hidden_states(folder, row[None, :n])]
            influence += [sum(1 - cosine for cosine in cosines(a, b)) for a, b in pairwise(states)]
            angular += [math.acos(cosines(a[-1:], b[-1:])[0]) / math.pi for a, b in pairwise(states)]
            pairs += [
                math.acos(cosines(states[i][-1:], states[i + 2][-1:])[0]) / math.pi for i in range(count - 1)
            ]
            positions += n
            total += torch.nn.functional.cross_entropy(
                theirs(row[None, :n]).logits[0], aims[:n], reduction="sum"
            )
    (total / positions).backward()
    windows = sum(len(batch.ids) for batch in calibration.windows)
    runs = [(Part(i), Part(i + 1)) for i in range(count - 1)]
    assert SCORES["angular"].function(model, runs, calibration) == pytest.approx(pairs / windows, rel=1e-3)
    for i in range(count):
        assert by_block[str(i)]["influence"] == pytest.approx(influence[i] / positions, rel=1e-4)
        assert by_block[str(i)]["angular"] == pytest.approx(angular[i] / windows, rel=1e-3)
        parameters = dict(theirs.model.layers[i].named_parameters())
        for half in ("", "attn", "mlp"):
            chosen = [p for name, p in parameters.items()
                      if not half or name.startswith(("self_attn", "input")) == (half == "attn")]
            row = by_block[part_name(Part(i, half))]
            assert row["taylor"] == pytest.approx(
                sum(float((p.detach() * p.grad).abs().sum()) for p in chosen), rel=1e-3
            )
            assert row["magnitude"] == pytest.approx(
                sum(float(p.detach().abs().sum()) for p in chosen), rel=1e-5
            )
            assert row["parameters"] == sum(p.numel() for p in chosen)


def test_scores_are_those_of_transformers(world):
    assert_scores_are_those_of_transformers(world.model, world.data, 32, 0)


@pytest.mark.parametrize("name", ["hf_stories260K_qwen2", "press-qwen3-4m"])
def test_scores_of_trained_models_are_those_of_transformers(name, real, tmp_path, monkeypatch, capsys):
    """On real releases, in windows that their context holds."""
    folder, data = real / "checkpoints" / name, tmp_path / "data"
    arguments = [real / "bmw" / "articles.jsonl", "--out", data, "--tokenizer", folder]
    assert run_main(monkeypatch, capsys, "prepare.py", *arguments)[0] == 0
    assert_scores_are_those_of_transformers(folder, data, 64, 600)


def keep(path, **about) -> KeptLosses:
    return KeptLosses(path, {"weights": {"model.safetensors": "a"}, "dtype": "float32"} | about)


def count_scored(monkeypatch) -> list:
    """The removals that are measured from now on."""
    scored, losses = [], WindowStates.losses
    monkeypatch.setattr(WindowStates, "losses",
                        lambda self, removal: (scored.append(removal), losses(self, removal))[1])
    return scored


def test_killed_scoring_goes_on_where_it_was(world, tmp_path, monkeypatch, capsys):
    """Each row is kept and printed as it is known; the table is that of scoring that was never killed."""
    model, calibration = load(world)
    whole = score_blocks(model, calibration).rows
    path, scored = tmp_path / "blocks.losses.json", count_scored(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        losses = WindowStates.losses
        patch.setattr(WindowStates, "losses", lambda self, removal: (
            interrupt() if removal == (Part(1),) else losses(self, removal)))
        score_blocks(model, replace(calibration, kept=keep(path)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("without")]
    assert [line.split()[1] for line in lines] == ["none", "0", "1", "2", "none", "0"]
    assert "2 of 4" in lines[-1] and "s left" in lines[-1]
    scored.clear()
    again = score_blocks(model, replace(calibration, kept=keep(path))).rows
    assert scored == [(Part(1),), (Part(2),)]
    untimed = [{key: value for key, value in row.items() if key != "time_saved"} for row in again]
    assert untimed == [{key: row[key] for key in row if key != "time_saved"} for row in whole]
    monkeypatch.setattr(block_scores, "score_in_one_pass", lambda *_: 1 / 0)
    assert score_blocks(model, replace(calibration, kept=keep(path))).rows == again  # estimates are kept, too
    monkeypatch.setattr(block_scores, "VERSION", block_scores.VERSION + 1)
    with pytest.raises(ZeroDivisionError):
        score_blocks(model, replace(calibration, kept=keep(path)))


def interrupt():
    raise KeyboardInterrupt


def test_losses_are_kept_for_the_same_weights_text_type_and_version(world, tmp_path, monkeypatch):
    model, calibration = load(world)
    path, scored, removals = tmp_path / "losses.json", count_scored(monkeypatch), [(Part(0),)]

    def measured_again(calibration: Calibration, **about) -> bool:
        scored.clear()
        losses_without(model, removals, replace(calibration, kept=keep(path, **about)))
        return bool(scored)

    assert measured_again(calibration) and not measured_again(calibration)
    assert measured_again(calibration, weights={"model.safetensors": "b"})
    assert measured_again(calibration, dtype="bfloat16")
    assert measured_again(load(world, "test")[1])
    with without(model, [2]):
        assert measured_again(calibration)
    monkeypatch.setattr(removal_losses, "VERSION", removal_losses.VERSION + 1)
    assert measured_again(calibration)
    monkeypatch.undo()
    scored = count_scored(monkeypatch)
    assert not measured_again(calibration)


def test_bf16_ranks_blocks_as_fp32_does(world):
    """And its paired differences are those of fp32 within their intervals."""
    model, calibration = load(world, "train")
    bf16 = replace(calibration, autocast=make_autocast("bfloat16", torch.device("cpu")))
    tables = [score_blocks(model, text).rows for text in (calibration, bf16)]
    for row, rounded in zip(*tables, strict=True):
        assert row["rank"] == rounded["rank"] and row["nll"] != rounded["nll"]
        assert row["difference_low"] <= rounded["difference"] <= row["difference_high"]
