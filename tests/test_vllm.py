"""vLLM itself, on the CPU: what it samples, how it takes over weights, and how it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from castctl.engines import Completion, Request, Site, vllm_launch
from castctl.engines.sampling import next_token_scores
from castctl.engines.stops import check_stops, first_stop
from castctl.engines.transformers_engine import TransformersEngine
from castctl.engines.vllm_engine import VllmEngine
from castctl.errors import UserError
from castctl.models.policy import Policy, load_policy
from castctl.models.weights import Weights
from castctl.progress import Silent
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import SamplingSettings
from castctl.runs.run import Run, adopt_run, create_run, open_run
from castctl.stages.one_step import train_stage
from castctl.stages.policies import policy_at
from castctl.stages.train.loop import train
from commands import Commands
from conftest import Cli
from models import EOS, SHAPE, penalised, plain_logits, random_ids, tokenizer
from rank_processes import ended, started
from runs import SMALL, assert_same_step, assert_same_weights, small_recipe, steps_by_hand

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

WIDE = SHAPE | {
    "vocab_size": 64, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1
}  # fmt: skip
"""vLLM's attention on the CPU takes heads of 32 and more."""

MODELS: dict[str, Callable[[], Any]] = {
    "qwen3-tied": lambda: Qwen3Config(**WIDE, head_dim=32, tie_word_embeddings=True),
    "qwen3-untied": lambda: Qwen3Config(**WIDE, head_dim=32, tie_word_embeddings=False),
    "llama-untied": lambda: LlamaConfig(**WIDE, tie_word_embeddings=False),
    "qwen2-tied": lambda: Qwen2Config(**WIDE, tie_word_embeddings=True),
}

LONG_PROMPT = 160
"""Tokens; the prefix cache keeps whole blocks of 128 on the CPU."""

SAMPLING = SamplingSettings(n=1, max_tokens=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A peaked random model of each architecture."""
    found = {}
    for name, config in MODELS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config())
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        tokenizer().save_pretrained(found[name])
    return found


Make = Callable[..., tuple[VllmEngine, Policy]]


@contextlib.contextmanager
def making(folders: dict[str, Path], run: Path) -> Iterator[Make]:
    """Make engines, and close them."""
    engines: list[VllmEngine] = []

    def make(name: str, *settings: str) -> tuple[VllmEngine, Policy]:
        asked = load_recipe("tiny", ["engine.kind=vllm", "model.device=cpu", *settings])
        policy = load_policy(Weights(folders[name]), asked.model)
        engines.append(VllmEngine(asked, policy, Site(folders[name], run)))
        return engines[-1], policy

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def made(tmp_path: Path, folders: dict[str, Path]) -> Iterator[Make]:
    with making(folders, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def still(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]
) -> Iterator[tuple[VllmEngine, Policy]]:
    """An engine whose weights no test changes."""
    with making(folders, tmp_path_factory.mktemp("run")) as make:
        yield make("qwen3-tied")


def batches(length: int = 9, parts: int = 2, rows: int = 6) -> dict[int, list[Request]]:
    """Two completions of each prompt, with keys of 128 bits."""
    rng = np.random.default_rng(0)
    prompts = [random_ids(rng, length + n) for n in range(parts * rows // 2)]
    keys = iter(2**127 + int(key) for key in rng.integers(2**62, size=parts * rows))
    return {
        part: [Request(prompts[(part * rows + n) // 2], next(keys)) for n in range(rows)]
        for part in range(parts)
    }


def sampled(
    engine: VllmEngine, asked: dict[int, list[Request]], sampling: SamplingSettings = SAMPLING
) -> list[Completion]:
    found = dict(engine.generate(asked, sampling, lambda count: None))
    return [completion for part in asked for completion in found[part]]


def off(policy: Policy, asked: dict[int, list[Request]], done: list[Completion]) -> float:
    """The largest gap of a token's log-prob from castctl's scorer, in nats."""
    prompts = [request.prompt for part in asked.values() for request in part]
    ids = [completion.token_ids for completion in done]
    scored, _ = policy.model.score(prompts, ids, 1.0, 4096, 256, with_entropies=False)
    return float(np.abs(np.concatenate([c.logprobs for c in done]) - scored).max())


@torch.no_grad()
def move(policy: Policy) -> None:
    for _, parameter in policy.trained():
        parameter.mul_(1 + 0.1 * torch.randn_like(parameter))


def assert_follows(
    engine: VllmEngine, policy: Policy, change: Callable[[Policy], None], times: int
) -> None:
    """Log-probs are the scorer's at first and after every change, and other tokens are drawn."""
    asked = batches()
    done = sampled(engine, asked)
    assert off(policy, asked, done) < 1e-4
    for _ in range(times):
        change(policy)
        assert engine.sync()["sync_gap_max"] < 1e-4
        before, done = done, sampled(engine, asked)
        assert off(policy, asked, done) < 1e-4
        pairs = zip(before, done, strict=True)
        assert not all(np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_the_scorers_also_after_five_changes_of_weights(made: Make, name: str) -> None:
    engine, policy = made(name)
    assert_follows(engine, policy, move, 5)


LORA = "model.lora={r: 4, alpha: 8}"


@torch.no_grad()
def move_adapter(policy: Policy) -> None:
    """Its factors begin with zeros, which no product moves."""
    for _, parameter in policy.trained():
        parameter.add_(0.03 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", ["qwen3-tied", "llama-untied"])
def test_logprobs_are_the_scorers_over_six_adapters(made: Make, name: str) -> None:
    engine, policy = made(name, LORA)
    assert_follows(engine, policy, move_adapter, 6)


def test_an_engine_that_starts_takes_the_adapter_as_it_is(made: Make) -> None:
    engine, policy = made("qwen3-tied", LORA)
    move_adapter(policy)
    engine.sync()
    asked = batches()
    assert off(policy, asked, sampled(engine, asked)) < 1e-4


def test_the_proof_sees_an_adapter_under_a_number_that_was_given(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_launch, "ENTRY", "broken_vllm:same_adapter")
    engine, policy = made("qwen3-tied", LORA)
    sampled(engine, batches())
    move_adapter(policy)
    with pytest.raises(UserError, match="the new weights never reached it"):
        engine.sync()


def test_completions_hang_on_their_key_alone(still: tuple[VllmEngine, Policy], made: Make) -> None:
    """Not on order, batch, what else is asked, or the process."""
    engine, _ = still
    asked = batches()
    requests = [*asked[0], *asked[1]]
    expected = {r.key: c for r, c in zip(requests, sampled(engine, asked), strict=True)}
    other, _ = made("qwen3-tied", "engine.max_num_seqs=2")
    again = zip(requests[::-1], sampled(other, {0: requests[::-1]}), strict=True)
    few = zip(asked[1][:1], sampled(engine, {7: asked[1][:1]}), strict=True)
    for request, completion in [*again, *few]:
        assert np.array_equal(completion.token_ids, expected[request.key].token_ids)
        assert np.array_equal(completion.logprobs, expected[request.key].logprobs)
    assert len({c.token_ids.tobytes() for c in expected.values()}) > 6


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.6}, {"top_p": 0.7}, {"top_k": 5}, {"min_p": 0.1},
     {"temperature": 0.8, "top_p": 0.8, "top_k": 9}],
)  # fmt: skip
def test_logprobs_are_of_the_distribution_that_is_drawn_from(
    still: tuple[VllmEngine, Policy], settings: dict[str, float]
) -> None:
    engine, policy = still
    sampling = SAMPLING.model_copy(update=settings)
    asked = batches(parts=1)
    for request, completion in zip(asked[0], sampled(engine, asked, sampling), strict=True):
        with torch.no_grad():
            logits = plain_logits(policy.model.model, request.prompt, completion.token_ids)
        scores = next_token_scores(
            logits, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
        )
        ids = torch.from_numpy(completion.token_ids).long()
        chosen = scores.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        assert np.allclose(completion.logprobs, chosen, atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [{"presence_penalty": 1.5, "repetition_penalty": 1.3}, {"presence_penalty": -0.7},
     {"repetition_penalty": 0.8}],
)  # fmt: skip
def test_penalties_are_those_of_their_definition(
    still: tuple[VllmEngine, Policy], kind: dict[str, float]
) -> None:
    """Log-probs are of the penalised distribution; greedy decoding takes its highest."""
    engine, policy = still
    sampling = SAMPLING.model_copy(update={"temperature": 0.8, **kind})
    asked = batches(parts=4)
    requests = [request for part in asked.values() for request in part]

    def scores(request: Request, done: Completion) -> torch.Tensor:
        with torch.no_grad():
            logits = plain_logits(policy.model.model, request.prompt, done.token_ids)
        presence, repetition = sampling.presence_penalty, sampling.repetition_penalty
        return penalised(logits, request.prompt, done.token_ids, presence, repetition)

    for request, done in zip(requests, sampled(engine, asked, sampling), strict=True):
        ids = torch.from_numpy(done.token_ids).long()
        expected = (scores(request, done) / 0.8).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        assert np.allclose(done.logprobs, expected, atol=1e-4)
    settings = sampling.model_copy(update={"temperature": 0.0})
    greedy = sampled(engine, asked, settings)
    own = dict(TransformersEngine(policy.model).generate(asked, settings, lambda count: None))
    others = [completion for part in asked for completion in own[part]]
    for request, done, other in zip(requests, greedy, others, strict=True):
        best = scores(request, done).topk(2, dim=-1)
        clear = (best.values[:, 0] - best.values[:, 1] > 1e-4).numpy()
        assert clear.mean() > 0.8 and (best.indices[:, 0].numpy() == done.token_ids)[clear].all()
        assert not clear.all() or np.array_equal(done.token_ids, other.token_ids)


def test_stops_greedy_and_endings(still: tuple[VllmEngine, Policy]) -> None:
    engine, policy = still
    asked, words = batches(parts=16), policy.model.tokenizer
    greedy = sampled(engine, asked, SAMPLING.model_copy(update={"temperature": 0.0}))
    assert all(completion.logprobs is None for completion in greedy)
    for twin, other in zip(greedy[::2], greedy[1::2], strict=True):
        assert np.array_equal(twin.token_ids, other.token_ids)
    free = sampled(engine, asked)
    assert {c.finish_reason for c in free} == {"stop", "length"}
    for completion in free:
        ended = completion.token_ids[-1] == EOS
        assert ended == (completion.finish_reason == "stop")
        assert ended or len(completion.token_ids) == SAMPLING.max_tokens
    stop = words.decode(free[0].token_ids[2:4])
    stopped = sampled(engine, asked, SAMPLING.model_copy(update={"stop": (stop,)}))
    check_stops(stopped, (stop,), words)
    for whole, cut in zip(free, stopped, strict=True):
        at = first_stop(words, whole.token_ids, (stop,))
        assert np.array_equal(cut.token_ids, whole.token_ids[:at])
    assert len(stopped[0].token_ids) < len(free[0].token_ids)


@pytest.mark.parametrize(
    "broken, words",
    [
        ("tied_head", "the output head is tied to the embeddings"),
        ("cache", "with an empty prefix cache it is right"),
        ("nothing", "the new weights never reached it"),
    ],
)
def test_the_proof_sees_a_change_of_weights_that_is_broken(
    made: Make, monkeypatch: pytest.MonkeyPatch, broken: str, words: str
) -> None:
    monkeypatch.setattr(vllm_launch, "ENTRY", f"broken_vllm:{broken}")
    engine, policy = made("qwen3-tied")
    sampled(engine, batches(LONG_PROMPT))
    move(policy)
    with pytest.raises(UserError, match=words):
        engine.sync()


ASKED = ("engine.kind=vllm", "model.device=cpu", "train.steps=6")


def small(*settings: str) -> Any:
    return small_recipe("cast", *ASKED, *settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = create_run(small(), str(tmp_path_factory.mktemp("loop") / "run"), "test")
    train(run, Silent(), lambda row: None)
    return run


def test_the_loop_samples_from_each_of_six_adapters(tmp_path: Path) -> None:
    run = create_run(small(LORA, "optimizer.lr=0.01"), str(tmp_path / "run"), "test")
    train(run, Silent(), lambda row: None)
    rows = run.metrics().to_pylist()
    assert len(rows) == 6 and all(0 < row["sync_gap_max"] < 1e-4 for row in rows)
    assert all(row["sampler_gap_max"] < 1e-3 for row in rows)


def test_each_of_two_ranks_that_share_the_weights_samples_with_an_engine_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    settings = [word for line in (*SMALL, *ASKED) for word in ("--set", line)]
    command = ("-m", "castctl", "train", "--method", "cast", "--run", str(path), *settings)
    shares = ("--set", "train.sharding=full")
    processes = started(2, *command, "--set", "train.steps=2", *shares)
    printed = "".join(ended(processes, seconds=400))
    assert [process.returncode for process in processes] == [0, 0], printed
    rows = open_run(str(path)).metrics().to_pylist()
    assert all(row["ranks"] == 2 and row["sampler_gap_max"] < 1e-3 for row in rows)
    assert rows[0]["sync_gap_max"] < 1e-4  # of what is whole again after the update
    logs = {log.name for log in path.glob("engine*.log")}
    assert logs == {"engine-shard-0-0.log", "engine-shard-1-0.log"}


def test_the_loop_killed_and_resumed_equals_one_that_was_not(
    finished: Run, castctl: Cli, commands: Commands, tmp_path: Path
) -> None:
    assert all(0 < gap < 1e-4 for gap in finished.metrics()["sync_gap_max"].to_pylist())
    settings = [word for line in (*SMALL, *ASKED) for word in ("--set", line)]
    loop = commands.start("train", "--method", "cast", "--run", "again", *settings, cwd=tmp_path)
    wait_for(lambda: any(tmp_path.rglob("step-00002/rollouts")))
    os.kill(loop.pid, signal.SIGKILL)
    loop.wait(60)
    castctl("train", "--resume", "--run", "again", timeout=400)
    again = open_run(str(next(tmp_path.rglob("manifest.json")).parent))
    for step in range(6):
        assert_same_step(finished.step(step), again.step(step))
    assert_same_weights(finished.checkpoint(6), again.checkpoint(6))


def test_stages_by_hand_equal_the_loop(finished: Run, tmp_path: Path) -> None:
    alone = adopt_run(tmp_path / "run", finished.recipe)
    for step in (0, 1):
        steps_by_hand(alone, [step], finished)
        train_stage(alone, step, policy_at(alone, step), overwrite=False)
    assert_same_weights(finished.checkpoint(2), alone.checkpoint(2))


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda s: s.name
)
def test_no_process_outlives_the_command(
    commands: Commands, tmp_path: Path, number: signal.Signals
) -> None:
    """In mid-load, and for one of the signals in mid-sampling."""
    limits = ["--set", "sampling.max_tokens=200", "--set", "engine.max_num_seqs=1"]
    command = commands.start(
        "rollout", "--engine", "vllm", "--device", "cpu", "--run", "here", *limits, cwd=tmp_path
    )
    found = lambda: [*tmp_path.rglob("engine-0.log")]  # noqa: E731
    wait_for(lambda: found() and b"process " in found()[0].read_bytes())
    leader = int(found()[0].read_text().split("process ")[1].split(":")[0])
    assert psutil.pid_exists(leader)
    if number == signal.SIGKILL:
        wait_for(lambda: b"Passing raw prompts" in found()[0].read_bytes())
    os.kill(command.pid, number)
    command.wait(60)
    wait_for(lambda: not in_group(leader), 20)


def in_group(leader: int) -> list[int]:
    """Processes that live in a group."""
    alive = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return alive


def wait_for(what: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
