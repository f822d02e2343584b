"""One GRPO step, TRL's and castctl's in turn, each in its own environment: CPU time and memory.

Both have the same random model of Qwen3's architecture, the same prompts, and completions of the
same lengths; one thread each. `--record` writes the numbers beside the script; `--against` holds
castctl alone against those: each step beside a forward and backward pass of plain transformers.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
import random_qwen3
import torch
from peer_environment import TRL, python_with
from sides import turns

HERE = Path(__file__).parent
RECORD = HERE / "against_trl.json"
SLOWER = 1.1
"""castctl's step over the yardstick, by the recorded one, from which on a warning is printed."""
LETTERS = "qxzjkvwy"
"""Each is a token of its own."""


@dataclass(frozen=True)
class Work:
    """What a step is made of. TRL's micro-batch is a step's completions over `accumulate`."""

    vocabulary: int
    prompt_tokens: int
    lengths: tuple[int, ...]
    accumulate: int
    goal: float
    prompts: int = 4
    n: int = 8
    sizes: dict[str, Any] = field(default_factory=dict)
    """Of the model, beside its vocabulary."""
    method: str = "grpo"
    device: str = "cpu"
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    settings: tuple[str, ...] = ()
    """Of castctl's recipe alone."""


EQUAL = (128,) * 32
RAGGED = tuple(int(each) for each in np.linspace(16, 256, 32))
CASES = {
    "V 32k, 128 tokens each": Work(32_768, 64, EQUAL, 4, 3.5),
    "the same, lengths 16 to 256": Work(32_768, 64, RAGGED, 4, 4.5),
    "prompts of 512 tokens": Work(32_768, 512, EQUAL, 4, 7),
    "V 152k, 128 tokens each": Work(151_936, 64, EQUAL, 8, 3.5),
}
QUICK = Work(4096, 16, (4, 6, 8, 10), 2, 1, prompts=2, n=2, sizes={"hidden": 32, "layers": 2})


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--python", type=Path, help="of an environment with TRL")
    parser.add_argument("--alone", action="store_true", help="castctl alone")
    parser.add_argument("--against", action="store_true", help="castctl, by the recorded numbers")
    parser.add_argument("--record", action="store_true", help="write the numbers to the record")
    options = measure.parse(parser)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cases = {"quick": QUICK} if options.quick else CASES
    if options.against:
        cases = dict(list(cases.items())[:1])
    sides = {"castctl": Path(sys.executable)}
    if not (options.alone or options.against):
        sides = {"trl": options.python or python_with(TRL), **sides}
    with tempfile.TemporaryDirectory() as folder:
        numbers = {
            name: compared(Path(folder) / str(number), work, sides, options.repeats)
            for number, (name, work) in enumerate(cases.items())
        }
    line = {"versions": versions(numbers), "cases": numbers}
    if options.record:
        RECORD.write_text(json.dumps(line, indent=1) + "\n")
    if options.against:
        [(name, found)] = numbers.items()
        warn(name, found)
    elif "trl" in sides:
        sys.stderr.write(table(numbers))
    measure.report("against_trl", options.repeats, **line)


def compared(folder: Path, work: Work, sides: dict[str, Path], repeats: int) -> dict[str, Any]:
    """Medians of CPU seconds, peaks of memory, and the rounds' ratios; after a round that does not
    count."""
    write(folder, work, repeats + 2)  # the last step, which saves, is not taken
    yardstick = plain_pass(folder / "model", work)
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    beside: list[float] = []
    scripts = {side: (python, f"{side}_step.py") for side, python in sides.items()}
    with turns(folder, scripts) as children:
        for number in range(repeats + 1):
            for side, child in children.items():
                told = child.step()
                if number:
                    rounds[side].append(told)
            spent = yardstick()
            if number:
                beside.append(spent)
    seconds = {side: [each["cpu_seconds"] for each in told] for side, told in rounds.items()}
    tokens = {each["tokens"] for told in rounds.values() for each in told}
    if tokens != {sum(work.lengths)}:
        sys.exit(f"the sides sampled {tokens} tokens where {sum(work.lengths)} were asked for")
    mine = rounds["castctl"]
    found = {
        "goal": work.goal,
        "tokens": sum(work.lengths),
        **{f"{side}_cpu_seconds": measure.median(spent) for side, spent in seconds.items()},
        **{f"{side}_gb": max(each["peak_gb"] for each in told) for side, told in rounds.items()},
        "castctl_stages": {
            stage: measure.median([each["stages"][stage] for each in mine])
            for stage in mine[0]["stages"]
        },
        "over_yardstick": measure.median(
            [a / b for a, b in zip(seconds["castctl"], beside, strict=True)]
        ),
    }
    if "trl" in sides:
        found |= measure.ratio(seconds["trl"], seconds["castctl"])
        found["trl_version"] = json.loads((folder / "versions.json").read_text())["trl"]
    return found


def write(folder: Path, work: Work, steps: int) -> None:
    """The model, the problems and the work, as both sides read them."""
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text("Add the numbers.\n")
    tokenizer = random_qwen3.make_tokenizer(text, work.vocabulary)
    model = random_qwen3.make_model(
        work.vocabulary, **work.sizes,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.to(getattr(torch, work.dtype))
    for each in (model, tokenizer):
        each.save_pretrained(folder / "model")
    rng = random.Random(0)
    with (folder / "problems.jsonl").open("w") as file:
        for number in range(work.prompts * (steps + 1)):
            problem = "".join(rng.choices(LETTERS, k=work.prompt_tokens))
            file.write(json.dumps({"problem": problem, "answer": str(number)}) + "\n")
    lengths = list(work.lengths)
    rng.shuffle(lengths)
    told = replace(work, lengths=tuple(lengths))
    (folder / "work.json").write_text(
        json.dumps({**asdict(told), "steps": steps, "label": "castctl"})
    )


def plain_pass(folder: Path, work: Work) -> measure.Timed:
    """CPU seconds of a forward and backward pass by transformers alone, of so many tokens as tell a
    machine's speed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, work.vocabulary, (8, 64), generator=generator)

    def run() -> float:
        own = psutil.Process()
        before = own.cpu_times()
        for _ in range(2):
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
        after = own.cpu_times()
        return (after.user + after.system) - (before.user + before.system)

    return run


def versions(numbers: dict[str, Any]) -> dict[str, str]:
    found = {name: version(name) for name in ("castctl", "torch", "transformers")}
    found["cpu"] = measure.cpu_model()
    trl = {each.pop("trl_version") for each in numbers.values() if "trl_version" in each}
    return found | ({"trl": trl.pop()} if trl else {}) | {"date": time.strftime("%Y-%m-%d")}


def warn(name: str, found: dict[str, Any]) -> None:
    """Say how castctl's step compares with the recorded one, both over the yardstick."""
    if not RECORD.exists():
        sys.exit("nothing is recorded yet to hold a step against: run it with --record")
    record = json.loads(RECORD.read_text())
    recorded, cpu = record["cases"].get(name), record["versions"]["cpu"]
    if recorded is None or cpu != measure.cpu_model():
        said = f"nothing is recorded of {name} on this CPU ({measure.cpu_model()})"
        print(said, file=sys.stderr)
        return
    ratio = found["over_yardstick"] / recorded["over_yardstick"]
    said = f"a GRPO step ({name}) takes {ratio:.2f} times what was recorded"
    if ratio > SLOWER:
        said = f"WARNING: {said}; look for what became slower, or record anew (--record)"
    print(said, file=sys.stderr)


def table(numbers: dict[str, Any]) -> str:
    lines = ["| work | TRL | castctl | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    for name, each in numbers.items():
        sides = (
            f"{each[f'{side}_cpu_seconds']:.1f} s, {each[f'{side}_gb']:.1f} GB"
            for side in ("trl", "castctl")
        )
        ratio = f"{each['ratio']:.1f} ({each['ratio_min']:.1f} to {each['ratio_max']:.1f})"
        lines.append(f"| {name} | {' | '.join(sides)} | {ratio} | {each['goal']:g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
