"""The README.md of a repository: metadata as the hub reads it, and text for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from castctl.hub.facts import Facts
from castctl.recipe.plain_yaml import write_yaml
from castctl.recipe.public import public_name
from castctl.report.evaluation import cell, markdown
from castctl.versions import VERSION

TAG = "castctl"
"""Tells castctl's repositories from others."""

SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
"""The hub's words for how many rows there are, by what they stay below."""

COLUMNS = {
    "step": "step of training, from 0",
    "prompt_id, sample": "the key: a problem, and the number of its completion",
    "problem, answer, solution": "the problem with its reference",
    "completion": "what the model wrote, special tokens left out",
    "finish_reason": "stop, length or error",
    "verdict, reward, extracted": "what the grader found, and the answer that it read",
    "group_kind, kept, base": "the kind of the problem's group, whether the completion trains, "
    "and its advantage before its tokens are shaped",
    "advantages": "the advantage of each token",
    "prompt_token_ids, completion_token_ids": "what the model read and drew",
    "sampler_logprobs": "of each token drawn, in nats",
    "earlier": "messages before the problem",
}
"""What a card says of the columns of rollouts."""


def model_card(
    repository: str, facts: Facts, step: int, *, adapter: bool, pictures: Sequence[Path]
) -> str:
    """The card of a checkpoint, or of its adapter; `pictures` lie beside it."""
    said = {
        "base_model": facts.base_id,
        "base_model_relation": facts.base_id and ("adapter" if adapter else "finetune"),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "license": facts.license,
        "datasets": [facts.data_id] if facts.data_id else None,
        "tags": [TAG, "rlvr", facts.method],
    }
    what = "Adapter (LoRA) of" if adapter else "Weights of"
    return _card(
        said,
        [
            f"# {cell(repository.rpartition('/')[2])}",
            f"{what} {cell(facts.base)} after {step} of {facts.steps} steps of training with "
            f"`{facts.method}`: reinforcement learning with verifiable rewards, by castctl.",
            _use(repository, facts, adapter),
            *_method(facts),
            *_evaluations(facts, step),
            *_course(facts, pictures),
            *_making(facts),
        ],
    )


def rollouts_card(repository: str, facts: Facts, rows: int, columns: Sequence[str]) -> str:
    """The card of a data set of `rows` rollouts with these columns."""
    size = next((word for most, word in SIZES.items() if rows < most), "n>1M")
    said = {
        "pretty_name": f"Rollouts of {facts.name}",
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": [TAG, "rlvr", facts.method],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/*.parquet"}],
            }
        ],
    }
    table = ["| columns | what they hold |", "| --- | --- |"]
    for names, meaning in COLUMNS.items():
        there = [name for name in names.split(", ") if name in columns]
        if there:
            table.append(f"| {', '.join(f'`{name}`' for name in there)} | {meaning} |")
    return _card(
        said,
        [
            f"# {cell(repository.rpartition('/')[2])}",
            f"{rows:,} completions that {cell(facts.base)} drew while it trained with "
            f"`{facts.method}`, with their verdicts: a file a step, a row a completion.",
            _block(f'rows = datasets.load_dataset("{repository}", split="train")', "python"),
            "\n".join(table),
            "Log-probs and advantages are one value a token of the completion. A completion that "
            "could not be judged has no reward and the verdict `error`. Completions are a model's "
            "text, unread and unfiltered.",
            *_method(facts),
            *_making(facts),
        ],
    )  # fmt: skip


def _card(said: dict[str, Any], paragraphs: Iterable[str]) -> str:
    metadata = {key: value for key, value in said.items() if value is not None}
    return f"---\n{write_yaml(metadata)}---\n\n" + "\n\n".join(paragraphs) + "\n"


def _block(text: str, language: str) -> str:
    """A block of code, between more backticks than the text has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _use(repository: str, facts: Facts, adapter: bool) -> str:
    if not adapter:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{repository}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("{repository}")'
        )
        return _block(code, "python")
    if facts.base_id is None:
        return (
            f"Its base model, {cell(facts.base)}, was a folder that is not on the hub by a name "
            "known here: load that model, then this adapter with `peft.PeftModel.from_pretrained`."
        )
    code = (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{facts.base_id}")\n'
        f'model = PeftModel.from_pretrained(base, "{repository}")'
    )
    return _block(code, "python")


def _method(facts: Facts) -> list[str]:
    return ["## Method", f"`{facts.method}`: {facts.summary} ({facts.paper})."]


def _evaluations(facts: Facts, step: int) -> list[str]:
    rows = [
        ("before training" if at == 0 else f"step {at}", {**result, "task": _task(result)})
        for at, result in facts.evaluations
        if at in (0, step)
    ]
    if not rows:
        return ["## Evaluations", "This checkpoint was not evaluated."]
    graders = sorted({str(r["grader"]) for _, r in rows if r.get("grader")})
    by = f" Graded by {', '.join(map(cell, graders))}." if graders else ""
    words = f"Per cent, with 95 % intervals over problems; k samples a problem.{by}"
    return ["## Evaluations", markdown(rows), words]


def _task(result: dict[str, Any]) -> str:
    return public_name(str(result.get("name") or result["task"]))


def _course(facts: Facts, pictures: Sequence[Path]) -> list[str]:
    if not pictures:
        return []
    words = {each.name: each.description for each in facts.pictures}
    shown = (f"![{cell(words[path.stem])}]({path.name})" for path in pictures)
    return ["## Training", "\n\n".join(shown)]


def _making(facts: Facts) -> list[str]:
    versions = ", ".join(f"{cell(name)} {cell(value)}" for name, value in facts.made.items())
    paragraphs = [
        "## How it was made",
        _block(facts.command, "sh"),
        "`recipe.yaml` beside this card has every setting; these are no defaults:",
        _block(facts.changed, "yaml"),
    ]
    if facts.left_out:
        named = ", ".join(map(cell, facts.left_out))
        paragraphs.append(f"It names files or folders that are not here: {named}.")
    return [*paragraphs, f"Made with {versions}. Card by castctl {VERSION}."]
