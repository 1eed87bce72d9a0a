"""A web server on this machine that answers as it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def server(answers: dict):
    """A server's base URL; `answers` maps a path to (status, headers, body), or to a list of them, used in
    turn, or to a function of the request's headers. That may also give an iterator of bytes, sent one by one
    as they come, headers and all.

    A body of None closes the connection without an answer. Yields (url, requests seen).
    """
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["User-Agent"]))
            found = answers.get(self.path, (404, {}, b""))
            if isinstance(found, list):
                found = found.pop(0) if len(found) > 1 else found[0]
            if callable(found):
                found = found(self.headers)
            if not isinstance(found, tuple):
                return self.send_slowly(found)
            status, headers, body = found
            if body is None:
                return self.connection.close()
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def send_slowly(self, parts: Iterator[bytes]) -> None:
            try:
                for part in parts:
                    self.wfile.write(part)
            except OSError:  # the client has left
                pass

        def log_message(self, *_) -> None:
            pass

    with listening(Handler) as url:
        yield url, seen


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server on loopback, on a free port, that ends with the `with` block."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


def ok(body: str | bytes, **headers) -> tuple:
    return 200, headers, body if isinstance(body, bytes) else body.encode()
