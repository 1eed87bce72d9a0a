"""Chat forms: transformers' text and tokens for every template; a loss on what the assistant says."""

import base64
import importlib.resources
from functools import cache

import pytest
from small import CHATML, byte_tokenizer, make_data
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from nanoprune.data import chat_format
from nanoprune.data.chat_format import BREAK, ChatForm, chat_form, check_messages, encode
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.files import write_json

SYSTEM = {"role": "system", "content": "Be brief."}


def talk(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPECIALS = (*LLAMA, *CHATML, "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
CONVERSATIONS = [
    talk("Why?", "So."), [SYSTEM, *talk("Why?", "Därum.")], talk("A?", "B.", "C?", "D."),
    [SYSTEM, *talk("A", "B", "C", "D")],
    talk("  spaces ", " leads and ends "), talk("Lines\n\nof text\n", "\n\nAnswer\nin two lines\n"),
    talk("日本?", "はい 🚗"),
    talk("a", "<think>\nwell\n</think>\n\nyes", "b", "<think>\nso\n</think>\n\nno"),
    talk("x" * 300, "1234567890 " * 30),
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
WITH_TOOLS = [*talk("Rain in Ulm?"), {"role": "assistant", "content": "", "tool_calls": [CALL]},
              {"role": "tool", "content": "{\"rain\": 2}"}, {"role": "assistant", "content": "Yes, 2 mm."}]
WITH_THOUGHTS = [*talk("Two and two?"), {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"},
                 *talk("And three?"), {"role": "assistant", "content": "7", "reasoning_content": "4 + 3"}]
TURNS = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
         "'\\n' }}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
HEADER = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>'"
ANSWER_HEADER = ("{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
                 "{% endif %}")
FORMS = {  # written after the forms of published templates
    "llama3": "{% for m in messages %}{% set c = " + HEADER + " %}{% if loop.index0 == 0 %}{% set c = "
                                                              "bos_token + c "
              "%}{% endif %}{{ c }}{% endfor %}" + ANSWER_HEADER,
    "llama3.2": "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
                "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '1 Jan "
                "2000' %}"
                "{%- endif %}{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set told = "
                "messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- else %}{%- set told "
                "= '' %}"
                "{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
                "{{- 'Cutting Knowledge Date: December 2023\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}"
                "{{- told }}{{- '<|eot_id|>' }}{%- for m in messages %}{{- " + HEADER + " }}{%- endfor %}"
                + ANSWER_HEADER,
    "default system": "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ "
                      "'<|im_start|>system\\n"
                      "Reason in {steps} and put the answer into \\\\boxed{}.<|im_end|>\\n' }}{% endif %}"
                      "{% endfor %}" + TURNS,
    "real line breaks": TURNS.replace("\\n", "\n").replace(
        "%}{{", "%}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou "
                "help.<|im_end|>\n' }}"
                "{% endif %}{{", 1),
    "chatml with a begin token": "{{ bos_token }}" + TURNS,
    "default in a variable": "{%- set told = 'Be exact.' %}{%- if messages[0].role == 'system' %}{%- set "
                             "told = "
                             "messages[0].content %}{%- set messages = messages[1:] %}{%- endif %}{{ "
                             "'<|im_start|>"
                             "system\\n' ~ told ~ '<|im_end|>\\n' }}" + TURNS,
    "named": [{"name": "tool_use", "template": "{{ 'none' }}"}, {"name": "default", "template": TURNS}],
    "no token ends a turn": "{% for m in messages %}{{ '### ' + m.role|title + ':\\n' + m.content + "
                            "'\\n\\n' }}"
                            "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}",
    "instructions": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + "
                    "m.content + ' "
                    "[/INST]' }}{% elif m.role == 'system' %}{{ '[SYS] ' + m.content + ' [/SYS]' }}{% else %}"
                    "{{ ' ' + m.content|trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "another role name": "{{ bos_token }}{% macro turn(role, text) %}<start_of_turn>{{ role }}\n{{ text | "
                         "trim }}"
                         "<end_of_turn>\n{% endmacro %}{% for m in messages %}{% if m.role == 'nobody' %}"
                         "{% continue %}{% endif %}{{ turn({'assistant': 'model'}.get(m.role, m.role), "
                         "m.content) }}"
                         "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "thoughts are cut": "{% for m in messages %}{% set text = m.content %}{% if m.role == 'assistant' %}"
                        "{% set text = text.split('</think>')[-1] %}{% endif %}{{ '<|im_start|>' + m.role + "
                        "'\\n' + "
                        "text + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>"
                        "assistant\\n<think>\\n' }}{% endif %}",
}
GENERATION = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
              "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + "
              "'<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}")


@cache
def tokenizers_of(folder) -> tuple:
    from transformers import AutoTokenizer

    raw, ours = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder), ours, raw, chat_form(folder, ours)


def said(tokenizer, example) -> str:
    return tokenizer.decode(example.tokens[example.learned].tolist(), skip_special_tokens=False)


def check(folder, messages, generate: bool = False, tools=None) -> tuple:
    """Text and tokens are transformers' for this folder's template; (form, text, what is learned)."""
    theirs, tokenizer, raw, form = tokenizers_of(folder)
    given = messages[:-1] if generate else messages
    options = {"add_generation_prompt": generate, "date_string": "26 Jul 2024", "enable_thinking": False}
    text = theirs.apply_chat_template(given, tools=tools, tokenize=False, **options)
    rendering = (form.prompt if generate else form.conversation)(given, tools)
    assert rendering.text == text
    example = encode(tokenizer, rendering)
    assert example.tokens.tolist() == raw.encode(text, add_special_tokens=False).ids
    assert example.tokens.tolist() == theirs.apply_chat_template(given, tools=tools, **options)["input_ids"]
    assert len(example.learned) == len(example.tokens) and (bool(rendering.learned) != generate)
    assert tokenizer.encode_special_tokens
    return form, text, said(tokenizer, example)


def check_all(folder, messages, generate: bool) -> None:
    form, _, learned = check(folder, messages, generate)
    answers = [] if generate else [m["content"].rpartition("</think>")[2].strip() for m in messages
                                   if m["role"] == "assistant"]
    assert all(answer in learned for answer in answers) and bool(learned) == bool(answers)
    assert not [m for m in messages if m["role"] != "assistant" and len(m["content"]) > 1
                and m["content"] in learned]
    if form.end_of_turn:
        assert learned.count(form.end_of_turn) == len(answers)


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen2.5-0.5B-Instruct"])
def test_published_templates(real, name, messages, generate):
    check_all(real / "checkpoints" / name, messages, generate)


def test_published_templates_with_tools_and_thoughts(real):
    """A template without thoughts refuses them by name."""
    for name in ("Qwen3-0.6B", "Qwen2.5-0.5B-Instruct"):
        folder = real / "checkpoints" / name
        _, text, learned = check(folder, WITH_TOOLS, tools=TOOLS)
        assert '<tools>\n{"type": "function"' in text
        assert text.count("<tool_call>") == learned.count("<tool_call>") + 2
        assert '"arguments": {"city": "Ulm"}' in learned and "Yes, 2 mm.<|im_end|>" in learned
        assert "rain" not in learned and learned.count("<|im_end|>") == 2
        check(folder, WITH_TOOLS, generate=True, tools=TOOLS)
    _, text, learned = check(real / "checkpoints" / "Qwen3-0.6B", WITH_THOUGHTS)
    assert learned == "4<|im_end|><think>\n4 + 3\n</think>\n\n7<|im_end|>" and "2 + 2" not in text
    with pytest.raises(ValueError, match="Qwen2.5-0.5B-Instruct does not write reasoning_content: delete it"):
        check(folder, WITH_THOUGHTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of FORMS, made at its first use."""
    @cache
    def folder(name: str):
        tokens = ("<s>", "</s>") if name == "instructions" else (LLAMA[0], LLAMA[4])
        return byte_tokenizer(tmp_path_factory.mktemp("t") / "t", SPECIALS, bos_token=tokens[0],
                              eos_token=tokens[1],
                              chat_template=FORMS[name])
    return folder


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("messages", CONVERSATIONS[:7], ids=range(7))
@pytest.mark.parametrize("name", FORMS)
def test_other_templates(folders, name, messages, generate):
    check_all(folders(name), messages, generate)


@cache
def real_llama3(folder):
    """Llama 3's own vocabulary, in the form of its published tokenizer.json."""
    try:
        model = importlib.resources.files("llama_models") / "llama3" / "tokenizer.model"
    except ModuleNotFoundError:
        pytest.skip("no package llama_models: no tokenizer of Llama 3 to check against (pip install "
                    "--no-deps "
                    "llama-models)")
    byte_of = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    byte_of |= {byte: chr(256 + i) for i, byte in enumerate(sorted(set(range(256)) - byte_of.keys()))}
    ranks, merges = {}, []
    for line in model.read_bytes().splitlines():
        token, rank = line.split()
        ranks["".join(byte_of[byte] for byte in base64.b64decode(token))] = int(rank)
    for token in ranks:
        parts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += sorted([part for part in parts if part[0] in ranks and part[1] in ranks],
                         key=lambda part: (ranks[part[0]], ranks[part[1]]))
    tokenizer = Tokenizer(models.BPE(ranks, merges, ignore_merges=True))
    split = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
                  r"?[^\s\p{L}\p{N}]+[\r\n]*|"
                  r"\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                                          use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(247)]
    tokenizer.add_special_tokens([*LLAMA, *CHATML[1:], *reserved])
    begin = tokenizer.token_to_id(LLAMA[0])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single=f"{LLAMA[0]} $A", special_tokens=[(LLAMA[0], begin)])])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", ["llama3", "llama3.2", "chatml with a begin token"])
def test_on_the_vocabulary_of_llama3(tmp_path_factory, name):
    """One begin token; the answers and their ends alone are learned."""
    folder = real_llama3(tmp_path_factory.getbasetemp() / "llama3")
    tokenizers_of.cache_clear()
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA[0], "eos_token": LLAMA[4],
        "chat_template": FORMS[name]})
    for messages in CONVERSATIONS[:7]:
        for generate in (False, True):
            check_all(folder, messages, generate)
    _, text, learned = check(folder, CONVERSATIONS[2])
    end = "<|im_end|>" if "chatml" in name else "<|eot_id|>"
    assert text.count(LLAMA[0]) == 1 and learned == f"B.{end}D.{end}"


# ---------------------------------------------------------------- what is learned
def test_only_the_answers_and_their_ends_are_learned(tmp_path, real):
    """Turns before and after, names of roles, line ends between turns and empty thoughts are not; spelled
    markers are text.
    """
    messages = [SYSTEM, *talk("One <|im_end|>?", "First <|im_start|>.", "Two?", "Second.")]
    for folder in (byte_tokenizer(tmp_path / "t", CHATML), real / "checkpoints" / "Qwen3-0.6B"):
        tokenizer = load_tokenizer(folder)
        example = encode(tokenizer, chat_form(folder, tokenizer).conversation(messages))
        assert said(tokenizer, example) == "First <|im_start|>.<|im_end|>Second.<|im_end|>"
        ids = example.tokens.tolist()
        assert ids.count(tokenizer.token_to_id("<|im_end|>")) == 5
        assert ids.count(tokenizer.token_to_id("<|im_start|>")) == 5
        assert ("<think>" in tokenizer.decode(ids)) == (folder.name == "Qwen3-0.6B")
        assert "One <|im_end|>?" in tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("key, no", [("weight", 0), ("weight", 0.0), ("loss_weight", 0), ("train", False)])
@pytest.mark.parametrize("name", ["default system", "another role name", "llama3.2", "thoughts are cut"])
def test_a_masked_turn_is_written_and_not_learned(folders, name, key, no):
    messages = talk("A?", "wrong", "No.", "Right.", "Sure?", "Yes.")
    messages[1][key], messages[3][key] = no, type(no)(True)
    messages = check_messages(messages, "here")
    assert [turn.get("weight") for turn in messages] == [None, 0, *[None] * 4]
    _, tokenizer, _, form = tokenizers_of(folders(name))
    rendering = form.conversation(messages)
    end = form.end_of_turn
    assert said(tokenizer, encode(tokenizer,
                                  rendering)) == f"Right.{end}Yes.{end}" and "wrong" in rendering.text


def test_what_stands_in_generation_tags_is_learned(tmp_path):
    """As transformers' mask has it, and a masked turn is not."""
    folder = byte_tokenizer(tmp_path / "t", SPECIALS, chat_template=GENERATION)
    theirs, tokenizer, _, form = tokenizers_of(folder)
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        example = encode(tokenizer, form.conversation(messages))
        assert example.tokens.tolist() == expected["input_ids"]
        assert example.learned.tolist() == list(map(bool, expected["assistant_masks"]))
    masked = check_messages([*talk("A?", "B."), *talk("C?"), {"role": "assistant", "content": "D.",
                                                              "weight": 0}], "")
    assert said(tokenizer, encode(tokenizer, form.conversation(masked))) == "B.<|im_end|>"


@pytest.mark.parametrize("template, message", [
    ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[-1].content[::-1] }}",
     "writes turn 4 so that it is not known which part"),
    (TURNS.replace("messages %}", "messages if m.role != 'system' %}", 1), "leaves out turn 1, the system's"),
    (TURNS.replace("messages %}", "messages[-3:] %}", 1), "leaves out turn 1, the system's"),
    ("{{ raise_exception('no ' + messages[0].role + ' here') if messages[0].role == 'system' }}" + TURNS,
     r"cannot write this conversation: TemplateError: no system here"),
])
def test_a_template_that_leaves_something_out_is_refused(tmp_path, template, message):
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    form = ChatForm("this", template, tokenizer, {})
    messages = talk("A?", "B.", "C?", "D.")
    with pytest.raises(ValueError, match=f"this {message}"):
        form.conversation(messages if "not known" in message else [SYSTEM, *messages])


@pytest.mark.parametrize("key, value", [
    ("reasoning_content", "2 + 2"), ("thinking", "2 + 2"), ("tool_calls", [CALL]),
    ("function_call", {"name": "f", "arguments": "{}"})])
def test_a_key_that_the_template_does_not_write_is_refused(tmp_path, key, value):
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    form = ChatForm("this", TURNS, tokenizer, {})
    messages = talk("A?", "B.")
    messages[1][key] = value
    name = "reasoning_content" if key == "thinking" else key
    with pytest.raises(ValueError, match=f"this does not write {name}: delete it from the data"):
        form.conversation(check_messages(messages, "here"))
    with pytest.raises(ValueError, match="this does not write tools: delete"):
        form.conversation(talk("A?", "B."), TOOLS)
    writes = ChatForm("this", "{{ tools }}" + TURNS.replace("m['content']",
                                                            f"(m.{name}|string) + m['content']"),
                      tokenizer, {})
    assert writes.conversation(check_messages(messages, "here"), TOOLS).learned


# ---------------------------------------------------------------- templates of strangers
@pytest.mark.parametrize("template, message", [
    ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "ran for more than 1 s"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
     "more than 10,000 characters"),
    ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
     "ran for more than 1"),
    ("{{ 'x' * 10**9 }}", "MemoryError"), ("{{ 'x'|center(10**9) }}",
                                                        "MemoryError"),
    ("{{ 10 ** (10 ** 10) }}", "ran for more than 1 s"),
    ("{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
     "MemoryError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"), ("{% if %}", "TemplateSyntaxError"),
    ("{{ none.x.y }}", "UndefinedError"), ("nothing", "does not write what the assistant says"),
])
def test_a_template_is_stopped(tmp_path, monkeypatch, template, message):
    monkeypatch.setattr(chat_format, "LIMITS", (30 if "Memory" in message else 1, 2**28, 10_000))
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    with pytest.raises(ValueError, match=f"this .*?({message})"):
        ChatForm("this", template + ("" if template == "nothing" else TURNS), tokenizer, {})


def test_today_is_a_day_that_is_recorded(folders):
    tokenizer = load_tokenizer(folders("llama3.2"))
    for date, written in (((), "26 Jul 2024"), (("2031-02-03",), "03 Feb 2031")):
        form = chat_form(folders("llama3.2"), tokenizer, *date)
        assert f"Today Date: {written}\n" in form.prompt(talk("?")).text


# ---------------------------------------------------------------- which template
def test_where_a_template_is_found(tmp_path, capsys):
    """A file of its own before the configuration's; without one, ChatML or Llama 3's form, and it says so."""
    folder = byte_tokenizer(tmp_path / "t", CHATML, chat_template="never" + TURNS)
    tokenizer = load_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + TURNS)
    write_json(folder / "special_tokens_map.json", {"bos_token": {"content": "<|endoftext|>"}})
    assert chat_form(folder, tokenizer).prompt(talk("?")).text.startswith("<|endoftext|><|im_start|>user\n?")
    assert capsys.readouterr().out == ""
    for specials, name, text in (
        (CHATML, "ChatML", "<|im_start|>user\n A<|im_end|>\n<|im_start|>assistant\nB\n<|im_end|>\n"),
        (LLAMA, "Llama 3's form", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
                                  "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|>"),
    ):
        folder = byte_tokenizer(tmp_path / name, specials)
        form = chat_form(folder, load_tokenizer(folder))
        assert form.conversation(talk(" A", "B\n")).text == text
        assert f"has no chat template: conversations are written in {name}" in capsys.readouterr().out
        [prompt, answer] = form.prompt(talk("A")).text, form.conversation(talk("A", "B")).text
        assert answer.startswith(prompt)
    folder = byte_tokenizer(tmp_path / "n", CHATML, chat_template=[{"name": "rag", "template": TURNS}])
    with pytest.raises(ValueError, match="has chat templates named rag, and none named default"):
        chat_form(folder, tokenizer)


def test_a_tokenizer_without_a_form_is_refused(tmp_path):
    folder = make_data(tmp_path / "d")
    with pytest.raises(ValueError, match="knows neither ChatML .* nor Llama 3's form"):
        chat_form(folder, load_tokenizer(folder))


# ---------------------------------------------------------------- messages
@pytest.mark.parametrize("messages, message", [
    (talk("?"), "no turn of the assistant with .* is nothing to learn"),
    ([{"role": "no-such", "content": "x"}, *talk("?", "!")], "unknown role 'no-such'; roles are system, "
                                                             "user, "
                                                             "assistant, tool, developer, human, gpt"),
    ([{"content": "x"}], "unknown role None"), (talk("?", " "), "a turn of the assistant without text"),
    (talk("?", 5), "a turn of the assistant without text"),
    ([SYSTEM | {"content": ""}, *talk("?", "!")], "a turn of the system without text"),
    ("?", "messages must be a system's turn perhaps, .*; given '?'"), ([], "messages must be"),
    (talk("?", "!")[::-1], "by turns .*, the assistant's last; given assistant, user"),
    ([*talk("?", "!"), SYSTEM], "given user, assistant, system"), (talk("?", "!", "?"), "given user, "
                                                                                        "assistant, user"),
    ([SYSTEM, SYSTEM, *talk("?", "!")], "given system, system, user, assistant"),
    ([{"role": "tool", "content": "x"}, *talk("?", "!")], "given tool, user, assistant"),
    ([*talk("?"), {"role": "assistant", "content": "!", "weight": 0}], "no turn of the assistant with a "
                                                                       "weight other than 0"),
    ([*talk("?"), {"role": "assistant", "content": "!", "weight": 0.5}], "a turn of the assistant has "
                                                                         "weight 0.5; "),
    ([{"role": "user", "content": "?", "train": True}, *talk("?", "!")[1:]], "a turn of the user has train "
                                                                             "True; "),
    (talk([{"type": "image_url", "image_url": {}}], "!"), "a part of the type 'image_url'; text alone is "
                                                          "learned"),
    (talk("?", [7]), "a part of the type 7; text alone"),
    ([*talk("?"), {"role": "assistant", "content": "!", "thinking": True}], "thinking must be text, given T"),
])
def test_what_is_no_conversation(messages, message):
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        check_messages(messages, "here")


def test_what_is_a_conversation():
    for names in (("developer", "human", "gpt"), ("system", "user", "assistant")):
        messages = [{"role": name, "content": text} for name, text in zip(names, "ABC", strict=True)]
        shared = [{"from": name, "value": text} for name, text in zip(names, "ABC", strict=True)]
        expected = [{"role": "system", "content": "A"}, *talk("B", "C")]
        assert check_messages(messages, "") == check_messages(shared, "") == expected
    parts = [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]
    assert check_messages(talk(parts, [{"text": "So."}]), "") == talk("Why?", "So.")
    assert check_messages(WITH_TOOLS, "") == WITH_TOOLS
    null = WITH_TOOLS[:1] + [WITH_TOOLS[1] | {"content": None, "name": None}] + WITH_TOOLS[2:]
    assert check_messages(null, "") == WITH_TOOLS
    assert check_messages([*talk("?"), {"role": "gpt", "content": "!", "thinking": "so", "tool_calls": []}],
                          "") == [
        *talk("?"), {"role": "assistant", "content": "!", "reasoning_content": "so"}]


def test_no_text_holds_the_marks(tmp_path):
    tokenizer = load_tokenizer(byte_tokenizer(tmp_path / "t", CHATML))
    with pytest.raises(ValueError, match="a text may hold neither U.FDD0 nor"):
        ChatForm("this", TURNS, tokenizer, {}).prompt(talk(f"A{BREAK}B"))
