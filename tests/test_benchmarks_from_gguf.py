"""benchmarks.from_gguf: a model that was written to GGUF as llama.cpp's converter does it comes back."""

import json
import sys

import pytest
import torch
from small import run_main
from tokenizers.pre_tokenizers import ByteLevel

from model import Decoder
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.files import read_json, write_text
from nanoprune.io.tensors import weights_hash
from nanoprune.nn.model_config import ModelConfig

SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 264, "max_position_embeddings": 128, "rope_theta": 1000.0,
         "rms_norm_eps": 1e-5}
HEAD_ROWS = (0, 4, 1, 5, 2, 6, 3, 7)  # of queries and keys, as llama.cpp stores a head of eight rows
TOKENS = [*sorted(ByteLevel.alphabet()), "ab", "12", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
          "<tool_call>", "[PAD262]", "[PAD263]"]
TYPES = [1] * 258 + [3, 3, 3, 4, 5, 5]
PRE_TOKENIZERS = {"llama": "smollm", "qwen2": "qwen2"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def random_model(kind: str, tied: bool) -> Decoder:
    """A model in which every weight, norms and biases too, is a random number that bfloat16 holds."""
    config = ModelConfig.from_dict(SHAPE | {"model_type": kind, "tie_word_embeddings": tied})
    model, generator = Decoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).bfloat16())
    return model


def write_gguf(path, kind: str, weights: dict, pre="", roundings=(), types=(), scaling=""):
    """A GGUF file of the weights; `roundings` names the types of those that are not F32."""
    gguf = pytest.importorskip("gguf")
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[kind]
    names = gguf.get_tensor_name_map(architecture, SHAPE["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    writer.add_rope_freq_base(SHAPE["rope_theta"])
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or PRE_TOKENIZERS[kind])
    writer.add_token_list(TOKENS)
    writer.add_token_types(types or TYPES)
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_chat_template("{{ messages[0].content }}")
    for name, weight in weights.items():
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
            weight = weight[[start + row for start in range(0, len(weight), 8) for row in HEAD_ROWS]]
        rounding = gguf.GGMLQuantizationType[dict(roundings).get(name, "F32")]
        writer.add_tensor(names.get_name(name, (".weight", ".bias")),
                          gguf.quantize(weight.detach().float().numpy(), rounding), raw_dtype=rounding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def convert(monkeypatch, capsys):
    """A function that runs the script: (exit code, stdout, stderr)."""
    return lambda *arguments: run_main(monkeypatch, capsys, "benchmarks.from_gguf", *arguments)


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen2", True)])
def test_every_tensor_comes_back(tmp_path, convert, kind, tied):
    """Rows of a llama's heads are put back, a qwen2's biases are there, a head that is another matrix stays.
    """
    model = random_model(kind, tied)
    file = write_gguf(tmp_path / "a.gguf", kind, model.state_dict())
    assert convert(file, tmp_path / "out")[0] == 0
    back = Decoder.from_pretrained(tmp_path / "out")
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    assert back.config.fingerprint() == model.config.fingerprint()
    assert read_json(tmp_path / "out/config.json")["rms_norm_eps"] == 1e-5


def test_rows_of_a_head_are_put_back(tmp_path, convert):
    """Each row of the file's queries holds its number there."""
    weights = random_model("llama", True).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    # Computed by hand: the writer stores row HEAD_ROWS[i] of a head as its row i.
    hub_rows = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,
                16, 18, 20, 22, 17, 19, 21, 23, 24, 26, 28, 30, 25, 27, 29, 31]
    weights[name] = torch.tensor(hub_rows, dtype=torch.float32)[:, None].expand(32, 32)
    file = write_gguf(tmp_path / "a.gguf", "llama", weights)
    gguf = pytest.importorskip("gguf")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    assert stored["blk.0.attn_q.weight"][:, 0].tolist() == list(range(32))
    convert(file, tmp_path / "out")
    back = Decoder.from_pretrained(tmp_path / "out").state_dict()[name]
    assert back[:, 0].tolist() == hub_rows


@pytest.mark.parametrize("finer", [EMBEDDING, HEAD])
def test_the_finer_copy_of_a_tied_embedding_stays(tmp_path, convert, finer):
    gguf = pytest.importorskip("gguf")
    weights = random_model("qwen2", True).state_dict()
    matrix = weights[EMBEDDING]
    roundings = {EMBEDDING: "Q4_0", HEAD: "Q4_0"} | {finer: "Q8_0"}
    file = write_gguf(tmp_path / "a.gguf", "qwen2", weights | {HEAD: matrix}, roundings=roundings)
    _, printed, _ = convert(file, tmp_path / "out")
    assert f"took {finer}" in printed
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = torch.tensor(gguf.dequantize(gguf.quantize(matrix.numpy(), kind), kind)).bfloat16().float()
    back = Decoder.from_pretrained(tmp_path / "out")
    assert back.config.tie_word_embeddings
    assert torch.equal(back.state_dict()[EMBEDDING], expected)


def test_the_end_says_what_was_read_and_written(tmp_path, convert):
    model = random_model("llama", True)
    roundings = {name: "Q4_1" for name in model.state_dict() if "proj" in name} | {EMBEDDING: "Q8_0"}
    file = write_gguf(tmp_path / "a.gguf", "llama", model.state_dict(), roundings=roundings)
    _, printed, _ = convert(file, tmp_path / "out")
    # An embedding of 264 rows, five norms; in a block 32 + 16 + 16 + 32 rows of attention, three matrices.
    parameters = 264 * 32 + 5 * 32 + 2 * (96 * 32 + 3 * 64 * 32)
    assert f"wrote {tmp_path / 'out'}: llama, 2 blocks, {parameters:,} parameters\n" in printed
    assert "tensors in the file: Q4_1 14, F32 5, Q8_0 1\n" in printed
    assert f"sha256 of the weights, as studies record it: {weights_hash(tmp_path / 'out')}\n" in printed
    weights = Decoder.without_weights(tmp_path / "out").state_dict()
    assert sum(weight.numel() for weight in weights.values()) == parameters


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_text_becomes_the_tokens_of_the_file(tmp_path, convert, kind):
    """Digits stay apart, added tokens have their rows, rows that fill up the embedding have no token."""
    file = write_gguf(tmp_path / "a.gguf", kind, random_model(kind, True).state_dict())
    convert(file, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text).ids
    assert [TOKENS[i] for i in ids("ab12 ab")] == ["ab", "1", "2", "Ġ", "ab"]
    assert (ids("e\u0301") == ids("é")) == (kind == "qwen2")
    assert tokenizer.decode(ids("zürich 12\n")) == "zürich 12\n"
    assert [TOKENS[i] for i in ids("<tool_call>a")] == ["<tool_call>", "a"]
    assert ids("<|im_end|>") != [TOKENS.index("<|im_end|>")]  # of a text it is no special token
    tokenizer.encode_special_tokens = False
    assert ids("<|im_end|>") == [TOKENS.index("<|im_end|>")]
    assert tokenizer.token_to_id("[PAD263]") is None


def test_added_tokens_keep_their_rows_over_a_gap(tmp_path, convert):
    types = [1] * 258 + [3, 5, 3, 4, 5, 5]
    file = write_gguf(tmp_path / "a.gguf", "llama", random_model("llama", True).state_dict(), types=types)
    convert(file, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.token_to_id("<|endoftext|>") == 258
    assert tokenizer.token_to_id("<tool_call>") == 261


def test_qwen2_rules_are_the_published_ones(tmp_path, convert, real):
    file = write_gguf(tmp_path / "a.gguf", "qwen2", random_model("qwen2", True).state_dict())
    convert(file, tmp_path / "out")
    ours = read_json(tmp_path / "out/tokenizer.json")
    theirs = read_json(real / "checkpoints/Qwen2.5-0.5B-Instruct/tokenizer.json")
    for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert ours[key] == theirs[key], key


def test_the_chat_template_and_the_ends_of_an_answer(tmp_path, convert):
    file = write_gguf(tmp_path / "a.gguf", "llama", random_model("llama", True).state_dict())
    convert(file, tmp_path / "out")
    tokenizer, config = map(read_json, (tmp_path / "out/tokenizer_config.json", tmp_path / "out/config.json"))
    assert tokenizer["chat_template"] == "{{ messages[0].content }}"
    assert tokenizer["eos_token"] == tokenizer["pad_token"] == "<|im_end|>"
    assert (config["bos_token_id"], config["eos_token_id"]) == (259, 260)
    assert read_json(tmp_path / "out/generation_config.json") == {"eos_token_id": [258, 260]}


# ---------------------------------------------------------------- refusals


def write_keys(path, architecture: str, pre: str = ""):
    """A GGUF file without tensors."""
    writer = pytest.importorskip("gguf").GGUFWriter(path, architecture)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def refusal(convert, file, out) -> str:
    """The message with which the script ends; it leaves no folder."""
    code, _, message = convert(file, out)
    assert code == 2 and not out.exists()
    return message


def test_a_missing_file_is_refused(tmp_path, convert):
    assert f"no file {tmp_path / 'a.gguf'}" in refusal(convert, tmp_path / "a.gguf", tmp_path / "out")


@pytest.mark.parametrize("content", ["", "GGUF", "no GGUF file " * 9])
def test_other_files_are_refused(tmp_path, convert, content):
    pytest.importorskip("gguf")
    write_text(tmp_path / "a.gguf", content)
    assert "is not a GGUF file that can be read" in refusal(convert, tmp_path / "a.gguf", tmp_path / "out")


def test_a_truncated_file_is_refused(tmp_path, convert):
    file = write_gguf(tmp_path / "a.gguf", "llama", random_model("llama", True).state_dict())
    file.write_bytes(file.read_bytes()[:-999])
    assert "is not a GGUF file that can be read" in refusal(convert, file, tmp_path / "out")


@pytest.mark.parametrize(("keys", "message"), [
    (("gemma3", "qwen2"), "architecture 'gemma3' is not supported; supported: llama, qwen2"),
    (("llama", "tekken"), "pre-tokenizer 'tekken' is not supported; supported: smollm, qwen2"),
    (("llama", ""), "has no key tokenizer.ggml.pre")])
def test_other_models_are_refused_by_name(tmp_path, convert, keys, message):
    write_keys(tmp_path / "a.gguf", *keys)
    assert message in refusal(convert, tmp_path / "a.gguf", tmp_path / "out")


def test_scaled_positions_are_refused(tmp_path, convert):
    weights = random_model("qwen2", True).state_dict()
    file = write_gguf(tmp_path / "a.gguf", "qwen2", weights, scaling="yarn")
    assert "rope scaling 'yarn' is not supported" in refusal(convert, file, tmp_path / "out")


def test_a_tensor_that_is_missing_or_has_no_place_is_refused(tmp_path, convert):
    weights = random_model("llama", True).state_dict()
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    del weights["model.norm.weight"]
    message = refusal(convert, write_gguf(tmp_path / "a.gguf", "llama", weights), tmp_path / "out")
    assert "model.norm.weight: missing, expected (32,)" in message
    assert "model.layers.0.self_attn.q_proj.bias: (32,), expected no such tensor" in message


def test_only_a_new_or_empty_folder_is_written(tmp_path, convert):
    file, out = tmp_path / "a.gguf", tmp_path / "out"
    write_text(out / "notes.txt", "mine")
    code, _, message = convert(file, out)
    assert code == 2 and f"{out} exists and is not an empty folder" in message
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert convert(file, out / "notes.txt")[0] == 2
    assert (out / "notes.txt").read_text() == "mine"
    write_gguf(file, "llama", random_model("llama", True).state_dict())
    (tmp_path / "empty").mkdir()
    assert convert(file, tmp_path / "empty")[0] == 0
    assert json.loads((tmp_path / "empty/config.json").read_text())["model_type"] == "llama"


def test_without_gguf_the_message_says_how_to_install_it(tmp_path, convert, monkeypatch):
    write_text(tmp_path / "a.gguf", "GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert 'pip install ".[gguf]"' in refusal(convert, tmp_path / "a.gguf", tmp_path / "out")
