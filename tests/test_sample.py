"""sample.py: the command, chats, and how mistakes are answered."""

import builtins
import io
import shutil

import pytest
import torch
from small import CHATML, byte_tokenizer, make_model, run_main

import sample
from model import Decoder
from nanoprune.data.chat_format import chat_form
from nanoprune.data.conversations import encode_pairs, encode_prompt
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.files import write_json
from nanoprune.io.jsonl import read_jsonl
from nanoprune.nn.sampling import Sampling, generate

TURNS = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture
def chat_model(tmp_path):
    """A model whose tokenizer has a chat template."""
    data = byte_tokenizer(tmp_path / "t", CHATML, chat_template="<|endoftext|>Be brief.\n" + TURNS)
    write_json(data / "meta.json", {"vocab_size": 259, "end_token": 256})
    return make_model(tmp_path / "chat", data, max_position_embeddings=400)


def options(**changes) -> sample.Options:
    return sample.Options(**{"tokens": 12, "device": "cpu"} | changes)


def test_the_command(world, tmp_path, monkeypatch, capsys):
    prompts = ["--prompt", "Munich.", "--prompt", "Oxford."]
    arguments = [world.model, world.folder / "base", *prompts, "--tokens", "12"]
    monkeypatch.setenv("COLUMNS", "400")  # for two long names side by side
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", *arguments, "--out", tmp_path / "s.jsonl")
    assert code == 0 and out.count("> Munich.") == 1 and out.count(f"[{world.model}]") == 4 and "wrote" in out
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 4
    first = out
    assert run_main(monkeypatch, capsys, "sample.py", *arguments, "--out", tmp_path / "s.jsonl")[1] == first


@pytest.mark.parametrize("arguments, message", [
    ("--tokens 0", "--tokens must be at least 1, given 0"),
    ("--temperature -1", "temperature: given -1.0, must be 0 or more"),
    ("--temperature nan", "temperature: given nan"),
    ("--top-p 0", "top_p: given 0.0, must be above 0 and at most 1"),
    ("--top-k -1", "top_k: given -1, must be from 0 to"),
    ("--min-p 1.1", "min_p: given 1.1, must be from 0 to 1"),
    ("--repetition-penalty 0", "repetition_penalty: given 0.0, must be above 0"),
    ("--seed -1", "seed: given -1, must be from 0 to"),
    ("--tokens 128", "and --tokens 128 do not fit; change one of them"),
    ("--stop=", "--stop must be a text of at least one character"),
    ("--system Be", "--system goes with --chat"),
    ("--prompts nowhere.txt", "--prompts nowhere.txt: no such file, or an empty one"),
    ("--out BASE/config.json", "config.json would be replaced"),
    ("BASE/none", "no folder"),
    ("--chat", "no chat template"),
    ("BARE", "no tokenizer.json in"), ("FOREIGN", "tokens, its tokenizer has 900: they do not belong"),
])
def test_mistakes_are_answered(world, tmp_path, monkeypatch, capsys, arguments, message):
    for name in ("bare", "foreign"):
        (tmp_path / name).mkdir()
        shutil.copy(world.model / "config.json", tmp_path / name)
    if arguments == "FOREIGN":
        tokenizer = load_tokenizer(world.model)
        tokenizer.add_tokens([f"<{i}>" for i in range(900 - tokenizer.get_vocab_size())])
        tokenizer.save(str(tmp_path / "foreign" / "tokenizer.json"))
    words = arguments.replace("BASE", str(world.model)).replace("BARE", str(tmp_path / "bare"))
    words = words.replace("FOREIGN", str(tmp_path / "foreign")).split()
    monkeypatch.setattr(Decoder, "from_pretrained", None)  # no weights are read before
    code, _, err = run_main(monkeypatch, capsys, "sample.py", world.model, *words, "--prompt", "Munich.")
    assert code == 2 and message in err and "Traceback" not in err


def test_something_to_continue_is_needed(world, chat_model, monkeypatch, capsys):
    code, _, err = run_main(monkeypatch, capsys, "sample.py", world.model)
    assert code == 2 and "give --prompt, --prompts or --chat" in err
    code, _, err = run_main(monkeypatch, capsys, "sample.py", chat_model, "--chat", "--prompt", " ")
    assert code == 2 and "the prompt is empty" in err
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", world.model, "--prompt", "", "--tokens", "2")
    assert code == 0 and f"[{world.model}]" in out  # behind an end of text


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_broken_model_writes_nothing(world, tmp_path, monkeypatch, capsys, temperature):
    model = Decoder.from_pretrained(world.model)
    model.model.norm.weight.data[3] = float("inf")
    model.save_pretrained(tmp_path)
    shutil.copy(world.model / "tokenizer.json", tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    arguments = [tmp_path, world.model, "--temperature", temperature, "--out", tmp_path / "s.jsonl"]
    code, out, err = run_main(monkeypatch, capsys, "sample.py", *arguments, "--prompt", "Munich.")
    assert code == 2 and f"{tmp_path}: the model's logits are not finite" in err
    broken, _, text = out.partition(f"[{world.model}]")  # the other model's text is not lost
    assert broken == f"\n> Munich.\n\n[{tmp_path}]\n\n\n" and len(text) > 20
    assert not (tmp_path / "s.jsonl").exists()
    many = [word for _ in range(sample.BATCH + 1) for word in ("--prompt", "Munich.")]
    code, out, err = run_main(monkeypatch, capsys, "sample.py", *arguments, "--tokens", "5", *many)
    assert code == 2 and out.count(f"[{world.model}]") == sample.BATCH + 1


def test_a_file_of_prompts_side_by_side(world, tmp_path, monkeypatch, capsys):
    """Each text is the one that the model writes behind this prompt alone; not all fit into one batch."""
    prompts = ["Munich. Plant 3", "Oxford.", "It builds", *(f"Plant {i}" for i in range(sample.BATCH))]
    (tmp_path / "prompts").write_text("\n\n".join(prompts))
    make_model(tmp_path / "b", world.data, seed=1)
    monkeypatch.setenv("COLUMNS", "203")
    how = ("--temperature 0.9 --min-p 0.01 --top-k 40 --repetition-penalty 1.2 --tokens 4 "
           "--dtype float32".split())
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", world.model, tmp_path / "b", *how, "--prompts",
                            tmp_path / "prompts", "--out", tmp_path / "s.jsonl")
    lines = out.splitlines()
    heads = [line for line in lines if str(world.model) in line]
    assert code == 0 and heads == [f"[{world.model}]".ljust(103) + f"[{tmp_path / 'b'}]"] * len(prompts)
    assert [line for line in lines if line[:2] == "> "] == [f"> {prompt}" for prompt in prompts]
    rows, tokenizer = read_jsonl(tmp_path / "s.jsonl"), load_tokenizer(world.model)
    settings = Sampling(1.2, 0.9, top_k=40, top_p=0.95, min_p=0.01)
    for name in (world.model, tmp_path / "b"):
        model = Decoder.from_pretrained(name).eval()
        for prompt in prompts:
            [tokens] = generate(model, [tokenizer.encode(prompt).ids], 4, settings, model.stop_tokens)
            assert rows.pop(0) == {"model": str(name), "prompt": prompt, "text": tokenizer.decode(tokens)}
    assert not rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_the_model(world, tmp_path, monkeypatch, capsys, dtype):
    how = "--prompt Munich. --tokens 6 --top-k 5 --temperature 2 --logprobs --dtype".split()
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", world.model, *how, str(dtype).split(".")[1],
                            "--out", tmp_path / "s.jsonl")
    [row] = read_jsonl(tmp_path / "s.jsonl")
    written, model = row["logprobs"], Decoder.from_pretrained(world.model, dtype=dtype).eval()
    ids = load_tokenizer(world.model).encode("Munich.").ids
    with torch.no_grad():
        logits = model(torch.tensor([ids + [token["id"] for token in written]]))[0]
    logprobs = logits.float().log_softmax(-1)
    for place, token in enumerate(written, start=len(ids) - 1):
        assert token["logprob"] == pytest.approx(float(logprobs[place, token["id"]]),
                                                 abs=1e-4 if dtype == torch.float32 else 0.05)
        assert f"[{token['logprob']:.2f}]" in out
    assert code == 0 and len(written) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_type_that_is_asked_for(world, dtype):
    chosen = options(models=[world.model], dtype=dtype)
    assert str(sample.Checkpoint(world.model, chosen, Sampling()).model.dtype) == f"torch.{dtype}"


def test_all_end_tokens_and_stop_strings_end_a_text(world, tmp_path, monkeypatch, capsys):
    """A list in generation_config.json, too."""
    tokenizer = load_tokenizer(world.model)
    model, ids = Decoder.from_pretrained(world.model).eval(), tokenizer.encode("Munich.").ids
    [tokens] = generate(model, [ids], 12)
    whole, ends = tokenizer.decode(tokens), [tokens[-1], tokens[5]]
    shutil.copytree(world.model, tmp_path / "m")
    write_json(tmp_path / "m" / "generation_config.json", {"eos_token_id": ends})
    ended = tokenizer.decode(tokens[: min(map(tokens.index, ends))])
    stop, stops = whole[3:6], ["--stop", whole[4:9], "--stop", whole[3:6]]
    for folder, more, text in ((tmp_path / "m", [], ended), (world.model, [], whole),
                               (world.model, stops, whole.partition(stop)[0])):
        how = [*"--prompt Munich. --tokens 12 --temperature 0 --dtype float32 --out".split(),
               tmp_path / "s.jsonl", *more]
        assert run_main(monkeypatch, capsys, "sample.py", folder, *how)[0] == 0
        assert read_jsonl(tmp_path / "s.jsonl")[0]["text"] == text


def test_different_tokenizers_are_said(world, chat_model, monkeypatch, capsys):
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", world.model, chat_model, "--prompt", "Munich.",
                            "--tokens", "2")
    assert code == 0 and out.startswith("note: the tokenizers differ: ")


# ---------------------------------------------------------------- chats
def test_a_chat_prompt_is_the_beginning_of_a_training_example(chat_model):
    """By the model's template, whose end of a turn ends the answer; without --chat it is the text alone."""
    tokenizer = load_tokenizer(chat_model)
    system, answer = ({"role": role, "content": "So."} for role in ("system", "assistant"))
    messages = [system, {"role": "user", "content": "Why?"}, answer]
    [example] = encode_pairs([{"messages": messages}], tokenizer, 256, chat_form(chat_model, tokenizer))
    checkpoint = sample.Checkpoint(str(chat_model), options(chat=True, system="So."), Sampling())
    assert checkpoint.encode("Why?") == example.tokens[: example.learned.argmax()].tolist()
    assert 258 in checkpoint.stop_tokens
    plain = sample.Checkpoint(str(chat_model), options(), Sampling())
    assert plain.encode("Why?") == tokenizer.encode("Why?").ids


@pytest.fixture
def converse(monkeypatch, capsys):
    """A function that types turns, an exception for a key, and returns what is printed."""
    def run(checkpoint: sample.Checkpoint, *typed) -> str:
        keys = iter([*typed, EOFError])

        def type_line(_) -> str:
            key = next(keys)
            if isinstance(key, str):
                return key
            raise key
        monkeypatch.setattr(builtins, "input", type_line)
        sample.converse([checkpoint])
        return capsys.readouterr().out
    return run


def test_a_chat_goes_on_from_its_turns_until_a_reset(chat_model, converse, monkeypatch):
    """What the model reads is the conversation so far, and of that only what is new."""
    checkpoint = sample.Checkpoint(str(chat_model), options(chat=True), Sampling())
    asked, stream = [], sample.stream
    def note(model, prompts, *how):
        assert how[-1] is checkpoint.cache
        asked.append(prompts[0][:])
        return stream(model, prompts, *how)
    monkeypatch.setattr(sample, "stream", note)
    out = converse(checkpoint, "Why?", "", KeyboardInterrupt, "And?", "/reset", "Why?")
    first, second, third = checkpoint.texts
    tokenizer, form = checkpoint.tokenizer, checkpoint.form
    turns = [("user", "Why?"), ("assistant", first.text.strip()), ("user", "And?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert asked[1] == encode_prompt(messages, tokenizer, form).tokens
    assert asked[2] == asked[0] and third.text == first.text and len(first.text) > 3
    assert out.count(f"[{chat_model}]") == 3 and "Ctrl-D ends the chat" in out
    [fresh] = generate(checkpoint.model, [asked[1]], 12, Sampling(), checkpoint.stop_tokens)
    assert second.text == tokenizer.decode(fresh)  # the cache of the first turn changed nothing


def test_ctrl_c_ends_the_text_and_not_the_chat(chat_model, converse, monkeypatch):
    checkpoint, stream = sample.Checkpoint(str(chat_model), options(chat=True), Sampling()), sample.stream
    def interrupted(*how):
        for number, step in enumerate(stream(*how)):
            if number == 6 and len(checkpoint.texts) == 1:
                raise KeyboardInterrupt
            yield step
    monkeypatch.setattr(sample, "stream", interrupted)
    converse(checkpoint, "Why?", "And?")
    cut, following = checkpoint.texts
    assert len(cut.tokens) < len(following.tokens) and cut.ended and following.ended
    assert ("assistant", cut.text.strip()) in checkpoint.turns and len(checkpoint.turns) == 4


def test_a_chat_that_outgrows_the_window_forgets_its_first_turns(chat_model, converse):
    checkpoint = sample.Checkpoint(str(chat_model), options(chat=True, tokens=20), Sampling())
    out = converse(checkpoint, "Why? " * 8, "And? " * 8, "x" * 450, "So? " * 50)
    assert out.count("the conversation has outgrown the 400 tokens of") == 1
    assert out.count("do not fit; change one") == 1
    assert [text.prompt[:4] for text in checkpoint.texts] == ["Why?", "And?", "So? "]
    assert [content[:4] for role, content in checkpoint.turns if role == "user"] == ["And?", "So? "]


def test_the_command_chats(chat_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n"))
    code, out, _ = run_main(monkeypatch, capsys, "sample.py", chat_model, "--chat", "--tokens", "5",
                            "--out", tmp_path / "s.jsonl")
    [row] = read_jsonl(tmp_path / "s.jsonl")
    assert code == 0 and row["prompt"] == "Why?" and "/reset forgets what was said" in out
