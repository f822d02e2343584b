"""Settings of what samples. vLLM's go by the names that vLLM gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from castctl.settings import Count, Processes, Section

OURS = {
    "model": "model.path", "tokenizer": "model.path", "revision": "model.revision",
    "dtype": "engine.dtype", "seed": "seed", "trust_remote_code": "model.trust_remote_code",
    "max_model_len": "engine.max_model_len", "max_num_seqs": "engine.max_num_seqs",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "enforce_eager": "engine.enforce_eager", "kv_cache_dtype": "engine.kv_cache_dtype",
    "data_parallel_size": "engine.replicas",
    "generation_config": None, "load_format": None, "logprobs_mode": None,
    "enable_prefix_caching": None, "disable_log_stats": None, "enable_sleep_mode": None,
    "skip_tokenizer_init": None, "enable_lora": None,
}  # fmt: skip
"""Arguments of vLLM's that are no options: the setting that is one's own, None for none."""

CODE = re.compile(
    "cls|config|dir|file|model|module|parser|path|plugin|processor|template|tokenizer"
)
WORD = re.compile("[A-Za-z0-9_-]*")
"""What the name of an option must not hold whose value is a text, and all that such a text may be:
vLLM imports, or reads from the folder it is in, what some of its arguments name."""


class EngineSettings(Section):
    kind: Literal["transformers", "vllm"] = "transformers"
    """What samples, in rollout, evaluation and the loop: `transformers` decodes in this process;
    `vllm` in a process of its own, and the settings below are its."""
    device: str | None = None
    """Where it samples: `cpu`, `cuda` or `cuda:N`; model.device when left out. Further GPUs are
    the next ones."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and arithmetic; `auto` is that of the model's passes: bfloat16 on a GPU."""
    replicas: Processes = 1
    """Engines that share the parts, each on GPUs of its own."""
    tensor_parallel_size: Processes = 1
    """GPUs that hold one copy of the model together."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of a GPU's memory that it takes; when left out 0.9, and 0.3 of a GPU that it shares
    with training (TRL's)."""
    max_num_seqs: Count = 256
    """Completions decoded side by side."""
    max_model_len: Count | None = None
    """Longest prompt and completion together, in tokens; when left out the longest that
    data.max_prompt_tokens and max_tokens allow."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: slower, and sooner ready."""
    kv_cache_dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=40)] = "auto"
    """Numbers of the cache of keys and values; `auto` is the model's, `fp8` is coarser."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's `LLM`, by its names: words and numbers, which name neither code
    nor a file."""
    start_timeout: Annotated[float, Field(gt=0, le=86_400)] = 1800.0
    """Seconds that it may take to load (ours)."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Seconds without a sign of life after which it is replaced (ours)."""

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
            raise ValueError(f"no device {name!r}; use cpu, cuda or cuda:N")
        return name

    @field_validator("options")
    @classmethod
    def _options_are_vllms(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if name in OURS:
                where = OURS[name]
                remedy = f"set {where}" if where else "castctl sets it; take it out"
                raise ValueError(f"{name} is no option: {remedy}")
            if isinstance(value, str) and (CODE.search(name) or not WORD.fullmatch(value)):
                raise ValueError(f"{name}: {value!r} may name code or a file, which no option does")
            if not isinstance(value, str | bool | int | float):
                raise ValueError(f"{name} is no single word or number; those alone are options")
        return options

    @property
    def brings_weights(self) -> bool:
        """Whether it holds a copy of the weights, beside the policy's."""
        return self.kind != "transformers"


def coarser(kv_cache_dtype: str, options: Mapping[str, Any]) -> bool:
    """Whether an engine's weights or cache are coarser than its dtype says."""
    return kv_cache_dtype != "auto" or "quantization" in options
