"""Every method, trained alike: accuracy, cost, and how often CAST has sign(A) = sign(g).

The variants of comparison.yaml on the embedded default; with --model some of those of
comparison-base.yaml on a base model of yours, which is shown three sums and asked for a fourth.
One seed of all comes before the next. Runs that are complete are not run again. The folder's
tables.md and accuracy.png hold what it has.
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
import yaml
from matplotlib.figure import Figure
from scipy import stats

import castctl

HERE = Path(__file__).parent
TAUGHT = ("no-flips", "cast", "cast-port", "cast-public", "cast-public-own", "cast-lora")
"""Whose signs are told."""
AGAIN = "-4"
"""How variants end that are compared with the `grpo` of that end, and not with `grpo`."""
ON_A_BASE = ["grpo", "cast", "cast-public-own", "sdpg-urkl", "oar-g"]
SHOWN = {(3, 1), (12, 5), (20, 14)}
"""The sums in the prompt of comparison-base.yaml; none of them is asked."""
TOP = 20
HELD_OUT = 64


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--model", help="a base model that continues patterns; embedded without")
    parser.add_argument("--variants", nargs="+", help="the first is what others are compared with")
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
    for seeds in range(1, options.seeds + 1):
        families = [
            compared(folder / "compared", recipe, family, seeds, settings)
            for family in chosen(options)
        ]
    signs = {
        name: [signs_of(Path(run["path"])) for run in entry["runs"]]
        for entries in families
        for name, entry in entries.items()
        if name in TAUGHT
    }
    tables = "\n".join([*map(accuracy_table, families), signs_table(signs)])
    (folder / "tables.md").write_text(tables)
    (draw_curves if options.model else draw_accuracy)(families[0], folder / "accuracy.png")
    sys.stderr.write(tables)
    measure.report(
        "comparison", options.repeats, recipe=recipe, seeds=options.seeds,
        accuracy={name: entry["avg_after"]["mean"]
                  for entries in families for name, entry in entries.items()},
        signs={name: means(each) for name, each in signs.items()},
    )  # fmt: skip


def chosen(options: argparse.Namespace) -> list[list[str]]:
    """Families of variants; the first of each is what its others are compared with."""
    if options.variants:
        return [options.variants]
    if options.model:
        return [ON_A_BASE]
    names = list(yaml.safe_load((HERE / "comparison.yaml").read_text())["variants"])
    return [[name for name in names if name.endswith(AGAIN) == again] for again in (False, True)]


def compared(
    folder: Path, recipe: str, family: list[str], seeds: int, settings: list[str]
) -> dict[str, Any]:
    """What `castctl compare` says of each variant, once all are trained."""
    run_castctl(
        "compare", *(f"{HERE / recipe}.yaml:{name}" for name in family),
        "--seeds", str(seeds), "--name", str(folder), "--quiet",
        *(word for each in settings for word in ("--set", each)),
    )  # fmt: skip
    told = json.loads((folder / "comparison.json").read_text())
    return dict(zip(family, told["entries"], strict=True))


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
    first, *others = entries
    lines = [
        f"| variant | after | minus `{first}`, over problems | over seeds | Holm's p | by seed "
        "| pass@k | s/step | tokens |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    p = dict(zip(others, holm([moved(entries, name) for name in others]), strict=True))
    for name, entry in entries.items():
        over = (entry["over_seeds"] or {}).get("difference")
        cells = [
            f"`{name}`",
            percent(entry["avg_after"]),
            percent(entry["difference"], "+"),
            percent(over, "+"),
            f"{p[name]:.3g}" if over else "",
            ", ".join(f"{100 * run['avg_after']:.1f}" for run in entry["runs"]),
            f"{100 * entry['pass_after']['mean']:.1f}",
            f"{entry['seconds_per_step']['all']:.2g}",
            f"{entry['generated_tokens'] / len(entry['runs']):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    before = percent(entries[first]["avg_before"])
    return "\n".join([f"before: {before}\n", *lines]) + "\n"


def moved(entries: dict[str, Any], name: str) -> list[float]:
    """A variant's accuracy after training, minus the first variant's, by seed."""
    first = next(iter(entries.values()))
    return [
        own["avg_after"] - theirs["avg_after"]
        for own, theirs in zip(entries[name]["runs"], first["runs"], strict=True)
    ]


def holm(differences: list[list[float]]) -> list[float]:
    """p of Student's test that each mean over seeds is 0, adjusted for as many tests (Holm 1979);
    NaN of one seed."""
    p = np.array([stats.ttest_1samp(each, 0.0).pvalue if len(each) > 1 else np.nan
                  for each in differences])  # fmt: skip
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    p[order] = np.minimum(adjusted, 1.0)
    return [float(each) for each in p]


def draw_accuracy(entries: dict[str, Any], path: Path) -> None:
    """Accuracy after training with its interval over problems, a line a variant, a dot a seed."""
    figure = Figure(figsize=(8, 1.5 + 0.22 * len(entries)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, entry in enumerate(entries.values()):
        after = entry["avg_after"]
        axes.plot([100 * after["low"], 100 * after["high"]], [place, place], color="C0")
        seeds = [100 * run["avg_after"] for run in entry["runs"]]
        axes.plot(seeds, [place] * len(seeds), ".", color="C1", markersize=4)
    first = next(iter(entries.values()))
    for when, style in (("avg_before", ":"), ("avg_after", "--")):
        axes.axvline(100 * first[when]["mean"], color="0.5", linestyle=style, linewidth=0.8)
    axes.set_yticks(range(len(entries)), list(entries))
    axes.invert_yaxis()
    axes.set_xlabel(
        "accuracy in per cent (lines: 95 % over problems; dots: seeds; dotted: before; dashed: the "
        "first row's mean)",
        fontsize=8,
    )
    figure.savefig(path)


def draw_curves(entries: dict[str, Any], path: Path) -> None:
    """Accuracy by step with intervals over problems, side by side."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, (name, entry) in enumerate(entries.items()):
        told = entry["evaluations"]
        steps = np.array([int(step) for step in told]) + 0.06 * place
        low, mean, high = (
            100 * np.array([each[bound] for each in told.values()])
            for bound in ("low", "mean", "high")
        )
        axes.errorbar(steps, mean, yerr=(mean - low, high - mean), capsize=2, marker="o",
                      markersize=4, label=name)  # fmt: skip
    axes.set_xlabel("steps")
    axes.set_ylabel("accuracy in per cent, 95 % over problems")
    axes.legend()
    figure.savefig(path)


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
