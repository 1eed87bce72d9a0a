"""A model hub on localhost, with as much of its interface as downloads and uploads use."""

import base64
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
LARGE = ".safetensors"  # files that are kept by their SHA-256


class Hub:
    """`with Hub({"org/name": folder}, cache) as hub:` serves folders as hub models to processes with
    `hub.environment`; `faults` are by model: "gated", "damaged" (files on their way), "short" (their end is
    missing), "public", "breaks" (the second large file is refused, once), or a status, such as 401.
    """

    def __init__(self, models: dict[str, Path], cache: Path, faults: dict[str, str | int] | None = None):
        self.models, self.cache, self.requests, self.faults = dict(models), cache, [], faults or {}
        self.uploads, self.objects, self.private = [], {}, {}  # names; content by hash; model: private
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
                listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
                tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
                resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
                found = listing or tree or resolve
                fault = hub.faults.get(found[1]) if found else None
                if isinstance(fault, int):
                    return self.reply(fault, b"{}", {}, send)
                if found is None or found[1] not in hub.models:
                    return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send)
                if found[2] not in (None, "main", COMMIT):
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, send)
                folder = hub.models[found[1]]
                files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
                if resolve and fault == "gated":
                    return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, send)
                if resolve:
                    if resolve[3] not in files:
                        return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, send)
                    data = files[resolve[3]]
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "X-Linked-Size": str(len(data))}
                    if resolve[3].endswith(LARGE):
                        data = data[::-1] if fault == "damaged" else data[:-1] if fault == "short" else data
                    return self.reply(200, data, headers, send)
                if tree:
                    entries = []
                    for name, data in files.items():
                        entries.append({"type": "file", "path": name, "size": len(data), "oid": "0" * 40})
                        if name.endswith(LARGE):
                            sha256 = hashlib.sha256(data + b"x" * (fault == "damaged")).hexdigest()
                            entries[-1]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 9}
                    return self.reply(200, json.dumps(entries).encode(), {}, send)
                content = {"id": found[1], "sha": COMMIT, "private": hub.private.get(found[1], False),
                           "siblings": [{"rfilename": name} for name in files]}
                return self.reply(200, json.dumps(content).encode(), {}, send)

            # ---- what is sent here
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                path = unquote(urlsplit(self.path).path)
                if path == "/api/validate-yaml":
                    return self.reply(200, b"{}", {}, True)
                if path == "/api/repos/create":
                    content = json.loads(body)
                    name = f"{content['organization']}/{content['name']}"
                    fault = hub.faults.get(name)
                    if isinstance(fault, int):
                        return self.reply(fault, b"{}", {}, True)
                    hub.private.setdefault(name, content["visibility"] == "private" and fault != "public")
                    hub.models.setdefault(name, hub.cache / "pushed" / name)
                    hub.models[name].mkdir(parents=True, exist_ok=True)
                    return self.reply(200, json.dumps({"url": f"{hub.url}/{name}"}).encode(), {}, True)
                if batch := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                    answer = json.loads(body)["objects"]
                    for large in answer:
                        if large["oid"] not in hub.objects:
                            upload = {"href": f"{hub.url}/{batch[1]}/{large['oid']}"}
                            large["actions"] = {"upload": upload}
                    return self.reply(200, json.dumps({"objects": answer}).encode(), {}, True)
                step = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
                if step[3] != "main":
                    return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, True)
                if step[2] == "preupload":
                    files = [{"path": file["path"], "shouldIgnore": False,
                              "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
                             for file in json.loads(body)["files"]]
                    return self.reply(200, json.dumps({"files": files}).encode(), {}, True)
                for line in body.splitlines():
                    kind, value = json.loads(line)["key"], json.loads(line)["value"]
                    if kind != "header":
                        place = hub.models[step[1]] / value["path"]
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(hub.objects[value["oid"]] if kind == "lfsFile"
                                          else base64.b64decode(value["content"]))
                content = {"commitUrl": f"{hub.url}/{step[1]}/commit/{COMMIT}", "commitOid": COMMIT}
                return self.reply(200, json.dumps(content).encode(), {}, True)

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                name, _, oid = self.path[1:].rpartition("/")
                hub.uploads.append(name)
                if hub.faults.get(name) == "breaks" and hub.uploads.count(name) == 2:
                    return self.reply(400, b"{}", {}, True)
                assert hashlib.sha256(data).hexdigest() == oid
                hub.objects[oid] = data
                return self.reply(200, b"", {}, True)

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
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        proxies = {key for key in os.environ if key.lower().endswith("_proxy")}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.cache), "HF_TOKEN": "hf_none",
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return {key: value for key, value in os.environ.items() if key not in proxies
                and key != "HF_HUB_OFFLINE"} | ours

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess:
        """A piece of Python in a process that knows this hub."""
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=self.environment | environment,
                              capture_output=True, text=True)

    def __enter__(self) -> "Hub":
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
