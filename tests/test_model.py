"""model.py against transformers, and its fast paths against plain ones."""

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from small import ROOT, SHAPE
from torch.utils._python_dispatch import TorchDispatchMode

from model import PRODUCTS, Decoder, save_products
from nanoprune.data.dataset import Dataset
from nanoprune.data.packing import TrainingRows
from nanoprune.io.files import write_json
from nanoprune.nn import attention
from nanoprune.nn.attention import KeyValueCache
from nanoprune.nn.model_config import ModelConfig

BASE = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=100.0)
WINDOW = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
VARIANTS = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2 tied": (transformers.Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen2 sliding": (transformers.Qwen2Config, WINDOW),
    "qwen2 one head each": (transformers.Qwen2Config, dict(num_key_value_heads=4)),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=16)),
    "qwen3 tied": (transformers.Qwen3Config, dict(head_dim=6, tie_word_embeddings=True)),
    "qwen3 biased": (transformers.Qwen3Config, dict(head_dim=16, attention_bias=True)),
    "qwen3 sliding": (transformers.Qwen3Config, dict(head_dim=16) | WINDOW),
    "qwen3 window off": (transformers.Qwen3Config, dict(head_dim=16, sliding_window=5,
                                                        use_sliding_window=False)),
    "qwen3 mixed layers": (transformers.Qwen3Config, dict(head_dim=16) | WINDOW | dict(
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "llama": (transformers.LlamaConfig, {}),
    "llama tied": (transformers.LlamaConfig, dict(tie_word_embeddings=True, num_key_value_heads=1)),
    "llama biased": (transformers.LlamaConfig, dict(attention_bias=True, mlp_bias=True)),
    "llama free head_dim": (transformers.LlamaConfig, dict(head_dim=12)),
    "llama3 rope": (transformers.LlamaConfig, dict(rope_parameters=LLAMA3)),
    "theta": (transformers.LlamaConfig, dict(rope_parameters=dict(rope_type="default", rope_theta=123.0))),
}


def reference(variant: str) -> transformers.PreTrainedModel:
    """transformers' own model, all weights random: initial biases of zero and norms of one would hide
    mistakes.
    """
    kind, changes = VARIANTS[variant]
    torch.manual_seed(0)
    config = kind(**(BASE | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1 if "norm" in name else 0))
    return model


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the reference's scale."""
    assert ours.shape == theirs.shape
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < tolerance, f"off by {error:.1e} of the scale"


IDS = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_equals_transformers(variant, tmp_path):
    theirs = reference(variant)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Decoder.from_pretrained(tmp_path / "theirs")
    assert_close(ours(IDS), theirs(IDS).logits)
    loss = F.cross_entropy(theirs(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert float(ours(IDS[:, :-1], IDS[:, 1:])) == pytest.approx(float(loss), rel=1e-5)
    # and back, written by us
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(again) is type(theirs)
    assert_close(again(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_cache_equals_full_forward(variant, tmp_path):
    reference(variant).save_pretrained(tmp_path)
    model = Decoder.from_pretrained(tmp_path)
    full, cache = model(IDS), KeyValueCache(model, 2, 20)
    steps = [model(IDS[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 12), (12, 13), (13, 20))]
    assert_close(torch.cat(steps, 1), full)
    assert_close(model.last_logits(IDS, KeyValueCache(model, 2, 20)), full[:, -1])


@torch.no_grad()
def test_layouts_of_weights(tmp_path):
    """Sharded, bf16 and with a redundant tied head: all give the same model."""
    theirs = reference("qwen3 tied")
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    theirs.save_pretrained(tmp_path / "single")
    for folder in ("sharded", "single"):
        assert_close(Decoder.from_pretrained(tmp_path / folder)(IDS), theirs(IDS).logits)
    path = tmp_path / "single" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, path)
    assert_close(Decoder.from_pretrained(tmp_path / "single")(IDS), theirs(IDS).logits)
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=torch.float32)
    assert_close(Decoder.from_pretrained(tmp_path / "single")(IDS), rounded(IDS).logits)
    half = Decoder.from_pretrained(tmp_path / "single", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_close(Decoder.from_pretrained(tmp_path / "half")(IDS), rounded(IDS).logits)


@pytest.mark.parametrize("name", ["hf_stories260K_llama", "hf_stories260K_qwen2", "hf_babyllama105_llama",
                                  "press-qwen3-4m"])
@torch.no_grad()
def test_trained_checkpoints_equal_transformers(name, real):
    folder = real / "checkpoints" / name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, theirs.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    assert_close(Decoder.from_pretrained(folder)(ids), theirs(ids).logits)


def tiny(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(ModelConfig.from_dict(SHAPE | {"vocab_size": 50, "initializer_range": 0.3} | changes))


@pytest.mark.parametrize("window", [None, 3])
def test_packed_documents_equal_separate_ones(window):
    """Loss and gradients of a packed row are those of its documents alone, in fp64."""
    model = tiny(use_sliding_window=window is not None, sliding_window=window, max_window_layers=1).double()
    lengths = [5, 1, 9, 2]
    rows = [torch.randint(0, 50, (1, n + 1), generator=torch.Generator().manual_seed(n)) for n in lengths]
    apart = sum(model(row[:, :-1], row[:, 1:], reduction="sum") for row in rows)
    expected = torch.autograd.grad(apart, list(model.parameters()))
    ids = torch.cat([row[:, :-1] for row in rows], 1)
    targets = torch.cat([row[:, 1:] for row in rows], 1)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = model(ids, targets, documents, reduction="sum")
    assert packed.item() == pytest.approx(apart.item(), rel=1e-12)
    for found, wanted in zip(torch.autograd.grad(packed, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size, enable_gqa):
    """What torch.nn.attention.varlen.varlen_attn gives on a GPU: query (tokens, heads, F), starts in int32.
    """
    before, after = window_size
    assert query.shape[2] % 8 == 0 and query.is_contiguous() and key.is_contiguous()
    assert cu_seq_q.dtype == torch.int32 and cu_seq_q is cu_seq_k and after == 0
    assert enable_gqa == (query.shape[1] != key.shape[1]) and max_q == max_k == int(cu_seq_q.diff().max())
    outs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & ((distance <= before) | (before < 0))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=enable_gqa)
        outs.append(y.transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, WINDOW, {"head_dim": 6}])
def test_packed_rows_are_their_documents_by_themselves(changes, monkeypatch):
    """Loss and every gradient, whichever way attention is computed, with and without keeping activations; in
    fp64.
    """
    decoder = tiny(**changes).double()
    lengths, ids = [[9, 1, 14], [24]], torch.randint(0, 50, (2, 24))
    targets, documents = torch.randint(0, 50, (2, 24)), torch.tensor([[0] * 9 + [1] + [2] * 14, [0] * 24])
    targets[0, :4] = -100
    single = 0
    for row, sizes in enumerate(lengths):
        for one_ids, one_targets in zip(ids[row].split(sizes), targets[row].split(sizes), strict=True):
            single = single + decoder(one_ids[None], one_targets[None], reduction="sum")
    single.backward()
    expected = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    for short, recompute in ((0, "none"), (10**9, "none"), (0, "pointwise"), (0, "blocks"),
                             ("in one call", "none")):
        if short == "in one call":  # as on GPUs with flash attention, whose kernel a plain form stands in for
            monkeypatch.setattr(attention, "has_flash", lambda *_: True)
            monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
        else:
            monkeypatch.setattr(attention, "SHORT_DOCUMENT", short)
        decoder.recompute = recompute
        decoder.zero_grad()
        loss = decoder(ids, targets, documents, reduction="sum")
        loss.backward()
        assert loss.item() == pytest.approx(single.item(), rel=1e-12)
        for name, p in decoder.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_recomputing_keeps_little():
    """Of the blocks only their inputs wait for the backward pass."""
    decoder, ids = tiny(num_hidden_layers=6), torch.zeros(1, 32, dtype=torch.int64)

    def kept() -> int:
        sizes = {}
        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder(ids, ids)
        return sum(sizes.values())

    whole = kept()
    decoder.recompute = "blocks"
    assert kept() < 0.3 * whole


def test_recomputing_what_is_pointwise_multiplies_nothing_again():
    decoder, ids, counts = tiny(num_hidden_layers=2), torch.zeros(1, 32, dtype=torch.int64), {}

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counts[choice][func.overloadpacket] += 1
            return func(*args, **(kwargs or {}))

    for choice in ("none", "pointwise", "blocks"):
        decoder.recompute, counts[choice] = choice, Counter()
        with Counted():
            decoder(ids, ids).backward()
    for heavy in (torch.ops.aten.mm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu):
        assert counts["none"][heavy] == counts["pointwise"][heavy] < counts["blocks"][heavy]
    assert counts["none"][torch.ops.aten.silu] < counts["pointwise"][torch.ops.aten.silu]


def test_every_product_has_the_name_of_an_operation():
    """That of packed documents on a GPU among them: a wrong name would be computed again, in silence."""
    from torch.nn.attention.varlen import varlen_attn  # defines its operation
    assert varlen_attn
    for name in PRODUCTS:
        space, operation = name.split("::")
        assert getattr(getattr(torch.ops, space), operation).default.name() == name
        assert save_products(None, getattr(getattr(torch.ops, space), operation).default).name == "MUST_SAVE"
    assert save_products(None, torch.ops.aten.silu.default).name == "PREFER_RECOMPUTE"


def autograd_loss(model: Decoder, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of the model's own logits, by plain autograd."""
    logits = model.logits(model.hidden_states(ids))
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4),
                                              (torch.bfloat16, 0.05)])
def test_the_loss_is_that_of_the_logits(plain, tied, frozen, dtype, tolerance, monkeypatch):
    """Whatever `logits` does to the head's products, the loss and its gradients do, too.

    If this fails after a change of `Decoder.logits`, set `Decoder.plain_head = True`: the loss then is
    autograd over them.
    """
    model, ids = tiny(tie_word_embeddings=tied, initializer_range=1.0).to(dtype), torch.arange(40).view(2, 20)
    monkeypatch.setattr(model, "plain_head", plain or model.plain_head)
    model.head_weight.requires_grad_(not frozen)
    targets = ids.flip(1).clone()
    targets[0, :5] = -100
    learned = [p for p in model.parameters() if p.requires_grad]
    loss, expected = model(ids, targets), autograd_loss(model, ids, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for a, b in zip(torch.autograd.grad(loss, learned), torch.autograd.grad(expected, learned), strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-12
    with torch.no_grad():
        each = model(ids, targets, reduction="none")
        assert (each[0, :5] == 0).all()
        assert (each.sum() / 35).item() == pytest.approx(expected.item(), rel=tolerance)


def test_a_softcap_needs_one_line_and_the_plain_head(monkeypatch):
    """Tried in `logits` alone it is trained, scored and sampled; without `plain_head` the test above would
    fail.
    """
    products = Decoder.logits
    def capped(self, x, head=None):
        return 5 * torch.tanh(products(self, x, head) / 5)

    monkeypatch.setattr(Decoder, "logits", capped)
    model, ids = tiny(initializer_range=1.0), torch.arange(40).view(2, 20)
    expected = autograd_loss(model, ids, ids)
    gradient = torch.autograd.grad(expected, model.head_weight)[0]
    monkeypatch.setattr(Decoder, "plain_head", True)
    loss = model(ids, ids)
    assert loss.item() == pytest.approx(expected.item()) and model(ids).abs().max() <= 5
    torch.testing.assert_close(torch.autograd.grad(loss, model.head_weight)[0], gradient)
    monkeypatch.setattr(Decoder, "plain_head", False)
    assert abs(model(ids, ids).item() - expected.item()) > 0.01


def test_nothing_counted_is_a_loss_of_zero():
    assert tiny()(torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), -100)).item() == 0


def test_model_under_autocast_stays_close():
    model, ids = tiny(), torch.randint(0, 50, (2, 30))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:], torch.zeros(2, 29, dtype=torch.int64))
    assert loss.item() == pytest.approx(model(ids[:, :-1], ids[:, 1:]).item(), rel=0.05)
    assert loss.dtype == torch.float32


def test_unknown_entries_of_a_config_survive(tmp_path):
    model = tiny(bos_token_id=1, eos_token_id=[2, 3], house="of cards")
    model.generation_config = {"eos_token_id": 4}
    model.save_pretrained(tmp_path)
    again = Decoder.from_pretrained(tmp_path)
    assert again.config == model.config and again.stop_tokens == {2, 3, 4}
    assert json.loads((tmp_path / "config.json").read_text())["house"] == "of cards"
    write_json(tmp_path / "generation_config.json", {})
    assert Decoder.from_pretrained(tmp_path).stop_tokens == {2, 3}


def test_loading_does_not_import_the_compiler(tmp_path):
    """It takes longer than all the rest of torch, and every script would wait for it."""
    tiny().save_pretrained(tmp_path)
    code = (f"import sys; from model import Decoder; Decoder.from_pretrained({str(tmp_path)!r})\n"
            "print('torch._dynamo' in sys.modules)")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_rows_of_the_dataset_take_the_path_of_documents(world, monkeypatch):
    """A whole batch of the real reader, once each way."""
    rows = TrainingRows(Dataset(world.data).split("train"), 32, 0)
    batch = rows.batch(0, 4)
    decoder, losses = Decoder.from_pretrained(world.model), []
    for short in (0, 10**9):
        monkeypatch.setattr(attention, "SHORT_DOCUMENT", short)
        losses.append(decoder(*batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
