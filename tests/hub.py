"""A model hub on localhost, with as much of its interface as snapshot_download uses."""

import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`with Hub({"org/name": folder}, cache) as hub:` serves folders as hub models to processes with
    `hub.environment`; those in `gated` need a licence.
    """

    def __init__(self, models: dict[str, Path], cache: Path, gated: tuple[str, ...] = ()):
        self.models, self.cache, self.requests = models, cache, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(self.path)
                self.answer(send=True)

            def do_HEAD(self) -> None:
                self.answer(send=False)

            def answer(self, send: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
                tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
                resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                found = listing or tree or resolve
                if found is None or found[1] not in hub.models:
                    return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send)
                if found[2] not in ("main", COMMIT):
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, send)
                folder = hub.models[found[1]]
                names = sorted(p.name for p in folder.iterdir() if p.is_file())
                if resolve and found[1] in gated:
                    return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, send)
                if resolve:
                    if resolve[3] not in names:
                        return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, send)
                    data = (folder / resolve[3]).read_bytes()
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    return self.reply(200, data, {"X-Repo-Commit": COMMIT, "ETag": etag}, send)
                if tree:
                    entries = [{"type": "file", "path": n, "size": (folder / n).stat().st_size,
                                "oid": "0" * 40} for n in names]
                    return self.reply(200, json.dumps(entries).encode(), {}, send)
                content = {"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in names],
                           "private": False}
                return self.reply(200, json.dumps(content).encode(), {}, send)

            def reply(self, status: int, body: bytes, headers: dict, send: bool) -> None:
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body)),
                                    "Content-Type": "application/json"} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                if send:
                    self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def environment(self) -> dict[str, str]:
        proxies = {key for key in os.environ if key.lower().endswith("_proxy")}
        ours = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HOME": str(self.cache),
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return {key: value for key, value in os.environ.items() if key not in proxies
                and key != "HF_HUB_OFFLINE"} | ours

    def run(self, code: str) -> subprocess.CompletedProcess:
        """A piece of Python in a process that knows this hub."""
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=self.environment,
                              capture_output=True, text=True)

    def __enter__(self) -> "Hub":
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
