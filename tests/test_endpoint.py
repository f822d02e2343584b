"""Evaluation at a server: what is asked, what is read, what is refused, and what an end costs."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from castctl.data.conversation import earlier_in
from castctl.data.messages import MessagesTemplate
from castctl.data.templates import PromptTemplate
from castctl.engines import endpoint as endpoints
from castctl.engines.address import base_url
from castctl.engines.endpoint import Patience, Question, connect
from castctl.engines.replies import Answer
from castctl.engines.sampling import row_key
from castctl.errors import UserError
from castctl.recipe.recipe import DataSettings, SamplingSettings
from castctl.runs.run import open_run
from castctl.shards.journal import ANY, Journal
from castctl.shards.part import content_hash, read_json
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.ask import with_opened_thoughts
from commands import Commands
from conftest import Cli
from servers import Body, Reply, Request, Server, adds, completion

QUICK = Patience(attempts=3, first=0.01, longest=0.05)
SAMPLING = SamplingSettings(n=1, max_tokens=8)
ASKED = [Question({"messages": [{"role": "user", "content": "What is 1 + 1?"}]}, seed=1)]


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def write_sums(folder: Path, count: int) -> None:
    rows = ({"problem": f"What is {n} + {n % 7}?", "answer": str(n + n % 7)} for n in range(count))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def results(folder: Path, run: str, task: str = "sums") -> dict[str, Any]:
    return read_json(folder / "runs" / run / "eval" / task / "step-00000" / "results.json")


def rollouts(folder: Path, run: str) -> list[dict[str, Any]]:
    return StepFolder(folder / "runs" / run / "eval/sums/step-00000").table("rollouts").to_pylist()


def ask(server: Server | str, sampling: SamplingSettings = SAMPLING, **how: Any) -> list[Answer]:
    """The answers to `ASKED`, by the model that the server names."""
    url = server if isinstance(server, str) else server.url
    asked = connect(url, **{"patience": QUICK, "timeout": 5.0, **how})
    return [answer for _, answer in asked.answers(ASKED, sampling)]


# What is asked


def test_a_served_model_is_evaluated(
    castctl: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample is a request with all that decides it, and the results say what they lack."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    write_sums(tmp_path, 36)
    slow = lambda request: Reply(**{**adds(request).__dict__, "wait": 0.01})  # noqa: E731
    with Server(slow) as server:
        done = castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "4", "--run", "served",
                       "--max-tokens", "32", "--temperature", "0.7", "--concurrency", "3",
                       "--full")  # fmt: skip
    assert server.most == 3
    seeds = [request.body["seed"] for request in server.requests]
    assert len(seeds) == len(set(seeds)) == 36 * 4 and max(seeds) > 2**60
    assert all(0 <= seed < 2**63 for seed in seeds)
    first = server.requests[0]
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == "Bearer sk-very-secret"
    [message] = first.body.pop("messages")
    del first.body["seed"]
    assert message["role"] == "user" and "final answer within \\boxed{}" in message["content"]
    assert first.body == {
        "model": "adder", "n": 1, "temperature": 0.7, "top_p": 1.0, "max_tokens": 32,
        "stream": False, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    rows = rollouts(tmp_path, "served")
    keys = [row_key(0, 0, row["prompt_id"], row["sample"]) % 2**63 for row in rows]
    assert sorted(seeds) == sorted(keys)
    assert not any(row["completion_token_ids"] or row["sampler_logprobs"] for row in rows)
    result = results(tmp_path, "served")
    right = sum(seed % 4 != 0 for seed in seeds)
    assert result["avg"]["mean"] == pytest.approx(right / len(seeds)) and 0 < right < len(seeds)
    assert (result["problems"], result["k"], result["length_mean"]) == (36, 4, 5.0)
    assert result["model"] == result["model_path"] == "adder"
    assert result["engine"] == {"kind": "endpoint", "model": "adder", "root": "/weights/adder"}
    assert result["endpoint"] == {
        "url": f"{server.url}/v1", "token_signals": False, "lengths": "usage.completion_tokens",
        "left_to_server": [],
    }  # fmt: skip
    assert "shows no tokens" in done.stdout and "adder answers right" in done.stdout
    assert "sk-very" not in done.stdout + done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5 and not any(b"sk-very" in file.read_bytes() for file in files)


def test_other_commands_read_a_run_without_tokens(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 4)
    with Server() as server:
        castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "2", "--run", "served")
    step = "runs/served/eval/sums/step-00000"
    id = rollouts(tmp_path, "served")[0]["prompt_id"]
    assert "no tokens" in castctl("inspect", "runs/served").stdout
    assert " 40 " in castctl("inspect", step).stdout  # tokens, by the server's count
    assert "\\boxed" in castctl("inspect", step, "--sample", f"{id}/0").stdout
    assert "whole" in castctl("inspect", "runs/served", "--verify").stdout
    assert "warning" not in castctl("report", "runs/served").stderr
    assert "no tokens" in (tmp_path / "runs/served/report.html").read_text()
    castctl("report", step)
    assert "adder" in castctl("runs").stdout
    castctl("compare", step, step)
    before = results(tmp_path, "served")
    castctl("eval", "--rescore", step, "--overwrite")
    assert results(tmp_path, "served") == before
    said = castctl("eval", "sums.jsonl", "--run", "served", code=2).stderr
    assert "name it with --endpoint" in said
    assert "no step with rollouts" in castctl("diagnose", "engine", "served", code=2).stderr


def test_the_user_says_to_a_server_what_it_says_to_a_model() -> None:
    from transformers import AutoTokenizer

    from castctl.embedded import ensure

    tokenizer = AutoTokenizer.from_pretrained(ensure().model)
    data = DataSettings(system_prompt="Be brief.", chat_template_options={"thinking": False})
    earlier = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"})
    template, said = MessagesTemplate(data), earlier_in(earlier)
    [question] = template.questions([("1 + 1?", said)])
    assert question == {
        "messages": [
            {"role": "system", "content": "Be brief."}, *earlier,
            {"role": "user", "content": PromptTemplate(tokenizer, data).user_text("1 + 1?")},
        ],
        "chat_template_kwargs": {"thinking": False},
    }  # fmt: skip
    bare = DataSettings(chat=False)
    assert MessagesTemplate(bare).questions([("1 + 1?", ())]) == [
        {"prompt": PromptTemplate(tokenizer, bare).text("1 + 1?")}
    ]
    with pytest.raises(UserError, match=r"data\.chat=true"):
        MessagesTemplate(bare).questions([("1 + 1?", said)])
    with pytest.raises(UserError, match=r"data\.chat=true"):
        MessagesTemplate(DataSettings(chat=False, system_prompt="Be brief."))
    versions = {MessagesTemplate(each).version for each in (data, bare, DataSettings())}
    assert len(versions) == 3


def test_text_alone_and_stops(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 2)

    def stopped(request: Request) -> Reply:
        body = adds(request).body
        assert isinstance(body, dict)
        body["choices"][0]["stop_reason"] = "\n\n"
        return Reply(body)

    with Server(stopped) as server:
        castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "1", "--run", "plain",
                "--set", "data.chat=false", "--set", 'sampling.stop=["\\n\\n"]')  # fmt: skip
    request = server.requests[0]
    assert request.path == "/v1/completions" and "messages" not in request.body
    assert request.body["prompt"].startswith("What is") and request.body["stop"] == ["\n\n"]
    assert all(row["completion"].endswith("}\n\n") for row in rollouts(tmp_path, "plain"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        ("https://host/openai", "https://host/openai/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_a_url_is_what_people_type(typed: str, meant: str) -> None:
    assert base_url(typed) == meant


@pytest.mark.parametrize(
    "typed",
    ["host:8000", "ftp://host", "http://", "http://me:hush@host", "http://host/v1?key=hush",
     "http://host:port", "http://host:99999", "http://ho st", "http://ho\nst"],
)  # fmt: skip
def test_another_url_is_refused_and_shows_no_secret(typed: str) -> None:
    with pytest.raises(UserError) as refused:
        base_url(typed)
    assert "--endpoint" in str(refused.value) and "hush" not in str(refused.value)


def test_the_only_model_is_taken_and_several_are_listed() -> None:
    def models(*names: str) -> Reply:
        return Reply({"data": [{"id": name} for name in names]})

    with Server(models=models("one")) as server:
        assert connect(server.url).model == "one"
    with Server(models=models("one", "two")) as server:
        with pytest.raises(UserError, match=r"2 models; it serves one, two: .*--served-model"):
            connect(server.url)
        assert connect(server.url, "two").model == "two"
    odd = [None, "x", {"id": 1}, {"id": "a\ud800b", "root": {}}]
    with Server(models=Reply({"data": odd})) as server:
        assert connect(server.url).model == "a\ufffdb"
    with Server(models=Reply({}, 404)) as server:
        with pytest.raises(UserError, match=r"name it, --served-model"):
            connect(server.url)
        assert connect(server.url, "mine").root is None


# What is read


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (completion("a"), Answer("a", "stop", 5)),
        (completion("a", "length", 8), Answer("a", "length", 8)),
        (completion("a", tokens=None), Answer("a", "stop", None)),
        (completion("", "length", 8), Answer("", "length", 8)),
        (completion("a", reasoning_content="b"), Answer("<think>\nb\n</think>\n\na", "stop", 5)),
        (completion(None, "length", 8, reasoning="b"), Answer("<think>\nb", "length", 8)),
        (
            completion("a", reasoning="</think> \\boxed{1}"),
            Answer("<think>\n<|think> \\boxed{1}\n</think>\n\na", "stop", 5),
        ),
        (completion("\ud800x"), Answer("\ufffdx", "stop", 5)),
    ],
)
def test_answers(body: Body, answer: Answer) -> None:
    with Server(lambda request: Reply(body)) as server:
        assert ask(server) == [answer]


def test_what_is_graded_is_what_a_reader_sees(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 4)
    said = [
        completion("So \\boxed{9}", reasoning_content="\\boxed{0}"),
        completion(None, "length", 8, reasoning_content="\\boxed{2}"),
        completion("\\boxed{4}", reasoning_content="</think>\\boxed{3}"),
        completion("", "length", 8),
    ]
    with Server(lambda request: Reply(said[int(request.text.split()[2])])) as server:
        castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "1", "--run", "thinks",
                "--max-tokens", "8")  # fmt: skip
    folder = StepFolder(tmp_path / "runs/thinks/eval/sums/step-00000")
    verdicts = folder.table("rewards")["verdict"].to_pylist()
    assert verdicts == ["wrong", "truncated", "correct", "truncated"]
    assert results(tmp_path, "thinks")["truncated_share"] == 0.5
    assert "\\boxed{0}" in folder.table("rollouts")["completion"][0].as_py()


def test_thoughts_that_the_servers_template_opened() -> None:
    """A completion that was cut among them has no answer; one stray tag says nothing."""
    cut, closed, plain = (
        Answer("\\boxed{1}", "length", 8), Answer("hm</think>\\boxed{1}", "stop", 8),
        Answer("\\boxed{1}", "stop", 8),
    )  # fmt: skip
    assert with_opened_thoughts([cut, closed, closed]) == [
        "<think>\\boxed{1}", *["<think>hm</think>\\boxed{1}"] * 2,
    ]  # fmt: skip
    assert with_opened_thoughts([cut, closed, plain]) == [cut.text, closed.text, plain.text]
    assert with_opened_thoughts([cut]) == [cut.text]
    own = Answer("<think>a</think>b", "stop", 8)
    assert with_opened_thoughts([own, own, cut]) == [own.text, own.text, cut.text]


# What is refused


def say(status: int, message: str) -> Reply:
    return Reply({"error": {"message": message}}, status)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (say(401, "no key"), r"wants a key: 401 \(no key\); put it in OPENAI_API_KEY"),
        (say(403, "no"), r"wants a key: 403"),
        (say(404, "no such"), r"has no model adder, or nothing at /v1/chat/completions: 404"),
        (say(400, "maximum context length is 4096"), r"no room .*context length is 4096.*lower"),
        (say(400, "unknown field seed"), r"takes no seed: 400"),
        (say(422, "bad"), r"refuses what it is asked: 422 \(bad\)"),
        (say(429, "slow down"), r"too many requests: 429, 3 times \(slow down\); lower --conc"),
        (say(429, "insufficient_quota"), r"too many requests: 429 \(insufficient_quota\)"),
        (say(500, "oh"), r"fails: 500, 3 times \(oh\)"),
        (Reply({}, 302, {"Location": "http://other/v1"}), r"redirects to http://other/v1: 302"),
        (Reply(None), r"broke the connection off, 3 times"),
        (Reply(b"<html>"), r"/v1/chat/completions with what is no JSON object \(<html>\)"),
        (Reply(b"[" * 100_000), r"no JSON object"),
        (Reply({"choices": []}), r"without choices"),
        (Reply({"choices": [{"message": {"content": 3}}]}), r"content is no text"),
        (Reply({"error": {"message": "behind"}}), r"replies with an error, 3 times \(behind\)"),
        (Reply(completion("a", "content_filter")), r"finish_reason content_filter, which is nei"),
        (Reply(completion("a", None)), r"finish_reason None"),
        (Reply(completion("a", "abort")), r"broke a completion off \(finish_reason abort\), 3"),
        (Reply(completion("a", "stop", 9)), r"9 tokens where 8 were asked for; it does not keep"),
        (Reply(completion("a", "length", 7)), r"cut a completion at 7 tokens where 8 were asked"),
        (Reply(completion("a\n\nb")), r"went on after '\\n\\n' of sampling.stop"),
        (Reply(completion("a"), wait=3), r"does not answer within 0.2 s, 3 times; raise --req"),
        (Reply(b"x" * 3000), r"replies with more than 2,000 bytes"),
    ],
)
def test_a_refusal_is_one_line(
    reply: Reply, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "MOST_BYTES", 2000 if reply.body == b"x" * 3000 else 10**6)
    sampling = SAMPLING.model_copy(update={"stop": ("\n\n",)})
    with (
        Server(lambda request: reply) as server,
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=line) as refused,
    ):
        ask(server, sampling, timeout=0.2 if reply.wait else 5.0)
    assert "\n" not in str(refused.value)
    again = "3 times" in str(refused.value)
    assert len(server.requests) == (3 if again else 1)
    assert len(set(caplog.messages)) == again  # a line for each attempt would say nothing new


def test_a_server_that_is_not_there() -> None:
    with Server() as server:
        pass
    with pytest.raises(UserError, match=r"refuses the connection; does the server run there"):
        ask(server)
    with Server() as server, pytest.raises(UserError, match=r"by TLS .*write http://"):
        connect(server.url.replace("http", "https"))


def test_the_key_goes_to_no_other_host_and_into_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    with Server() as other:
        away = Reply({}, 307, {"Location": f"{other.url}/v1/chat/completions"})
        with Server(lambda r: away) as server, pytest.raises(UserError, match="redirects"):
            ask(server)
        assert not other.requests
    echo = say(401, "Incorrect API key provided: sk-hush")
    with Server(lambda r: echo) as server, pytest.raises(UserError, match=r"\*\*\*") as refused:
        ask(server)
    assert "sk-hush" not in str(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk\nhush")
    with pytest.raises(UserError, match="no key has") as refused:
        connect("http://127.0.0.1:1")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "trouble",
    [say(503, "loading"), say(429, "slow"), Reply(None), Reply({"error": "x"}),
     Reply(completion("a", "abort")), Reply({}, 500, {"Retry-After": "0"})],
)  # fmt: skip
def test_what_passes_is_tried_again(trouble: Reply) -> None:
    replies = iter([trouble, trouble, Reply(completion("a"))])
    with Server(lambda request: next(replies)) as server:
        assert ask(server) == [Answer("a", "stop", 5)]
    bodies = [request.body for request in server.requests]
    assert len(bodies) == 3 and bodies[0] == bodies[1] == bodies[2]  # the seed too


def test_a_server_that_asks_to_wait_is_waited_for_within_bounds() -> None:
    replies = iter([Reply({}, 429, {"Retry-After": "999"}), Reply(completion("a"))])
    began = time.monotonic()
    with Server(lambda request: next(replies)) as server:
        ask(server, patience=Patience(2, 0.0, 0.5))
    assert 0.5 <= time.monotonic() - began < 5
    waits = [Patience().seconds(attempt, None) for attempt in range(1, 8)]
    assert (
        all(2 ** (n - 1) / 2 <= wait <= 2**n for n, wait in enumerate(waits)) and max(waits) <= 60
    )


def test_what_a_server_does_not_know_is_left_to_it_and_told(castctl: Cli, tmp_path: Path) -> None:
    """As at OpenAI: extra fields are refused by name, and so is the older name of the bound."""
    write_sums(tmp_path, 3)

    def strict(request: Request) -> Reply:
        if extra := {"top_k", "min_p", "repetition_penalty"} & request.body.keys():
            return say(400, f"Unrecognized request argument supplied: {min(extra)}")
        if "max_tokens" in request.body:
            return say(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        return adds(request)

    with Server(strict) as server:
        done = castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "2", "--run", "strict",
                       "--concurrency", "2")  # fmt: skip
    last = server.requests[-1].body
    assert last["max_completion_tokens"] == 2048 and last["presence_penalty"] == 0.0
    left = ["min_p", "repetition_penalty", "top_k"]
    assert results(tmp_path, "strict")["endpoint"]["left_to_server"] == left
    assert "what it does about that is its own" in done.stdout


def test_penalties_are_sent_and_left_to_no_server(castctl: Cli, tmp_path: Path) -> None:
    """A server that refuses one would sample from another distribution than was asked for."""
    write_sums(tmp_path, 2)
    asked = ("--presence-penalty", "1.5", "--repetition-penalty", "1.1")
    with Server() as server:
        castctl(
            "eval", "sums.jsonl", "--endpoint", server.url, "-k", "1", "--run", "served", *asked
        )
    sent = server.requests[-1].body
    assert (sent["presence_penalty"], sent["repetition_penalty"]) == (1.5, 1.1)
    assert (sent["frequency_penalty"], sent["top_k"]) == (0.0, -1)
    assert results(tmp_path, "served")["sampling"]["repetition_penalty"] == 1.1

    def strict(request: Request) -> Reply:
        if "repetition_penalty" in request.body:
            return say(400, "Unrecognized request argument supplied: repetition_penalty")
        return adds(request)

    with Server(strict) as server:
        done = castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "1", "--run", "other",
                       *asked, code=2)  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert "takes no repetition_penalty=1.1: 400 (Unrecognized request argument" in last
    assert last.endswith("leave eval.repetition_penalty out, or evaluate elsewhere")


@pytest.mark.parametrize(
    "options",
    [
        ("--model", "m"), ("--checkpoint", "best"), ("--device", "cpu"), ("--dtype", "float32"),
        ("--tiny",), ("--trust-remote-code",), ("--rescore", "x.jsonl"), ("--shard", "0/2"),
        ("--set", "model.path=other"),
    ],
)  # fmt: skip
def test_options_that_contradict_a_server(
    castctl: Cli, tmp_path: Path, options: tuple[str, ...]
) -> None:
    write_sums(tmp_path, 2)
    with Server() as server:
        tasks = () if options[0] == "--rescore" else ("sums.jsonl",)
        done = castctl("eval", *tasks, "--endpoint", server.url, *options, code=2)
    assert len(done.stderr.splitlines()[-1]) < 300 and "castctl: " in done.stderr
    assert options[0] in done.stderr or options[0] == "--shard"
    assert not server.requests


def test_wrong_input_leaves_no_run(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 2)
    for option in ("--served-model", "--concurrency", "--request-timeout"):
        said = castctl("eval", "sums.jsonl", option, "1", code=2).stderr
        assert "name it with --endpoint" in said
    with Server(lambda request: say(404, "no such model")) as server:
        said = castctl("eval", "sums.jsonl", "--endpoint", server.url, "--served-model", "other",
                       code=2).stderr  # fmt: skip
    assert "has no model other: 404 (no such model); it serves adder" in said
    said = castctl("eval", "held-out", "--endpoint", server.url, code=2).stderr
    assert "refuses the connection" in said and said.count("\n") == 1
    with Server() as server:
        said = castctl("eval", "held-out", "--endpoint", server.url, code=2).stderr
    assert "name a task" in said
    assert not [*(tmp_path / "runs").glob("*")]


# What an end costs


class Hanging:
    """Answers some requests, and then none for longer than any test lasts."""

    def __init__(self, count: int) -> None:
        self.left, self.reached, self.gone = count, threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        with self._lock:
            self.left -= 1
            hangs = self.left < 0
        if hangs:
            self.reached.set()
            self.gone.wait(60)
            return Reply(None)
        return adds(request)


@pytest.fixture
def hanging() -> Iterator[Callable[[int], Hanging]]:
    made: list[Hanging] = []

    def make(count: int) -> Hanging:
        made.append(Hanging(count))
        return made[-1]

    yield make
    for each in made:
        each.gone.set()


def wait_for_rows(folder: Path, count: int) -> Path:
    """The journal that has so many rows at last, after one whole part or none."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        for journal in folder.rglob(ANY):
            if journal.read_bytes().count(b"\n") == count:
                return journal
        time.sleep(0.05)
    raise AssertionError(f"no journal with {count} rows")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_finished_is_lost(
    number: signal.Signals,
    hanging: Callable[[int], Hanging],
    castctl: Cli,
    commands: Commands,
    tmp_path: Path,
) -> None:
    """The same command goes on, with the same model at another port, and ends where it would have
    without an end between."""
    write_sums(tmp_path, 40)
    command = ("eval", "sums.jsonl", "-k", "2", "--concurrency", "4", "--endpoint")
    script = hanging(70)  # 64 make a part
    with Server(script) as server:
        running = commands.start(*command, server.url, cwd=tmp_path)
        assert script.reached.wait(60)
        journal = wait_for_rows(tmp_path, 6)
        running.send_signal(number)
        began = time.monotonic()
        ended = running.wait(30)
        assert time.monotonic() - began < 10  # what hangs is not waited for
    if number != signal.SIGKILL:
        assert ended.returncode == 128 + number
        assert ended.stderr.splitlines()[-1].endswith("the same command goes on from them")
    assert [path.name for path in journal.parent.glob("part-*")] == ["part-00000.parquet"]
    with Server() as other:
        again = castctl(*command, other.url)
    assert "going on with" in again.stderr
    assert len(other.requests) == 80 - 70
    with Server() as third:
        castctl(*command, third.url, "--run", "whole")
    [run] = [path.name for path in (tmp_path / "runs").glob("eval-*")]
    for key in ("by_problem", "avg", "pass", "maj", "template", "engine"):
        assert results(tmp_path, run)[key] == results(tmp_path, "whole")[key]
    assert not [*(tmp_path / "runs").rglob(ANY)]


def test_a_server_that_dies_loses_nothing_finished(
    hanging: Callable[[int], Hanging], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from castctl.progress import Silent
    from castctl.recipe.reader import load_recipe
    from castctl.runs.run import create_run, discarded_if_empty
    from castctl.stages.evaluate.asked import ask_tasks

    monkeypatch.chdir(tmp_path)
    write_sums(tmp_path, 10)
    recipe = load_recipe(
        model={"path": "adder"}, eval={"task": "sums.jsonl", "k": 2}, verifier={"workers": 1}
    )
    run = create_run(recipe, "dies", "eval")
    script = hanging(7)
    server = Server(script)

    def die() -> None:
        script.reached.wait(30)
        wait_for_rows(tmp_path, 7)
        server.close()
        script.gone.set()

    threading.Thread(target=die, daemon=True).start()
    asked = connect(server.url, concurrency=2, patience=QUICK)
    with (
        pytest.raises(UserError, match=r"refuses the conn|broke the conn"),
        discarded_if_empty(run),
    ):
        list(ask_tasks(run, asked, {"sums.jsonl": None}, progress=Silent()))
    with Server() as other:
        asked = connect(other.url, patience=QUICK)
        [done] = ask_tasks(run, asked, {"sums.jsonl": None}, progress=Silent())
    assert len(other.requests) == 20 - 7
    assert done.result is not None and done.result["problems"] == 10


def test_shards_share_a_run(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 40)
    with Server() as server:
        command = ("eval", "sums.jsonl", "-k", "1", "--endpoint", server.url, "--run", "shared")
        castctl(*command, "--shard", "1/2")
        assert len(server.requests) == 8
        castctl(*command, "--shard", "0/2")
        castctl(*command)
        assert len(server.requests) == 40
    assert results(tmp_path, "shared")["problems"] == 40


def test_another_model_does_not_go_on_with_a_run(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 3)
    command = ("eval", "sums.jsonl", "-k", "1", "--run", "one", "--endpoint")
    with Server() as server:
        castctl(*command, server.url)
        castctl(*command, server.url)  # all is there
        assert len(server.requests) == 3
    newer = Reply({"data": [{"id": "adder", "root": "/weights/step-50"}]})
    with Server(models=newer) as server:
        said = castctl(*command, server.url, code=2).stderr
        assert "engine.root" in said and "step-50" in said
        castctl(*command, server.url, "--overwrite")
        assert len(server.requests) == 3
        said = castctl("eval", "sums.jsonl", "--model", "embedded", "--run", "one", code=2).stderr
        assert "name it with --endpoint" in said


def test_a_journal_keeps_whole_rows_of_its_own_part(tmp_path: Path) -> None:
    part = tmp_path / "rollouts" / "part-00000.parquet"
    asked, otherwise = {"model": "a", "seed": 0}, {"model": "b", "seed": 0}
    journal = Journal(part, asked)
    journal.add(3, {"text": "a\nb"})
    journal.add(1, {"text": "c"})
    journal.close()
    with journal.path.open("ab") as stream:
        stream.write(b'\n[2, {"text": "cut sh')
    again = Journal(part, asked)
    assert again.rows == {3: {"text": "a\nb"}, 1: {"text": "c"}}
    again.add(2, {"text": "d"})
    again.close()
    assert Journal(part, asked).rows.keys() == {1, 2, 3}
    with pytest.raises(UserError, match=r"another model \('a', now 'b'\).*--overwrite"):
        Journal(part, otherwise)
    other = Journal(part, otherwise, anew=True)
    other.add(0, {"text": "e"})
    other.close()
    assert Journal(part, otherwise).rows == {0: {"text": "e"}}
    other.remove()
    assert not other.path.exists()


def test_a_journal_that_was_begun_before_there_were_penalties_goes_on(tmp_path: Path) -> None:
    part = tmp_path / "part-00000.parquet"
    before = Journal(part, {"sampling": {"top_p": 1.0}})
    before.add(0, {"text": "a"})
    before.close()
    off = {"top_p": 1.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    assert Journal(part, {"sampling": off}).rows == {0: {"text": "a"}}
    with pytest.raises(UserError, match=r"presence_penalty \(0\.0, now 0\.5\)"):
        Journal(part, {"sampling": off | {"presence_penalty": 0.5}})


def test_a_count_of_tokens_is_in_a_hash_where_there_is_one() -> None:
    """Parts without that column keep the hashes that they were recorded by."""
    bare = pa.table({"prompt_id": ["a"]})
    counts = [pa.array([count], pa.int32()) for count in (None, 1, 2)]
    hashes = [content_hash(bare.append_column("token_count", count)) for count in counts]
    assert hashes[0] == content_hash(bare) and len(set(hashes)) == 3


def test_open_run_reads_what_a_server_was(castctl: Cli, tmp_path: Path) -> None:
    write_sums(tmp_path, 2)
    with Server() as server:
        castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "1", "--run", "told")
    said = open_run(str(tmp_path / "runs/told")).manifest["endpoint"]
    assert said == {"url": f"{server.url}/v1", "model": "adder", "root": "/weights/adder"}
