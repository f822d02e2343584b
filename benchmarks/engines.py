"""Tokens a second of castctl's own decode loop and of vLLM on equal prompts, and what syncs cost.

Made for a GPU: 64 prompts of 8 completions of 1,024 tokens, from a random model of the shape of
Qwen3-1.7B, which is on the GPU too. `--small` measures on the CPU.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
import random_qwen3
import torch

from castctl.engines import Engine, Request, Site, make_engine
from castctl.engines.replica import Replica
from castctl.engines.sampling import row_key
from castctl.engines.transformers_engine import TransformersEngine
from castctl.engines.vllm_engine import VllmEngine
from castctl.models.policy import Policy
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import SamplingSettings
from castctl.stages.policies import named_policy

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-1.7B": random_qwen3.PUBLISHED["Qwen3-1.7B"],
    "small": {},
    "quick": {"vocabulary": 4096, "hidden": 64, "layers": 2},
}
WORK = {"Qwen3-1.7B": (64, 8, 1024), "small": (8, 8, 64), "quick": (2, 2, 8)}
"""Prompts, completions of each, and tokens of each."""

TEXT = Path(__file__).parents[1] / "README.md"
"""What the tokenizer is made of."""


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--small", action="store_true", help="a small model, for the CPU")
    parser.add_argument("--rows", type=int, default=64, help="side by side in castctl's own loop")
    options = measure.parse(parser)
    shape = "quick" if options.quick else "small" if options.small else "Qwen3-1.7B"
    count, n, tokens = WORK[shape]

    clock = measure.Clock()
    clock.wrap(VllmEngine, "_start", "start", opaque=True)
    for name in ("rest", "wake"):
        clock.wrap(Replica, name, name, opaque=True)
    clock.wrap(VllmEngine, "_prove", "proof", opaque=True)
    with engines(shape, tokens) as (policy, vllm):
        requests = asked(count, n, policy.model.model.config.vocab_size)
        sampling = SamplingSettings(n=n, max_tokens=tokens, max_rows=options.rows)
        own = TransformersEngine(policy.model)
        measure.timed(sampling_of(vllm, requests[:1], sampling))()
        starting = clock.seconds["start"]
        spent = measure.interleaved(
            {
                "castctl": sampling_of(own, requests, sampling),
                "vllm": sampling_of(vllm, requests, sampling),
            },
            options.repeats,
        )
        memory = {"awake": memory_gb(policy)}
        synced, proved, gaps = [], [], []
        for _ in range(options.repeats):
            clock.reset()
            move(policy)
            synced.append(measure.timed(lambda: gaps.append(vllm.sync()))())
            proved.append(clock.seconds["proof"])
        clock.reset()
        vllm.rest()
        memory["resting"] = memory_gb(policy)
        sampling_of(vllm, requests[:1], sampling)()
        rested = {name: clock.seconds[name] for name in ("rest", "wake")}
        measure.report(
            "engines",
            options.repeats,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            shape=shape,
            parameters=sum(each.numel() for each in policy.model.model.parameters()),
            engine=vllm.identity,
            prompts=count,
            n=n,
            tokens=tokens,
            rows=options.rows,
            castctl_tokens_per_second=1 / measure.median(spent["castctl"]),
            vllm_tokens_per_second=1 / measure.median(spent["vllm"]),
            **measure.ratio(spent["castctl"], spent["vllm"]),
            start_seconds=starting,
            sync_seconds=measure.median(synced),
            proof_seconds=measure.median(proved),
            # Without a shared GPU there is nothing to give back.
            rest_seconds=rested["rest"] if torch.cuda.is_available() else None,
            wake_seconds=rested["wake"] if torch.cuda.is_available() else None,
            gap_mean=max(gap["sync_gap_mean"] for gap in gaps),
            gap_max=max(gap["sync_gap_max"] for gap in gaps),
            gb=memory,
        )


@contextlib.contextmanager
def engines(shape: str, tokens: int) -> Iterator[tuple[Policy, Engine]]:
    """A random policy of a shape, and vLLM with its weights."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"vocabulary": random_qwen3.VOCABULARY, **SHAPES[shape]}
        tokenizer = random_qwen3.make_tokenizer(TEXT, sizes["vocabulary"])
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model = random_qwen3.make_model(**sizes, **ids)
        for saved in (model, tokenizer):
            saved.save_pretrained(folder)
        del model
        recipe = load_recipe(
            None,
            ["engine.kind=vllm", f"sampling.max_tokens={tokens}", "data.max_prompt_tokens=128"],
            model={"path": folder},
        )
        policy = named_policy(recipe).load(recipe.model)
        site = Site(Path(folder), Path(folder))
        with contextlib.closing(make_engine(recipe, policy, site)) as engine:
            yield policy, engine


def asked(count: int, n: int, vocabulary: int) -> list[Request]:
    """`n` requests of each of `count` random prompts of about a hundred tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(64, 129, count)
    prompts = [rng.integers(3, vocabulary, length).astype(np.int32) for length in lengths]
    return [
        Request(prompt, row_key(0, 0, str(number), sample))
        for number, prompt in enumerate(prompts)
        for sample in range(n)
    ]


def sampling_of(
    engine: Engine, requests: list[Request], sampling: SamplingSettings
) -> Callable[[], float]:
    """Seconds a sampled token of an engine."""

    def run() -> float:
        began = time.perf_counter()
        ((_, completions),) = engine.generate({0: requests}, sampling, lambda count: None)
        return (time.perf_counter() - began) / sum(len(c.token_ids) for c in completions)

    return run


@torch.no_grad()
def move(policy: Policy) -> None:
    """Change every weight by more than bfloat16 rounds away."""
    for _, parameter in policy.trained():
        parameter.mul_(1.01)


def memory_gb(policy: Policy) -> dict[str, float]:
    """GiB of the GPU in use and, of that, at most by the policy's process; on the CPU those that
    this process and the engine's hold."""
    if policy.model.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        most = torch.cuda.max_memory_reserved()
        return {"gpu": (total - free) / measure.GIB, "policy_most": most / measure.GIB}
    me = psutil.Process()
    held = sum(each.memory_info().rss for each in me.children(recursive=True))
    return {"policy": me.memory_info().rss / measure.GIB, "engine": held / measure.GIB}


if __name__ == "__main__":
    main()
