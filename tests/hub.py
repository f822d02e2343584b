"""A small hub on loopback that speaks with the real client of huggingface_hub.

It knows one token and two owners, keeps the files of repositories, and takes large ones by the
LFS protocol, those of several parts too. What it must refuse, a test says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

TOKEN = "hf_" + "x" * 34
OWNERS = {"me", "lab"}
LFS_FROM = 5_000
"""Bytes from which a file goes by LFS; and what is no text, as on the hub."""
PART = 400_000
"""Bytes of a part of a large file."""

Answer = tuple[int, Any]


@dataclass
class Stored:
    """A repository; `commits` are their messages."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def write_to(self, folder: Path) -> Path:
        """Its files in a folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    @property
    def card(self) -> dict[str, Any]:
        """The metadata of its README.md, as the hub reads them."""
        text = self.files.get("README.md", b"").decode()
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        return yaml.safe_load(found[1]) if found else {}


class Hub:
    """`repositories` by kind and name; `lfs` holds what came by LFS; `refusals` are answers by a
    piece of the path, which come in the place of the right ones."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Stored] = {}
        self.lfs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refusals: dict[str, Answer] = {}
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def model(self, name: str) -> Stored:
        return self.repositories["models", name]

    def dataset(self, name: str) -> Stored:
        return self.repositories["datasets", name]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        self.paths.append(f"{method} {path}")
        path = path.partition("?")[0]
        for piece, refusal in self.refusals.items():
            if piece in path:
                return refusal
        if path == "/api/agent-harnesses":  # which the client asks before all else
            return 404, {"error": "not here"}
        if path.startswith("/lfs/"):
            return self._stored(method, path, body)
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?(\w+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        found = re.fullmatch(r"/api/(models|datasets)/(\w+/[\w.-]+)(/.*)?", path)
        assert found, f"the hub has no {method} {path}"
        stored = self.repositories.get((found[1], found[2]))
        if stored is None:
            return 404, {"error": "Repository not found"}
        return self._of(stored, found[2], found[3] or "", body)

    def _create(self, asked: dict[str, Any]) -> Answer:
        kind = f"{asked.get('type') or 'model'}s"
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.url}/{'' if kind == 'models' else 'datasets/'}{name}"
        if asked["organization"] not in OWNERS:
            return 403, {"error": "You don't have the rights to create this under the namespace"}
        if (kind, name) in self.repositories:
            return 409, {"error": "You already created this repo", "url": url}
        self.repositories[kind, name] = Stored(asked.get("visibility") == "private")
        self.repositories[kind, name].files[".gitattributes"] = b"*.safetensors filter=lfs\n"
        return 200, {"url": url}

    def _validate(self, asked: dict[str, Any]) -> Answer:
        metadata = Stored(False, {"README.md": asked["content"].encode()}).card
        license = metadata.get("license", "other")
        if not isinstance(license, str) or license != license.lower():
            return 400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata"}]
        return 200, {"errors": [], "warnings": warnings}

    def _of(self, stored: Stored, name: str, rest: str, body: bytes) -> Answer:
        if rest == "":
            names = sorted(stored.files)
            return 200, {
                "id": name, "sha": self._oid(stored), "private": stored.private,
                "siblings": [{"rfilename": each} for each in names], "cardData": stored.card,
                "tags": [], "downloads": 0, "likes": 0,
            }  # fmt: skip
        if rest == "/tree/main":
            return 200, [
                {"type": "file", "path": each, "size": len(content), "oid": _git_oid(content)}
                for each, content in stored.files.items()
            ]
        if rest == "/preupload/main":
            return 200, {"files": [self._mode(stored, each) for each in json.loads(body)["files"]]}
        assert rest == "/commit/main", rest
        for line in map(json.loads, body.splitlines()):
            self._apply(stored, line["key"], line["value"])
        commit = self._oid(stored)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}

    def _mode(self, stored: Stored, file: dict[str, Any]) -> dict[str, Any]:
        binary = b"\0" in base64.b64decode(file["sample"])
        large = binary or file["size"] >= LFS_FROM
        there = stored.files.get(file["path"])
        return {
            "path": file["path"], "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False, "oid": None if there is None else _git_oid(there),
        }  # fmt: skip

    def _batch(self, asked: dict[str, Any]) -> Answer:
        assert asked["operation"] == "upload" and "multipart" in asked["transfers"]
        objects = []
        for each in asked["objects"]:
            oid, size = each["oid"], each["size"]
            actions: dict[str, Any] = {
                "upload": {"href": f"{self.url}/lfs/{oid}"},
                "verify": {"href": f"{self.url}/lfs/verify"},
            }
            if size > PART:
                count = -(-size // PART)
                parts = {str(n): f"{self.url}/lfs/{oid}/{n}" for n in range(1, count + 1)}
                actions["upload"]["header"] = {"chunk_size": str(PART), **parts}
            there = {} if oid in self.lfs else {"actions": actions}
            objects.append({"oid": oid, "size": size, **there})
        return 200, {"objects": objects, "transfer": "multipart"}

    def _stored(self, method: str, path: str, body: bytes) -> Answer:
        _, _, oid, *part = path.split("/")
        if oid == "verify":
            asked = json.loads(body)
            known = len(self.lfs.get(asked["oid"], b"")) == asked["size"]
            return (200, {}) if known else (404, {"error": "no such object"})
        if part:
            self.parts.setdefault(oid, {})[int(part[0])] = body
            return 200, {}
        if method == "POST":  # every part is there
            told = json.loads(body)["parts"]
            parts = self.parts.pop(oid)
            assert [each["partNumber"] for each in told] == sorted(parts)
            body = b"".join(parts[number] for number in sorted(parts))
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the content has another digest"}
        self.lfs[oid] = body
        return 200, {}

    def _apply(self, stored: Stored, key: str, value: dict[str, Any]) -> None:
        if key == "header":
            stored.commits.append(value["summary"])
        elif key == "file":
            stored.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            stored.files[value["path"]] = self.lfs[value["oid"]]
        else:
            assert key == "deletedFile", key
            del stored.files[value["path"]]

    def _oid(self, stored: Stored) -> str:
        return hashlib.sha1(repr((stored.commits, sorted(stored.files))).encode()).hexdigest()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                status, said = hub.answer(self.command, self.path, self.headers, body)
                raw = json.dumps(said).encode()
                self.send_response(status)
                if status == 404 and "Repository not found" in str(said):
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
                self.end_headers()
                self.wfile.write(raw)

            def _chunks(self) -> bytes:
                body = b""
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                return body

            do_GET = do_POST = do_PUT = _reply

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
