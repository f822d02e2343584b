"""GRPO and CAST's presets, trained alike: accuracy, and how often sign(A) = sign(g).

The variants of comparison.yaml on the embedded default; with --model those of
comparison-base.yaml on a base model of yours, which is shown three sums and asked for a fourth.
Runs that are complete are not run again. tables.md in the folder holds the tables.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import measure
import numpy as np

import castctl

HERE = Path(__file__).parent
BASELINES = ("grpo", "dapo-loss", "signed")
TAUGHT = ("no-flips", "cast", "port", "public", "public-own")
SHOWN = {(3, 1), (12, 5), (20, 14)}
"""The sums in the prompt of comparison-base.yaml; none of them is asked."""
TOP = 20
HELD_OUT = 64


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--model", help="a base model that continues patterns; embedded without")
    parser.add_argument("--variants", nargs="+", default=[*BASELINES, *TAUGHT])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", dest="settings")
    options = measure.parse(parser)
    if options.quick:
        options.variants, options.seeds = ["grpo", "cast"], 1
        options.settings += ["train.steps=2", "train.prompts_per_step=4", "sampling.n=4",
                             "eval.limit=4", "eval.k=2", "eval.every=0"]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch) if options.quick else options.folder, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Train and diagnose what the folder lacks, and tell what it holds."""
    recipe, settings = "comparison", list(options.settings)
    if options.model:
        recipe = "comparison-base"
        train, test = write_sums(folder / "data")
        settings += [f"model.path={options.model}", f"data.path={train}", f"eval.task={test}"]
    run_castctl(
        "compare", *(f"{HERE / recipe}.yaml:{name}" for name in options.variants),
        "--seeds", str(options.seeds), "--name", str(folder / "compared"),
        *(word for each in settings for word in ("--set", each)),
    )  # fmt: skip
    compared = json.loads((folder / "compared" / "comparison.json").read_text())
    entries = dict(zip(options.variants, compared["entries"], strict=True))
    signs = {
        name: [signs_of(Path(run["path"])) for run in entry["runs"]]
        for name, entry in entries.items()
        if name in TAUGHT
    }
    tables = f"{accuracy_table(entries)}\n{signs_table(signs)}"
    (folder / "tables.md").write_text(tables)
    sys.stderr.write(tables)
    measure.report(
        "comparison", options.repeats, recipe=recipe, seeds=options.seeds,
        accuracy={name: entry["avg_after"]["mean"] for name, entry in entries.items()},
        signs={name: means(seeds) for name, seeds in signs.items()},
    )  # fmt: skip


def write_sums(folder: Path) -> tuple[Path, Path]:
    """Sums of two numbers up to `TOP`, as files to train on and to evaluate on."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = sorted({*product(range(1, TOP + 1), repeat=2)} - SHOWN)
    random.Random(0).shuffle(sums)
    files = folder / "train.jsonl", folder / "test.jsonl"
    for file, part in zip(files, (sums[HELD_OUT:], sums[:HELD_OUT]), strict=True):
        rows = ({"problem": f"{a} + {b}", "answer": str(a + b)} for a, b in part)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def run_castctl(*words: str) -> None:
    """A command, what it says on standard error; ends the script where it fails."""
    done = subprocess.run([sys.executable, "-m", "castctl", *words], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def signs_of(run: Path) -> dict[str, float]:
    """Shares of a run's tokens in which advantage and gap have one sign, right and wrong; shares of
    flipped tokens; median size of the gaps other than 0, in nats."""
    numbers = run / "diagnose" / "flips" / "flips.json"
    if not numbers.is_file():
        run_castctl("diagnose", "flips", str(run), "--quiet")
    found: dict[str, Any] = json.loads(numbers.read_text())["numbers"]
    opened = castctl.open_run(run)
    gaps_N = np.abs(np.concatenate([gaps(opened.step(step)) for step in opened.steps]))
    return {
        "correct": found["agreement"]["correct"]["share"]["mean"],
        "wrong": found["agreement"]["wrong"]["share"]["mean"],
        "down": found["down"]["share"]["mean"],
        "up": found["up"]["share"]["mean"],
        "median_gap": float(np.median(gaps_N[gaps_N > 0])),
    }


def gaps(step: Any) -> Any:
    """Teacher's log-prob minus the policy's, by token (N), in nats."""
    table = step.table("signals")
    teacher_N, policy_N = (
        table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in ("teacher_logprobs", "policy_logprobs")
    )
    return np.nan_to_num(teacher_N - policy_N)


def means(seeds: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in seeds])) for key in seeds[0]}


def accuracy_table(entries: dict[str, Any]) -> str:
    first, *_ = entries
    lines = [
        f"| variant | before | after | minus `{first}`, over problems | over seeds | by seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in entries.items():
        seeds = ", ".join(f"{100 * run['avg_after']:.1f}" for run in entry["runs"])
        over = (entry["over_seeds"] or {}).get("difference")
        lines.append(
            f"| `{name}` | {percent(entry['avg_before'])} | {percent(entry['avg_after'])} "
            f"| {percent(entry['difference'], '+')} | {percent(over, '+')} | {seeds} |"
        )
    return "\n".join(lines) + "\n"


def percent(estimate: dict[str, Any] | None, sign: str = "") -> str:
    """A share with its interval, where there is one."""
    if estimate is None:
        return ""
    mean = f"{100 * estimate['mean']:{sign}.1f}"
    if estimate["low"] is None or estimate["high"] is None:
        return mean
    return f"{mean} ({100 * estimate['low']:{sign}.1f} to {100 * estimate['high']:{sign}.1f})"


def signs_table(signs: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| variant | sign(A) = sign(g), correct | wrong | flipped, of praised | of blamed "
        "| median gap, nats |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, seeds in signs.items():
        mean = means(seeds)
        shares = (f"{100 * mean[key]:.1f} %" for key in ("correct", "wrong", "down", "up"))
        lines.append(f"| `{name}` | {' | '.join(shares)} | {mean['median_gap']:.1g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
