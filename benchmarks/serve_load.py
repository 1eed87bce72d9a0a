"""Latency, tokens per second and errors of a served model under parallel clients, behind the proxy with keys.

    python -m benchmarks.serve_load before=base.f16.gguf after=full.f16.gguf reduced=reduced.f16.gguf

llama.cpp's server (package xllamacpp) and nginx with docs/serving/nginx.conf run on free loopback ports. Each
client has a key of its own and sends its next request when the last is answered. Prompts are the beginnings
of texts in qa/general.jsonl; all models get the same. An answer other than 200, a broken connection or a
missing token counts as an error. Writes serve_load.csv and serve_load.md.
"""

import os
import secrets
import shutil
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.common import ROOT, machine, make_parser, report
from benchmarks.hops import LlamaServer, free_port, post, wait_for
from benchmarks.tables import markdown
from nanoprune import command_line
from nanoprune.io.files import write_csv, write_text
from nanoprune.io.jsonl import read_jsonl

CONFIGURATION = ROOT / "docs" / "serving" / "nginx.conf"


# ---------------------------------------------------------------- the proxy


@dataclass(frozen=True)
class Proxy:
    url: str
    keys: dict[str, str]  # by client
    folder: Path  # holds requests.log and error.log

    def authorization(self, client: str) -> dict:
        return {"Authorization": f"Bearer {self.keys[client]}"}


def nginx() -> str | None:
    """nginx's program; Debian keeps it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def proxy(engine: str, clients: list[str], rate: str = "") -> Iterator[Proxy]:
    """nginx before an engine's URL, with a key for each client; `rate` replaces that of the configuration."""
    text, port = CONFIGURATION.read_text(encoding="utf-8"), free_port()
    changes = {"listen 127.0.0.1:8080;": f"listen 127.0.0.1:{port};",
               "server 127.0.0.1:8000;": f"server {engine.removeprefix('http://')};"}
    if rate:
        changes["rate=2r/s"] = f"rate={rate}"
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ValueError(f"{CONFIGURATION} does not hold {old!r} once; it cannot be given free ports")
        text = text.replace(old, new)
    keys = {client: secrets.token_hex(32) for client in clients}
    with TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # its workers are another user's
        write_text(folder / "nginx.conf", text)
        write_text(folder / "keys.conf", "".join(f'"Bearer {key}" {name};\n' for name, key in keys.items()))
        command = [nginx(), "-p", place, "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **quiet) as process:
            try:
                wait_for(f"http://127.0.0.1:{port}/", process)
                yield Proxy(f"http://127.0.0.1:{port}", keys, folder)
            finally:
                process.terminate()


# ---------------------------------------------------------------- the load


class Request(NamedTuple):
    seconds: float
    tokens: int
    error: str  # "" if there was none


def ask(url: str, headers: dict, prompt: str, tokens: int) -> Request:
    """One request for a greedy completion."""
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    began, written, error = time.perf_counter(), 0, ""
    try:
        written = post(f"{url}/v1/completions", body, headers)["usage"]["completion_tokens"]
        error = "" if written == tokens else f"{written} of {tokens} tokens"
    except urllib.error.HTTPError as refusal:
        error = str(refusal.code)
    except (OSError, ValueError, LookupError) as broken:  # no connection, no JSON, no such answer
        error = type(broken).__name__
    return Request(time.perf_counter() - began, written, error)


def load(proxy: Proxy, prompts: list[str], requests: int, tokens: int) -> dict:
    """The measurement of all of the proxy's clients at once, each with so many requests in turn."""
    clients = list(proxy.keys)

    def client(number: int) -> list[Request]:
        headers = proxy.authorization(clients[number])
        return [ask(proxy.url, headers, prompts[(number * requests + i) % len(prompts)], tokens)
                for i in range(requests)]

    began = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = sum(pool.map(client, range(len(clients))), [])
    wall = time.perf_counter() - began
    seconds = [answer.seconds for answer in answers if not answer.error] or [float("nan")]
    return {"clients": len(clients), "requests": len(answers), "p50_s": float(np.percentile(seconds, 50)),
            "p95_s": float(np.percentile(seconds, 95)), "tokens_per_s": sum(a.tokens for a in answers) / wall,
            "errors": sum(bool(answer.error) for answer in answers), "wall_s": wall}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE.gguf")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--tokens", type=int, default=32, help="written for each request")
    args = parser.parse_args()
    if min(args.clients, args.requests, args.tokens) < 1:
        raise ValueError("--clients, --requests and --tokens must be at least 1")
    if not nginx():
        raise ValueError("nginx is not installed; on Debian: apt-get install nginx-light")
    prompts = [row["text"][:300] for row in read_jsonl(ROOT / "qa" / "general.jsonl", ("text",))]
    rows = []
    for model in args.models:
        name, _, file = model.rpartition("=")
        with (closing(LlamaServer(Path(file), slots=args.clients)) as engine,
              proxy(engine.url, [f"client{i}" for i in range(args.clients)]) as front):
            load(front, prompts, 1, 2)  # warms up
            measured = load(front, prompts, args.requests, args.tokens)
        size = round(Path(file).stat().st_size / 1e6, 1)
        rows.append({"model": name or Path(file).stem, "megabytes": size} | measured)
        write_csv(args.out / "serve_load.csv", rows)
    lines = [(row["model"], f"{row['megabytes']:,.0f}", row["requests"], f"{row['p50_s']:.2f} s",
              f"{row['p95_s']:.2f} s", f"{row['tokens_per_s']:.1f}", row["errors"]) for row in rows]
    table = markdown(("model", "MB", "requests", "p50", "p95", "tokens/s", "errors"), lines)
    report([f"# {args.clients} parallel clients", "",
            f"{args.tokens} tokens a request, behind nginx with keys; {machine()}.", "", *table],
           args.out, "serve_load")


if __name__ == "__main__":
    command_line.run(main)
