"""docs/serving.md: the proxy with keys before an engine, and a model's numbers on every hop.

The proxy is the real nginx with docs/serving/nginx.conf, the engine behind it a small server of this test.
"""

import csv
import json
import os
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from server import listening
from small import ROOT

from benchmarks import hops, serve_load
from model import Decoder
from nanoprune.data.token_file import write_documents
from nanoprune.data.tokenizer import load_tokenizer
from nanoprune.io.files import make_folder, write_json
from nanoprune.io.hub import copy_tokenizer
from nanoprune.io.jsonl import read_jsonl
from prune import drop_blocks

SECRET = "a prompt that no log may hold"
WAIT = 0.05  # seconds that the engine takes
needs_nginx = pytest.mark.skipif(not serve_load.nginx(), reason="nginx is not installed: apt-get install "
                                                                "nginx-light")
needs_engine = pytest.mark.skipif(bool(hops.missing("xllamacpp", "convert_hf_to_gguf")),
                                  reason="no GGUF engine: docs/serving.md names its packages")


@contextmanager
def engine():
    """An engine's URL, and the headers of what reached it. It fails where the prompt says so."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(dict(self.headers))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(WAIT)
            if body.get("stream"):
                return self.stream()
            fails = body["prompt"] == "fail"
            answer = json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}).encode()
            self.send_response(500 if fails else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def stream(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"5\r\nfirst\r\n", b"4\r\nlast\r\n0\r\n\r\n"):
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(4 * WAIT)

        def log_message(self, *_) -> None:
            pass

    with listening(Handler) as url:
        yield url, seen


def status(url: str, headers: dict | None = None, body: dict | None = None) -> tuple[int, dict, str]:
    """Status, headers and body of an answer, refusals too."""
    data = json.dumps(body or {"prompt": SECRET, "max_tokens": 3}).encode()
    try:
        with urlopen(Request(url, data, headers or {}), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except HTTPError as refusal:
        return refusal.code, dict(refusal.headers), refusal.read().decode()


@needs_nginx
def test_only_known_keys_reach_the_engine_and_the_log_names_clients_not_keys():
    with engine() as (url, seen), serve_load.proxy(url, ["alice", "bob"]) as front:
        api, key = f"{front.url}/v1/completions", front.keys["alice"]
        for wrong in ({}, {"Authorization": f"Bearer {key[:-1]}"}, {"Authorization": key},
                      {"Authorization": "Bearer no-such"}, {"Authorization": "Bearer "}, {"X-Api-Key": key}):
            code, headers, text = status(api, wrong)
            assert (code, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert json.loads(text)["error"]["type"] == "authentication_error"
        assert seen == []
        for client in ("alice", "bob"):
            code, _, text = status(f"{api}?key={key}", front.authorization(client))
            assert (code, json.loads(text)["usage"]["completion_tokens"]) == (200, 3)
        assert len(seen) == 2 and all("Authorization" not in headers for headers in seen)
        for path in ("/slots", "/metrics", "/v2/completions", "/v1/../slots"):
            code, _, text = status(front.url + path, front.authorization("alice"))
            assert (code, json.loads(text)["error"]["type"]) == (404, "not_found_error")
        assert status(api, front.authorization("bob"), {"prompt": "x" * 2**20})[0] == 413
        log, errors = ((front.folder / name).read_text() for name in ("requests.log", "error.log"))
    lines = [json.loads(line) for line in log.splitlines()]
    answered = [line for line in lines if line["status"] == 200]
    assert [(line["client"], line["path"]) for line in answered] == [
        ("alice", "/v1/completions"), ("bob", "/v1/completions")]
    for line in answered:  # nginx reads its clock once for all events that come together
        assert 10 > line["seconds"] > 0 and 10 > float(line["engine_seconds"]) > WAIT / 2
    assert [line["status"] for line in lines].count(401) == 6
    for text in (log, errors):
        assert SECRET not in text and not any(key[:-1] in text for key in front.keys.values())


@needs_nginx
def test_a_client_over_the_limit_waits_and_the_others_do_not():
    with engine() as (url, _), serve_load.proxy(url, ["alice", "bob"]) as front:
        api = f"{front.url}/v1/completions?key={front.keys['alice']}"
        codes = [status(api, front.authorization("alice")) for _ in range(11)]
        assert [code for code, _, _ in codes[:9]] == [200] * 9  # one, and a burst of eight
        code, headers, text = codes[-1]
        assert (code, headers["Retry-After"]) == (429, "1")
        assert json.loads(text)["error"]["type"] == "rate_limit_error"
        assert status(api, front.authorization("bob"))[0] == 200
        log, errors = ((front.folder / name).read_text() for name in ("requests.log", "error.log"))
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["client"] for line in lines if line["status"] == 429} == {"alice"}
    assert front.keys["alice"] not in log + errors


@needs_nginx
def test_tokens_pass_as_they_come_and_an_engine_that_is_down_is_said():
    with engine() as (url, _), serve_load.proxy(url, ["alice"]) as front:
        request = Request(f"{front.url}/v1/completions", b'{"stream": true}', front.authorization("alice"))
        with urlopen(request, timeout=10) as answer:
            assert answer.read(5) == b"first"
            began = time.perf_counter()
            assert answer.read(4) == b"last"
            assert time.perf_counter() - began > WAIT  # the first part did not wait for the last
    with serve_load.proxy(f"http://127.0.0.1:{hops.free_port()}", ["alice"]) as front:
        code, _, text = status(f"{front.url}/v1/models", front.authorization("alice"))
    assert (code, json.loads(text)["error"]["type"]) == (502, "server_error")


@needs_nginx
def test_the_load_counts_latency_tokens_and_errors_of_parallel_clients():
    with engine() as (url, _), serve_load.proxy(url, [f"client{i}" for i in range(8)]) as front:
        good = serve_load.load(front, ["a", "b"], 2, 5)
        bad = serve_load.load(front, ["a", "fail"], 2, 5)
        assert (good["clients"], good["requests"], good["errors"], bad["errors"]) == (8, 16, 0, 8)
        assert WAIT <= good["p50_s"] <= good["p95_s"] < good["wall_s"]
        assert good["tokens_per_s"] == pytest.approx(16 * 5 / good["wall_s"])
        assert good["wall_s"] < 16 * WAIT  # clients do not wait for each other
        assert bad["tokens_per_s"] == pytest.approx(8 * 5 / bad["wall_s"])


@pytest.fixture
def run_hops(tmp_path, monkeypatch, capsys):
    """A function that runs the benchmark on models: (rows of hops.csv, text of hops.md, stderr)."""
    def run(data: Path, models: list, *options) -> tuple[list[dict], str, str]:
        arguments = ["--data", data, "--documents", 3, "--prompt", 5, "--write", 4, "--out", tmp_path,
                     "--work", tmp_path / "work", *options]
        monkeypatch.setattr(sys, "argv", ["hops", *map(str, [*models, *arguments])])
        hops.main()
        with open(tmp_path / "hops.csv", newline="") as file:
            return list(csv.DictReader(file)), (tmp_path / "hops.md").read_text(), capsys.readouterr().err
    return run


def test_hops_without_an_engine_compare_nanoprune_with_transformers(world, run_hops, monkeypatch):
    monkeypatch.setattr(hops, "missing", lambda *packages: sorted({*packages} - {"transformers"}))
    rows, page, messages = run_hops(world.data, [f"whole={world.model}"], "--tokens", 30)
    for name in ("llama.cpp", "transformers serve", "nf4"):
        assert f"{name} left out, not installed: " in messages
    assert [row["hop"] for row in rows] == ["nanoprune"] * 3 + ["transformers"] * 3
    assert all(abs(float(row["difference"])) < 1e-4 and row["same"] == "4" for row in rows)
    assert all(float(row["logprob_difference"]) < 1e-3 for row in rows)
    assert "12 of 12" in page and "over" not in page


def test_a_hop_with_other_numbers_exceeds_its_tolerance():
    document = hops.Document([1, 2, 3], [1, 2], "a", [1])
    ours, theirs = (hops.Result(nll, written, np.array([-1.0, last])) for nll, written, last in
                    ((2.0, [5, 6], -2.0), (2.1, [5, 7], -9.0)))
    row, = hops.compare([theirs], [ours], [document], None)
    assert row["difference"] == pytest.approx(0.05) and (row["same"], row["logprob_difference"]) == (1, 0.0)
    row |= {"model": "a", "hop": "llama.cpp", "weights": "f16", "megabytes": 1.0}
    assert "**over 1e-02** | 1 of 2" in hops.same_numbers([row])[-1]


def test_a_server_that_gives_text_alone_is_compared_by_the_tokens_of_its_text(world):
    tokenizer = load_tokenizer(world.model)
    prompt, word = tokenizer.encode("The new").ids, tokenizer.encode(" car").ids
    letters = [token for letter in " car" for token in tokenizer.encode(letter).ids]
    assert len(letters) > len(word)  # another way to write the same text
    document = hops.Document(prompt, [1], "The new", prompt)
    ours = hops.Result(1.0, letters, np.zeros(len(letters)))
    for written, same in ((word, len(word)), (tokenizer.encode(" bus").ids, 0)):
        row, = hops.compare([hops.Result(np.nan, written, None)], [ours], [document], tokenizer)
        assert (row["same"], row["written"]) == (same, len(word))


@needs_engine
def test_a_tokenizer_that_the_converter_does_not_know_is_said(world, run_hops):
    rows, _, messages = run_hops(world.data, [world.model], "--tokens", 30, "--hops", "llama.cpp")
    assert {row["hop"] for row in rows} == {"nanoprune"}
    assert "it knows tokenizers by a hash" in messages and "Serve the folder with" in messages


@needs_engine
def test_a_real_pruned_model_gives_the_same_numbers_in_llama_cpp(run_hops, tmp_path):
    base = Path(os.environ.get("NANOPRUNE_MODELS", "no-such")) / "smollm2"
    if not base.is_dir():
        pytest.skip("NANOPRUNE_MODELS holds no smollm2: no model whose tokenizer the converter knows")
    model, data, reduced = Decoder.from_pretrained(base), tmp_path / "data", tmp_path / "reduced"
    drop_blocks(model, [14])
    model.save_pretrained(reduced)
    copy_tokenizer(base, reduced)
    copy_tokenizer(base, make_folder(data))
    tokenizer, size = load_tokenizer(base), model.config.vocab_size
    texts = [row["text"] for row in read_jsonl(ROOT / "qa" / "general.jsonl", ("text",))[:3]]
    write_documents(data / "test.safetensors", [(tokenizer.encode(text).ids, 1) for text in texts], 3, size)
    write_json(data / "meta.json", {"tokenizer_hash": "", "vocab_size": size, "end_token": 0})
    rows, _, _ = run_hops(data, [reduced], "--tokens", 24, "--hops", "llama.cpp")
    assert [row["weights"] for row in rows[::3]] == ["fp32", "f16", "q8_0"]
    assert all(0 < abs(float(row["difference"])) < 1e-2 for row in rows[3:6])
    assert np.mean([float(row["difference"]) for row in rows[6:]]) < 0.2
