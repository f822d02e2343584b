"""A small OpenAI-compatible server on loopback that answers as a test says."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Reply:
    """`body` is JSON, or bytes as they are; None breaks the connection off."""

    body: Body | bytes | None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    """Seconds before it comes."""


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: Body

    @property
    def text(self) -> str:
        """What the user says."""
        return self.body.get("prompt") or self.body["messages"][-1]["content"]


def completion(
    text: str | None, finish: str | None = "stop", tokens: int | None = 5, **message: Any
) -> Body:
    """What such servers reply with, of both kinds at once."""
    choice = {"index": 0, "text": text, "finish_reason": finish,
              "message": {"role": "assistant", "content": text, **message}}  # fmt: skip
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"object": "chat.completion", "choices": [choice], **usage}


def adds(request: Request) -> Reply:
    """The right sum for three seeds of four, and for the others one more."""
    first, second = map(int, re.findall(r"(\d+) \+ (\d+)", request.text)[-1])
    wrong = request.body["seed"] % 4 == 0
    return Reply(completion(f"So \\boxed{{{first + second + wrong}}}"))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


Script = Callable[[Request], Reply]


class Server:
    """`requests` are those for completions, as they came; `most` is how many were open at once."""

    def __init__(self, script: Script = adds, models: Reply | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.most = self._open = 0
        self._lock = threading.Lock()
        self._script = script
        self._models = models or Reply({"data": [{"id": "adder", "root": "/weights/adder"}]})
        self._server = _Listener(("127.0.0.1", port), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answer(self, request: Request) -> Reply:
        if request.path.endswith("/models"):
            return self._models
        with self._lock:
            self.requests.append(request)
        return self._script(request)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply({})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                self._reply(json.loads(self.rfile.read(length)))

            def _reply(self, body: Body) -> None:
                with server._counted(), contextlib.suppress(OSError):
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    reply = server._answer(Request(self.path, headers, body))
                    time.sleep(reply.wait)
                    if reply.body is None:
                        self.close_connection = True
                        return
                    raw = (
                        reply.body
                        if isinstance(reply.body, bytes)
                        else json.dumps(reply.body).encode()
                    )
                    self.send_response(reply.status)
                    for name, value in {"Content-Length": str(len(raw)), **reply.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
