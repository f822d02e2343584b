"""Tries every causal architecture that transformers knows, tiny and with random weights.

Each goes through the checks of loading; one that passes them is then held against the attention of
its own in ways of this file's: the log-probs of its decode loop, and the gradient of a packed
batch. The table goes to standard output, or with `--write docs/models.md` between its marks there.
Exit code 1 says that an architecture passed the checks and is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from castctl.engines import Request
from castctl.engines.sampling import row_key
from castctl.engines.transformers_engine import TransformersEngine
from castctl.errors import UserError, one_line
from castctl.models.compatibility import check_architecture, refuse_unpackable
from castctl.models.head import fused_loss
from castctl.models.language_model import LanguageModel
from castctl.models.packing import pack
from castctl.models.positions import context_of
from castctl.models.twin import twin_of
from castctl.recipe.recipe import SamplingSettings

SECONDS = 20
"""Of the processor; an architecture that takes longer stays untested."""
TOLERANCE = 2e-3
"""Nats."""
GRADIENT = 0.02
"""Of a gradient's norm. Rounding is enlarged by activations with kinks: weights moved by 1e-7 of
themselves move a gradient of Gemma 3n's twin by up to 0.006. A fault makes tenths."""
MARK = "<!-- made by benchmarks/architectures.py -->"

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48,
    "long_factor": [4.0] * 48, "original_max_position_embeddings": 4096,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, window": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    ),
    "qwen2_moe, window": (
        "qwen2_moe", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}
    ),
    "phimoe, window": ("phimoe", {"sliding_window": 2048}),
    "phi3, LongRoPE": ("phi3", {"rope_parameters": LONGROPE, "max_position_embeddings": 131072}),
    "llama, dynamic NTK": (
        "llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
    ),
    "llama, YaRN": (
        "llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                      "original_max_position_embeddings": 2048}}
    ),
    "granite, scaled logits": ("granite", {"logits_scaling": 8.0}),
    "lfm2, convolutions": ("lfm2", {"full_attn_idxs": [2, 5]}),
}  # fmt: skip
"""Settings that published models have and the class's defaults have not."""

FILLED: dict[str, dict[str, Any]] = {
    "nemotron": {"num_key_value_heads": 8},
    "ministral": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 6},
}
"""What a class leaves empty and every published configuration fills."""

Verdict = tuple[str, str]
UNTRIED: Verdict = ("untested", "not tried yet")


def names() -> list[str]:
    """Every causal architecture, and the variants."""
    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def configuration(name: str) -> tuple[type, Any]:
    """The causal class of a name, and its configuration, with dropout everywhere."""
    model_type, settings = VARIANTS.get(name, (name, FILLED.get(name, {})))
    config = CONFIG_MAPPING[model_type](**settings)
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.1)
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]), config


def verdict(name: str) -> Verdict:
    """`right`, `refused`, `untested` or `wrong`, and why."""
    try:
        kind, config = configuration(name)
    except Exception as error:
        return "untested", f"no configuration of its own: {one_line(error, 120)}"
    try:
        refuse_unpackable(config)
        check_architecture(kind, config)
    except UserError as error:
        reason = str(error).removeprefix(f"castctl cannot pack {config.model_type} models: ")
        cannot = f"castctl cannot check {config.model_type} models, whose small copy does not run: "
        if reason.startswith(cannot):
            return "untested", "no small copy runs: " + reason.removeprefix(cannot)[:120]
        return "refused", reason.removesuffix("; use a model with attention layers only")
    try:
        return held_against_its_own(kind, config)
    except Exception as error:
        return "refused", f"the decode loop cannot run it: {one_line(error, 120, named=True)}"


def held_against_its_own(kind: type, config: Any) -> Verdict:
    """The sampler's log-probs and the gradient, against those of the architecture's attention."""
    ours, theirs = twin_of(kind, config, seed=1)
    model = LanguageModel(ours, tokenizer(), torch.float32)
    rng = np.random.default_rng(1)
    room = min(44, model.context_tokens)
    tokens = min(14, room // 2)
    lengths = {2, 5, room - tokens}
    prompts = [rng.integers(1, 60, length).astype(np.int32) for length in sorted(lengths)]
    sampling = SamplingSettings(temperature=1.0, max_tokens=tokens)
    asked = [Request(prompt, row_key(0, 0, "x", i)) for i, prompt in enumerate(prompts)]
    ((_, sampled),) = TransformersEngine(model).generate({0: asked}, sampling, lambda count: None)
    rows = [completion.token_ids for completion in sampled]
    expected = [plain(theirs, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    found = torch.from_numpy(np.concatenate([c.logprobs for c in sampled]))
    off = float((found - torch.cat(expected).detach()).abs().max())
    if not off < TOLERANCE:
        return "refused", f"the first step stops: its sampler is {off:.2g} nats off the scorer"
    batch = pack(prompts, rows)
    targets = torch.from_numpy(batch.targets_N)
    loss, *_ = fused_loss(
        model.head(1.0, 32), model.hidden_states(batch), targets, lambda part, logps, *_: logps
    )
    loss.backward()
    torch.cat(expected).sum().backward()
    own = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is None and own[name].grad is None:
            continue
        difference = (parameter.grad - own[name].grad).norm()
        norm = max(float(own[name].grad.norm()), 1e-3)
        if not float(difference) < GRADIENT * norm + 1e-3:
            return "wrong", f"the gradient of {name} is {float(difference) / norm:.2g} off"
    limit, why = context_of(config)
    return "right", "" if why == "positions" else f"rows of up to {limit} tokens"


def plain(model: Any, prompt: np.ndarray, completion: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    targets = ids[len(prompt) :, None]
    return logits.log_softmax(-1).gather(1, targets)[:, 0]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0")


def apart(name: str) -> Verdict:
    """The verdict of a process of its own, which may take `SECONDS`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which ends the process
            torch.set_num_threads(1)
            os.write(writing, json.dumps(verdict(name)).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if not answer:
        return "untested", f"its small copy takes longer than {SECONDS} s"
    found, reason = json.loads(answer)
    return found, reason


def table(verdicts: Mapping[str, Verdict]) -> str:
    """The table in Markdown."""
    lines = ["| architecture | castctl | why |", "| --- | --- | --- |"]
    for name, (found, reason) in verdicts.items():
        reason = re.sub(r"\s+", " ", reason).replace("|", "/").replace("<", "&lt;")
        lines.append(f"| {name} | {found} | {reason} |".replace("|  |", "| |"))
    return "\n".join(lines)


def read_table(page: str) -> dict[str, Verdict]:
    """The verdicts of a page that this script wrote, by architecture."""
    lines = [line for line in page.split(MARK)[1].splitlines() if line.startswith("| ")]
    rows = [line.strip("|").split("|") for line in lines]
    return {row[0].strip(): (row[1].strip(), row[2].strip()) for row in rows[2:]}


def written(page: str, tried: Mapping[str, Verdict]) -> str:
    """The page with what was tried now; other rows stay, and what has none is untested."""
    known = {name: UNTRIED for name in names()} | read_table(page) | dict(tried)
    verdicts = {name: known[name] for name in names()}
    counts = Counter(found for found, _ in verdicts.values())
    before, _, after = page.split(MARK)
    return (
        f"{before}{MARK}\n\nWith transformers {transformers.__version__}: {counts['right']} right, "
        f"{counts['refused']} refused, {counts['untested']} untested.\n\n"
        f"{table(verdicts)}\n\n{MARK}{after}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these architectures")
    parser.add_argument("--write", type=Path, help="the page whose table is brought up to date")
    parser.add_argument("--untried", action="store_true", help="only what the page has not yet")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    wanted = options.names or names()
    if options.untried:
        there = read_table(options.write.read_text(encoding="utf-8"))
        wanted = [name for name in wanted if there.get(name, UNTRIED) == UNTRIED]
    tried = {}
    for name in wanted:
        tried[name] = apart(name)
        print(*tried[name], name, file=sys.stderr, flush=True)
        if options.write is not None:
            page = options.write.read_text(encoding="utf-8")
            options.write.write_text(written(page, {name: tried[name]}), encoding="utf-8")
    if options.write is None:
        print(table(tried))
    if any(found == "wrong" for found, _ in tried.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
