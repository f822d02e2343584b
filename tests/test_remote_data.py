"""Parquet on the hub, of which no more is fetched than is read."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"
GROUP = 500


def parquet(first: int, count: int) -> bytes:
    """Problems beside a column that is far wider, in many row groups."""
    wide = random.Random(first)
    rows = [
        {"problem": f"{n} + 1 = ?", "answer": str(n + 1), "wide": wide.randbytes(1000)}
        for n in range(first, first + count)
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=GROUP, compression="none")
    return file.getvalue()


FILES = {"train-0.parquet": parquet(0, 8000), "train-1.parquet": parquet(7900, 1000)}


class Hub(BaseHTTPRequestHandler):
    """The data set `acme/big`, and `acme/torn`, of whose files only the ends can be read."""

    fetched = 0

    def do_GET(self) -> None:
        words = self.path.partition("?")[0].removeprefix("/api").split("/")
        if len(words) < 4:
            self.reply(404, {})
            return
        place, rest = f"/datasets/{words[2]}/{words[3]}", "/".join(words[4:])
        if rest in ("", "revision/main", f"revision/{SHA}"):
            names = [{"rfilename": name} for name in FILES]
            self.reply(200, {"id": place[10:], "sha": SHA, "siblings": names})
        elif rest.startswith("tree/"):
            self.reply(200, [self.entry(name) for name in FILES])
        elif (name := words[-1]) in FILES:
            self.send_file(FILES[name], torn=words[3] == "torn")
        else:
            self.reply(404, {})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self.reply(200, [self.entry(name) for name in body.get("paths", ()) if name in FILES])

    def send_file(self, content: bytes, torn: bool) -> None:
        first, last = 0, len(content) - 1
        if asked := self.headers.get("Range"):
            first, last = (int(at) for at in asked.removeprefix("bytes=").split("-"))
        if torn and last < len(content) - 1:
            self.reply(404, {})
            return
        span = f"bytes {first}-{last}/{len(content)}"
        if self.command == "GET":
            Hub.fetched += last - first + 1
        self.reply(206 if asked else 200, content[first : last + 1], {"Content-Range": span})

    @staticmethod
    def entry(name: str) -> dict[str, Any]:
        return {"type": "file", "oid": SHA, "size": len(FILES[name]), "path": name}

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        said = {"X-Repo-Commit": SHA, "ETag": f'"{hash(content)}"', **(headers or {})}
        for name, value in {**said, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """
import json, sys
from castctl.data.prompts import load_prompts
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings
for line in sys.stdin:
    try:
        read = load_prompts(DataSettings(**json.loads(line)))
        print(json.dumps([read.table.to_pylist(), read.notes, read.revision]), flush=True)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
"""


@pytest.mark.slow
def test_a_limit_fetches_no_more_than_is_read(tmp_path: Path, hub: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ASK],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def ask(**settings: Any) -> tuple[Any, int]:
        assert process.stdin and process.stdout
        before = Hub.fetched
        process.stdin.write(json.dumps({"path": "acme/big", **settings}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline()), Hub.fetched - before

    with process:
        read, fetched = ask(limit=GROUP + 100)
        assert isinstance(read, list), read
        rows, notes, revision = read
        assert [row["problem"] for row in rows] == [f"{n} + 1 = ?" for n in range(GROUP + 100)]
        assert rows[0]["source"] == "acme/big" and (notes, revision) == ([], SHA)
        assert fetched < sum(map(len, FILES.values())) / 4
        across, _ = ask(limit=8500)  # over the end of the first file
        torn, _ = ask(path="acme/torn", limit=3)
        assert "acme/torn broke off while it was read" in torn and "\n" not in torn
        whole, fetched = ask()
        assert fetched >= sum(map(len, FILES.values()))
        assert across[0] == whole[0][:8500] and across[1] == ["repeated rows removed: 100"]
        cached, fetched = ask(limit=8500)
        assert cached == across and fetched == 0
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0
