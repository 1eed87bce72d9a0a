"""Chat forms: the published templates' text and tokens, and a loss on the assistant's answers alone."""

from functools import cache

import pytest
from small import CHATML, byte_tokenizer, make_data
from tokenizers import Tokenizer

from nanoprune.data.chat_format import ChatForm, chat_form, check_messages, encode_chat, render
from nanoprune.data.tokenizer import load_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}


def talk(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CONVERSATIONS = [
    talk("Why?", "So."), [SYSTEM, *talk("Why?", "Därum.")], talk("A?", "B.", "C?", "D."),
    [SYSTEM, *talk("A", "B", "C", "D")],
    talk("  spaces ", " leads and ends "), talk("Lines\n\nof text\n", "\n\nAnswer\nin two lines\n"),
    talk("日本?", "はい 🚗"),
    talk("a", "<think>\nwell\n</think>\n\nyes", "b", "<think>\nso\n</think>\n\nno"),
    talk("x" * 300, "1234567890 " * 30),
]
FORMS = {  # Llama's templates for plain conversations, put down from their published files
    "llama3": "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
              "+ "
              "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% "
              "endif %}"
              "{{ c }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% "
              "endif %}",
    "llama3.2": "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set told = "
                "messages[0]['content'] | trim %}"
                "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
                "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: "
                "December 2023\n' }}"
                "{{- 'Today Date: ' + date_string + '\n\n' }}{{- told }}{{- '<|eot_id|>' }}{%- for m in "
                "messages %}"
                "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
                "'<|eot_id|>' }}"
                "{%- endfor %}{%- if add_generation_prompt %}"
                "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
}


@cache
def tokenizers_of(folder) -> tuple:
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return AutoTokenizer.from_pretrained(folder), load_tokenizer(folder), raw


def check(folder, messages, generate: bool) -> None:
    """Text and tokens are transformers' for this folder's template."""
    theirs, tokenizer, raw = tokenizers_of(folder)
    form = chat_form(folder, tokenizer)
    given = messages[:-1] if generate else messages
    options = {"add_generation_prompt": generate, "date_string": "26 Jul 2024", "enable_thinking": False}
    text = theirs.apply_chat_template(given, tokenize=False, **options)
    assert "".join(piece.text for piece in render(form, given, generate)) == text
    example = encode_chat(tokenizer, form, given, generate)
    ids, learned = example.tokens.tolist(), example.learned.tolist()
    assert ids == raw.encode(text, add_special_tokens=False).ids and len(ids) == len(learned)
    answers = [m["content"].rpartition("</think>")[2].strip() for m in given if m["role"] == "assistant"]
    said = raw.decode([i for i, counts in zip(ids, learned, strict=True) if counts])
    assert all(answer in said for answer in answers) and bool(said) == bool(answers)
    ends = [counts for i,
            counts in zip(ids, learned, strict=True) if i == tokenizer.token_to_id(form.end_of_turn)]
    assert sum(ends) == sum(m["role"] == "assistant" for m in given)


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen2.5-0.5B-Instruct"])
def test_chatml_is_the_published_templates(real, name, messages, generate):
    check(real / "checkpoints" / name, messages, generate)


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS[:7], ids=range(7))
@pytest.mark.parametrize("name", FORMS)
def test_llama3(tmp_path, name, messages, generate):
    folder = byte_tokenizer(tmp_path / "t", LLAMA, bos_token=LLAMA[0], eos_token=LLAMA[4],
                            chat_template=FORMS[name])
    check(folder, messages, generate)


def test_only_the_answers_and_their_ends_are_learned(tmp_path):
    """Turns before and after, names of roles, line ends between turns and empty thoughts are not; spelled
    markers are text.
    """
    messages = [SYSTEM, *talk("One <|im_end|>?", "First.", "Two?", "Second.")]
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    for thinks in (False, True):
        example = encode_chat(tokenizer, ChatForm("chatml", None, thinks), messages)
        ids, learned = example.tokens.tolist(), example.learned.tolist()
        runs, before = [], 0
        for token, counts in zip(ids, learned, strict=True):
            if counts and not before:
                runs.append([])
            if counts:
                runs[-1].append(token)
            before = counts
        assert [tokenizer.decode(run, skip_special_tokens=False) for run in runs] == ["First.<|im_end|>",
                                                                                      "Second.<|im_end|>"]
        assert ids.count(tokenizer.token_to_id("<|im_end|>")) == 5
        assert ("<think>" in tokenizer.decode(ids)) == thinks


def test_a_tokenizer_without_a_form_is_refused(tmp_path):
    folder = make_data(tmp_path / "d")
    with pytest.raises(ValueError, match="knows neither ChatML .* nor Llama 3's form"):
        chat_form(folder, load_tokenizer(folder))


@pytest.mark.parametrize("messages, message", [
    (talk("?"), "no turn of the assistant: there is nothing to learn"),
    ([{"role": "tool", "content": "x"}, *talk("?", "!")], "unknown role 'tool'; roles are system, user, "
                                                          "assistant"),
    ([{"content": "x"}], "unknown role None"), (talk("?", " "), "a turn of the assistant without text"),
    (talk("?", 5), "a turn of the assistant without text"),
    ([SYSTEM | {"content": ""}, *talk("?", "!")], "a turn of the system without text"),
    ("?", "messages must be a system's turn perhaps, .*; given '?'"), ([], "messages must be"),
    (talk("?", "!")[::-1], "by turns, the assistant's last; given assistant, user"),
    ([*talk("?", "!"), SYSTEM], "given user, assistant, system"), (talk("?", "!", "?"), "given user, "
                                                                                        "assistant, user"),
    ([SYSTEM, SYSTEM, *talk("?", "!")], "given system, system, user, assistant"),
])
def test_what_is_no_conversation(messages, message):
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        check_messages(messages, "here")
