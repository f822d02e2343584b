"""Tiny language models whose answers are far from uniform, and the plain way to score with them.

A random model of the usual initialisation gives every token nearly the same probability
wherever it looks, so that comparisons would pass by accident.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.models.packing import PackedBatch, pack

VOCABULARY = 61
EOS = 60
WINDOW = 7
"""Sliding window of the models that have one: smaller than the rows of these tests."""

Rows = Sequence[NDArray[np.int32]]

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3-tied": lambda: Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "mistral-window": lambda: MistralConfig(
        **SHAPE, sliding_window=WINDOW, tie_word_embeddings=False
    ),
    "qwen2-half-window": lambda: Qwen2Config(
        **SHAPE,
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=["full_attention", "sliding_attention"],
        tie_word_embeddings=True,
    ),
    "gemma3-softcap": lambda: Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["full_attention", "sliding_attention"],
        final_logit_softcapping=6.0,
    ),
    "phi-biased-head": lambda: PhiConfig(**SHAPE, tie_word_embeddings=False),
}
"""Architectures that differ in what a packed batch has to get right."""


def tiny(
    name: str = "qwen3-tied", dtype: torch.dtype = torch.float32, seed: int = 0
) -> LanguageModel:
    """A language model of that architecture with peaked random answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            CONFIGS[name](), attn_implementation=attention.NAME
        )
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    continue
                if parameter_name.endswith("bias"):
                    parameter.normal_(0, 0.5)
                else:
                    parameter.uniform_(0.5, 1.5)
    if dtype == torch.float64:
        _make_norms_exact(model)
    return LanguageModel(model.to(dtype).eval(), tokenizer(), dtype)


class _ExactNorm(torch.nn.Module):
    """RMS norm in the precision of its input; those of transformers round to float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.shift = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return x * scale * (self.weight + self.shift)


def _make_norms_exact(model: torch.nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, _ExactNorm(child))


def tokenizer() -> PreTrainedTokenizerFast:
    """Words `0`, `1`, ... for the ids; the last one ends a text."""
    words = Tokenizer(WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(EOS), pad_token="0")


def plain(language_model: LanguageModel) -> Any:
    """The same weights under transformers' own attention, gradients included."""
    twin = copy.deepcopy(language_model.model)
    # `eager` would take its softmax in float32 even where the model is float64.
    twin.set_attn_implementation("sdpa")
    return twin


def plain_logits(model: Any, prompt: NDArray, completion: NDArray) -> torch.Tensor:
    """The logits (length, V) that predict one row's completion: no packing, no cache."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(ids) - 1]


@dataclass(frozen=True)
class Scores:
    """Log-prob and entropy of every completion token, flat in row order."""

    logprobs: torch.Tensor
    entropies: torch.Tensor


def penalised(
    logits_TV: torch.Tensor,
    prompt: NDArray,
    completion: NDArray,
    presence: float,
    repetition: float,
) -> torch.Tensor:
    """Logits (T, V, float64) under penalties by definition, a position and a token at a time."""
    scores = logits_TV.double().clone()
    for position, row in enumerate(scores):
        sampled = set(completion[:position].tolist())
        for token in sampled | set(prompt.tolist()):
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
        for token in sampled:
            row[token] -= presence
    return scores


def plain_scores(model: Any, prompts: Rows, completions: Rows, temperature: float) -> Scores:
    """The scores by definition, one row at a time from all logits."""
    logprobs, entropies = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        if len(completion) == 0:
            continue
        scaled = plain_logits(model, prompt, completion) / temperature
        log_softmax = torch.log_softmax(scaled, dim=-1)
        targets = torch.from_numpy(completion.astype(np.int64))
        logprobs.append(log_softmax.gather(1, targets[:, None])[:, 0])
        entropies.append(-(log_softmax.exp() * log_softmax).sum(-1))
    return Scores(torch.cat(logprobs), torch.cat(entropies))


def packed_hidden(
    language_model: LanguageModel, prompts: Rows, completions: Rows
) -> tuple[PackedBatch, torch.Tensor, torch.Tensor]:
    """The packed batch, its hidden states (N, H) and its targets (N)."""
    batch = pack(prompts, completions)
    return batch, language_model.hidden_states(batch), torch.from_numpy(batch.targets_N)


def ids(*tokens: int) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)


def random_ids(rng: np.random.Generator, length: int) -> NDArray[np.int32]:
    """Tokens that do not end a text."""
    return rng.integers(1, EOS, length).astype(np.int32)
