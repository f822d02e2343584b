"""How the makers of a model say that it is sampled, by the name of its family."""

from __future__ import annotations

from typing import Any, Literal

Family = Literal[
    "qwen3-think", "qwen3-nothink", "qwen3-thinking-2507", "qwen3-instruct-2507", "deepseek-r1"
]

_THINKING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
_INSTRUCT = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0}

OFF = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}  # fmt: skip
"""What a family's name decides, with what leaves it to the model."""

RECOMMENDED: dict[Family, dict[str, float]] = {
    "qwen3-think": OFF | _THINKING,
    "qwen3-nothink": OFF | _INSTRUCT,
    "qwen3-thinking-2507": OFF | _THINKING,
    "qwen3-instruct-2507": OFF | _INSTRUCT,
    "deepseek-r1": OFF | {"temperature": 0.6, "top_p": 0.95},
}
"""Qwen3's from "Best Practices" on the cards of Qwen/Qwen3-*, of thinking and non-thinking mode,
and on those of Qwen/Qwen3-*-Thinking-2507 and -Instruct-2507; DeepSeek-R1's and its distillations'
from "Evaluation Results" on the card of deepseek-ai/DeepSeek-R1."""


def named_sampling(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings of `eval` with those of the family that `sampling` names below them."""
    family: Any = str(tree.get("sampling"))
    return {**RECOMMENDED.get(family, {}), **tree}


def without_named(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings without what a family decides, where `own` settings over it name one."""
    said, below = own.get("eval"), base.get("eval")
    if not isinstance(said, dict) or not said.get("sampling") or not isinstance(below, dict):
        return base
    return {**base, "eval": {key: below[key] for key in below if key not in OFF}}
