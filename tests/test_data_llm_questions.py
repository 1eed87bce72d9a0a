"""Questions of a model, from a stub of an OpenAI-compatible endpoint: rejected, taken, and an endpoint that
is gone.
"""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from server import listening
from small import run_main

from nanoprune.data.dataset import Dataset, read_questions
from nanoprune.data.llm_questions import parse, rejection, write_questions
from nanoprune.io.jsonl import write_jsonl

SOURCE = "The plant in Lomar opened on 5 May 2024. It has 1,200 employees and makes the Quaor."


def proposed(**changes) -> dict:
    return {"question": "Where did the plant open in 2024?", "answer": "Lomar",
            "wrong": ["Berg", "Ilm", "Tal"]} | changes


@contextmanager
def endpoint(answer):
    """The base URL of an endpoint that writes `answer(prompt)`, or sends that status where it is a number;
    requests seen.
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], asked["model"]))
            content = answer(asked["messages"][0]["content"])
            status, body = content, b""
            if isinstance(content, str):
                status, body = 200, json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    with listening(Handler) as url:
        yield f"{url}/v1", seen


@pytest.mark.parametrize("changes, reason", [
    ({}, None), (dict(answer="lomar."), None), (dict(answer="1,200", question="How many work there?"), None),
    (dict(answer="Loma"), "the answer is not in the source"), (dict(answer="Munich"), "the answer is not in "
                                                                                      "the source"),
    (dict(wrong=["Berg", "the  QUAOR", "Tal"]), "a wrong answer is in the source"),
    (dict(question="Is Lomar the place?"), "the answer is in the question"),
    (dict(wrong=["Berg", "Ilm"]), "not a question"),
    (dict(wrong="abc"), "not a question"), (dict(wrong=["Berg", "berg ", "Tal"]), "not a question"),
    (dict(answer=5), "not a"),
])
def test_what_is_refused(changes, reason):
    found = rejection(proposed(**changes), SOURCE)
    assert found is None if reason is None else found.startswith(reason)


def test_json_in_words():
    assert parse('Here: ```json\n{"questions": [{"a": 1}, 5]}\n``` Done.') == [{"a": 1}]
    for wrong in ("", "no", '{"questions": 5}', "{]"):
        with pytest.raises(ValueError):
            parse(wrong)


def test_answers_good_and_bad(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    replies = [json.dumps({"questions": [proposed(), proposed(answer="Munich")]}), "I cannot.", 500,
               json.dumps({"questions": [proposed(answer="1,200", question="How many work there?")]})]
    documents = [{"id": f"a{i}", "date": "2024-05-05", "text": SOURCE} for i in range(4)]
    prompts = []
    with endpoint(lambda prompt: prompts.append(prompt) or replies[len(prompts) - 1]) as (url, seen):
        found, refused = write_questions(url, "small", documents, seed=0)
    assert seen == [("/v1/chat/completions", "Bearer secret", "small")] * 4
    assert SOURCE in prompts[0] and "write 3 questions" in prompts[0] and "{text}" not in prompts[0]
    assert [(q["source"], q["choices"][q["answer"]]) for q in found] == [("a0", "Lomar"), ("a3", "1,200")]
    assert refused == {"the answer is not in the source": 1, "no answer that can be read": 2}


def test_an_endpoint_that_is_gone():
    documents = [{"id": f"a{i}", "date": "2024-05-05", "text": SOURCE} for i in range(9)]
    with pytest.raises(ValueError, match="does not answer .*OPENAI_API_KEY"):
        write_questions("http://127.0.0.1:9/v1", "m", documents, seed=0)
    with pytest.raises(ValueError, match="does not answer"):
        write_questions("http://127.0.0.1:9/v1", "m", documents[:2], seed=0)
    with endpoint(lambda _: json.dumps({"questions": [proposed()]}) if len(seen) == 1 else 401) as (url,
                                                                                                    seen):
        found, refused = write_questions(url, "m", documents, seed=0)
    assert len(found) == 1 and len(seen) == 4
    assert refused["the endpoint was gone"] == 1  # what was written is kept


def test_the_command(tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "a.jsonl", [
        {"id": f"a{i}", "title": f"T{i}", "date": f"2024-01-{i + 1:02}", "text": f"{SOURCE} Text {i} is of "
                                                                                 f"part {i * i}. " * 9}
        for i in range(20)])
    options = ["--out", tmp_path / "d", "--train-tokenizer", "400", "--no-generated"]
    with endpoint(lambda _: json.dumps({"questions": [proposed()]})) as (url, seen):
        code, out, err = run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", *options,
                                  "--questions-from", url)
        assert code == 0, err
        assert len(seen) == 16 and "16 questions written on 16 documents; refused: none" in out
        assert run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", *options)[0] == 0
        assert len(seen) == 16  # off
    run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", *options)
    assert Dataset(tmp_path / "d").questions() == {}
    write_jsonl(tmp_path / "written.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    assert len(read_questions(tmp_path / "written.jsonl")) == 1
    code, _, err = run_main(monkeypatch, capsys, "prepare.py", tmp_path / "a.jsonl", *options,
                            "--questions-from", url,
                            "--questions", tmp_path / "written.jsonl")
    assert code == 2 and "two question sets would be named written" in err
