"""A GRPO or CAST step at the shapes of Qwen3-1.7B, 4B and 8B: speed, utilisation and memory.

Made for a GPU: a line of JSON for each shape, whose weights are random and whose arithmetic is
bfloat16. `--small` measures on the CPU. `--trl` takes the same step by TRL, in an environment of
its own and after castctl, since a GPU has no room for both. A process of its own takes the steps of
each side and shape. Utilisation is model FLOPs (flops.py) over seconds and the GPU's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import castctl_step
import measure
import random_qwen3
import torch
from against_trl import Work, write
from flops import peak_of
from peer_environment import TRL, python_with
from sides import Child

from castctl.errors import UserError
from castctl.explain.estimate import Memory, estimate_memory
from castctl.recipe.recipe import Recipe

UTILIZATION, OVER_TRL = 0.4, 2.0
"""The goals on an H100: of the update, and TRL's step over castctl's."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the step that it is measured on unless told otherwise."""

    sizes: dict[str, Any]
    vocabulary: int = random_qwen3.VOCABULARY
    prompts: int = 16
    n: int = 8
    tokens: int = 1024
    prompt_tokens: int = 128
    dtype: str = "bfloat16"
    settings: tuple[str, ...] = ()


ADAPTER = ("model.lora.r=64",)
"""All weights of Qwen3-8B, their gradients and moments are 122 GiB."""
SHAPES = {
    "Qwen3-1.7B": Shape(random_qwen3.PUBLISHED["Qwen3-1.7B"]),
    "Qwen3-4B": Shape(random_qwen3.PUBLISHED["Qwen3-4B"]),
    "Qwen3-8B": Shape(random_qwen3.PUBLISHED["Qwen3-8B"], settings=ADAPTER),
}
SMALL = Shape({}, prompts=4, n=4, tokens=64, prompt_tokens=64, dtype="float32")
QUICK = Shape({"hidden": 64, "layers": 2}, 4096, 2, 2, 8, 16, "float32")
TIMED = {"rollout": "rollout", "score": "score", "update": "train"}
"""The stages with a utilisation, and what the metrics call their seconds."""
PHASES = {"reading prompts": "rollout", "sampling": "rollout", "scoring": "score",
          "influence on the answer": "score"}  # fmt: skip
"""Phases of the estimate, and their stage; every other is of the update."""


def main() -> None:
    options = asked()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL's trainer would take all there are
    shapes = {name: SHAPES[name] for name in options.shapes}
    if options.small or options.quick:
        shapes = {"quick": QUICK} if options.quick else {"small": SMALL}
    elif not torch.cuda.is_available():
        sys.exit("these shapes need a GPU, and there is none; --small and --quick run on the CPU")
    if options.trl and (options.engine == "vllm" or options.method != "grpo"):
        sys.exit("--trl takes GRPO's step with transformers; leave --engine and --method out")
    settings = {name: (*shape.settings, *options.set) for name, shape in shapes.items()}
    adapts = [name for name, each in settings.items() if any("model.lora" in s for s in each)]
    if options.trl and adapts:
        sys.exit(f"--trl trains all weights, and {', '.join(adapts)} an adapter; name --shapes")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    failed = False
    for name, shape in shapes.items():
        try:
            with tempfile.TemporaryDirectory() as place:
                line = measured(Path(place) / "work", shape, options, device)
        except UserError as mistake:
            sys.exit(str(mistake))
        failed |= "failed" in line
        measure.report("shapes", options.repeats, device=device, shape=name, **line)
        sys.stdout.flush()
    sys.exit(int(failed))


def asked() -> argparse.Namespace:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--small", action="store_true", help="a small model, for the CPU")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--prompts", type=int, help="prompts of a step")
    parser.add_argument("--n", type=int, help="completions of each")
    parser.add_argument("--tokens", type=int, help="tokens of each completion")
    parser.add_argument("--prompt-tokens", type=int, help="tokens of each prompt")
    parser.add_argument("--method", choices=("grpo", "cast"), default="grpo")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where it is not listed")
    parser.add_argument("--trl", action="store_true", help="TRL's step too")
    parser.add_argument("--python", type=Path, help="of an environment with TRL")
    return measure.parse(parser)


def measured(
    folder: Path, shape: Shape, options: argparse.Namespace, device: str
) -> dict[str, Any]:
    """The numbers of a shape; of a side that ended before its time, the name."""
    work = work_of(shape, options)
    # A step more than is taken: the last one of a run writes a checkpoint.
    write(folder, work, options.repeats + 2)
    recipe = castctl_step.recipe_of(folder)
    memory = estimate_memory(recipe)
    peak = options.peak_tflops and options.peak_tflops * 1e12
    if peak is None and recipe.model.dtype == "bfloat16":  # what the list is of
        peak = peak_of(device)
    if peak is None:
        what = f"{device} in {recipe.model.dtype}"
        print(f"no peak is known of {what}: name --peak-tflops for utilisation", file=sys.stderr)
    line = {
        "method": work.method, "engine": options.engine, "parameters": memory.parameters,
        "trained": memory.trained, "prompts": work.prompts, "n": work.n,
        "tokens": work.lengths[0], "prompt_tokens": work.prompt_tokens, "dtype": recipe.model.dtype,
        "attention": recipe.model.attention, "settings": [*shape.settings, *options.set],
        "peak_tflops": peak and peak / 1e12,
        "goals": {"update_utilization": UTILIZATION, "over_trl": OVER_TRL},
        "estimated_gb": estimated(memory),
    }  # fmt: skip
    # vLLM may end a completion early: nobody holds its random model to a length.
    tokens = sum(work.lengths) if options.engine == "transformers" else None
    own, side = Path(sys.executable), "castctl"
    try:
        mine = taken(folder, "castctl_shape_step.py", own, options.repeats, tokens)
        line |= summary(mine, peak)
        if options.trl:
            python, side = options.python or python_with(TRL), "trl"
            place = for_trl(folder, work, recipe)
            line["trl"] = beside(taken(place, "trl_step.py", python, options.repeats, tokens), mine)
    except SystemExit as ended:
        line["failed"] = side
        print(ended, file=sys.stderr)
    return line


def work_of(shape: Shape, options: argparse.Namespace) -> Work:
    """The step that the options ask for."""
    prompts, n = options.prompts or shape.prompts, options.n or shape.n
    settings = ["train.head_chunk_tokens=1024", f"engine.kind={options.engine}", *shape.settings]
    if options.method == "cast":  # which tells right from wrong
        settings.append(f"verifier.function={castctl_step.__file__}:verify_right")
    return Work(
        vocabulary=shape.vocabulary,
        prompt_tokens=options.prompt_tokens or shape.prompt_tokens,
        lengths=(options.tokens or shape.tokens,) * (prompts * n),
        accumulate=1,
        goal=OVER_TRL,
        prompts=prompts,
        n=n,
        sizes=shape.sizes,
        method=options.method,
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=shape.dtype,
        gradient_checkpointing=True,
        settings=(*settings, *options.set),
    )


def for_trl(folder: Path, work: Work, recipe: Recipe) -> Path:
    """The folder, whose work is now as castctl's recipe has it, with micro-batches no larger."""
    rows, longest = len(work.lengths), work.prompt_tokens + work.lengths[0]
    least = -(-rows // max(1, recipe.train.microbatch_tokens // longest))
    file = folder / "work.json"
    told = json.loads(file.read_text()) | {
        "accumulate": next(count for count in range(least, rows + 1) if rows % count == 0),
        "dtype": recipe.model.dtype,
        "gradient_checkpointing": recipe.train.gradient_checkpointing,
    }
    file.write_text(json.dumps(told))
    return folder


def taken(
    folder: Path, script: str, python: Path, repeats: int, tokens: int | None
) -> list[dict[str, Any]]:
    """What a side tells of its steps, of which the first is warm-up; each must have sampled so many
    `tokens`, where that is known."""
    child = Child(python, script, folder)
    try:
        steps = [child.step() for _ in range(repeats + 1)]
    finally:
        child.end()
    sampled = {each["tokens"] for each in steps}
    if tokens is not None and sampled != {tokens}:
        sys.exit(f"{script} sampled {sampled} tokens a step where {tokens} were asked for")
    return steps


def summary(steps: list[dict[str, Any]], peak: float | None) -> dict[str, Any]:
    """Medians of castctl's steps but the first; memory is the most of all."""
    rounds = steps[1:]
    stages = {stage: speed(rounds, stage, name, peak) for stage, name in TIMED.items()}
    spent = [each["stages"] for each in rounds]
    others = [name for name in spent[0] if name not in TIMED.values()]
    rest = [each["seconds"] - sum(each["stages"].values()) for each in rounds]
    bytes_of = {
        stage: max(each["most_bytes"].get(stage, 0) for each in steps) for stage in (*TIMED, "rest")
    }
    gb = {stage: most / measure.GIB for stage, most in bytes_of.items()}
    return {
        "step_seconds": measure.median([each["seconds"] for each in rounds]),
        "completion_tokens": measure.median([each["tokens"] for each in rounds]),
        "trained_tokens": measure.median([each["trained"] for each in rounds]),
        "stages": stages,
        "seconds": {name: measure.median([each[name] for each in spent]) for name in others}
        | {"rest": measure.median(rest)},
        # The CPU's tensors are not counted.
        "gb": gb | {"peak": max(gb.values())} if any(gb.values()) else None,
    }


def speed(
    rounds: list[dict[str, Any]], stage: str, name: str, peak: float | None
) -> dict[str, Any] | None:
    """A stage's speed; None where no completion went through a model in it."""
    flops = [each["flops"].get(stage, 0) for each in rounds]
    tokens = [each["stage_tokens"].get(stage, 0) for each in rounds]
    seconds = [each["stages"][name] for each in rounds]
    if not any(flops):
        return None
    rates = [count / spent for count, spent in zip(flops, seconds, strict=True)]
    return {
        "seconds": measure.median(seconds),
        "tokens_per_second": measure.median(
            [count / spent for count, spent in zip(tokens, seconds, strict=True)]
        ),
        "tflops": measure.median(flops) / 1e12,
        "utilization": peak and measure.median(rates) / peak,
    }


def estimated(memory: Memory) -> dict[str, float | None]:
    """GiB that `castctl explain` says of each stage, and of the largest."""
    held = sum(memory.held.values())
    most: dict[str, int] = {}
    for phase, parts in memory.phases.items():
        stage = PHASES.get(phase, "update")
        most[stage] = max(most.get(stage, 0), held + sum(parts.values()))
    stages = {stage: most[stage] / measure.GIB if stage in most else None for stage in TIMED}
    return {**stages, "peak": memory.together / measure.GIB}


def beside(theirs: list[dict[str, Any]], mine: list[dict[str, Any]]) -> dict[str, Any]:
    """TRL's step, and its seconds over castctl's."""
    seconds = [[each["seconds"] for each in steps[1:]] for steps in (theirs, mine)]
    most = [each["most_bytes"] for each in theirs if each["most_bytes"] is not None]
    return {
        "step_seconds": measure.median(seconds[0]),
        "gb": max(most) / measure.GIB if most else None,
        **measure.ratio(*seconds),
    }


if __name__ == "__main__":
    main()
