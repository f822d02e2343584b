"""Evaluation at vLLM's own server, against the evaluation of the same model here."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from castctl.embedded import ensure
from castctl.engines.endpoint import connect
from castctl.errors import UserError
from castctl.shards.part import read_json
from castctl.shards.stage import StepFolder
from conftest import Cli

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]

START_SECONDS = 300.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM serving the embedded model under the name `tiny`, until the tests are done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
             "--port", str(port), "--model", str(ensure().model), "--served-model-name", "tiny",
             "--dtype", "float32", "--enforce-eager"],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                              "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                connect(url)
                break
            except UserError as error:
                assert process.poll() is None and time.monotonic() < give_up, (
                    f"{error}\n{log.read_text(errors='replace')[-3000:]}"
                )
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its engine is a process of its own
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


HOW = ("--set", "data.prompt_template={{ problem }}", "--set", "verifier.workers=1",
       "--max-tokens", "128", "--limit", "32")  # fmt: skip


def test_a_server_answers_as_the_model_does_here(castctl: Cli, server: str, tmp_path: Path) -> None:
    ways = {"greedy": ("-k", "1", "--temperature", "0"), "sampled": ("-k", "4")}
    for name, way in ways.items():
        castctl("eval", "embedded", "--endpoint", server, "--run", f"{name}-there", *way, *HOW)
        castctl("eval", "embedded", "--model", str(ensure().model), "--dtype", "float32",
                "--run", f"{name}-here", *way, *HOW)  # fmt: skip

    def folder(run: str) -> StepFolder:
        return StepFolder(tmp_path / "runs" / run / "eval/embedded/step-00000")

    here, there = (folder(f"greedy-{at}").table("rollouts") for at in ("here", "there"))
    assert here["prompt_id"].equals(there["prompt_id"])
    same = [a == b for a, b in zip(here["completion"].to_pylist(),
                                   there["completion"].to_pylist(), strict=True)]  # fmt: skip
    assert sum(same) >= 0.9 * len(same)  # a near tie may fall the other way
    counted = there["token_count"].to_pylist()
    lengths = [len(ids) for ids in here["completion_token_ids"].to_pylist()]
    assert all(a == b for a, b, one in zip(counted, lengths, same, strict=True) if one)
    here_avg, there_avg = (
        read_json(folder(f"sampled-{at}").path / "results.json")["avg"] for at in ("here", "there")
    )
    assert here_avg["low"] < there_avg["high"] and there_avg["low"] < here_avg["high"]
    assert len(set(folder("sampled-there").table("rollouts")["completion"].to_pylist())) > 32


def test_refusals_of_vllm_are_lines(castctl: Cli, server: str) -> None:
    command = ("eval", "embedded", "--endpoint", server, *HOW, "-k", "1")
    said = castctl(*command, "--served-model", "other", code=2).stderr.splitlines()[-1]
    assert "has no model other: 404" in said and "it serves tiny" in said
    said = castctl(*command, "--max-tokens", "5000", code=2).stderr.splitlines()[-1]
    assert "has no room" in said and "5000" in said and "lower --max-tokens" in said


def test_stops_and_text_alone_at_vllm(castctl: Cli, server: str, tmp_path: Path) -> None:
    castctl("eval", "embedded", "--endpoint", server, *HOW, "-k", "1", "--run", "stopped",
            "--set", "data.chat=false", "--set", 'sampling.stop=["="]')  # fmt: skip
    [folder] = (tmp_path / "runs/stopped/eval").glob("*/step-00000")
    rows = StepFolder(folder).table("rollouts").to_pylist()
    ended = [row["completion"] for row in rows if row["finish_reason"] == "stop"]
    assert any(text.endswith("=") for text in ended)
    assert all("=" not in text[:-1] for text in ended)
