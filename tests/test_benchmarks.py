"""Every benchmark runs and prints one line of JSON with the numbers it promises."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from castctl.methods.presets import PRESETS
from commands import Commands

FOLDER = Path(__file__).parents[1] / "benchmarks"
RATIO = ("ratio", "ratio_min", "ratio_max")

PROMISED: dict[str, tuple[str, ...]] = {
    "adapters": ("update_tokens_per_second", "policy_tokens_per_second", "snapshot_seconds",
                 *(f"{what}.{name}" for what in ("teacher", "head") for name in RATIO),
                 "estimated_held_gb", "estimated_peak_gb"),
    "against_lm_eval": ("castctl.graded_per_cpu_second",
                        *(f"castctl.judged_right.verdict.{kind}"
                          for kind in ("right", "written otherwise"))),
    "against_trl": tuple(f"cases.quick.{what}" for what in (
                         "castctl_cpu_seconds", "castctl_gb", "over_yardstick")),
    "attention": tuple(f"cases.{case}.segments_over_repeated.{name}"
                       for case in range(4) for name in RATIO),
    "cast_over_grpo": (*RATIO, "cast_seconds", "grpo_seconds", "ratio_with_rollout",
                       "seconds.cast.teacher_pass", "seconds.cast.update", "seconds.grpo.shape",
                       "trained_tokens.cast", "trained_tokens.grpo"),
    "comparison": ("accuracy.grpo", "accuracy.cast", "signs.cast.correct", "signs.cast.wrong",
                   "signs.cast.median_gap"),
    "coverage": ("share.200 problems.two modes", "share.30 problems.a tenth solved"),
    "decoding": tuple(f"cases.{case}.{name}" for case in (0, 1) for name in (
                      *RATIO, "castctl_tokens_per_second", "generate_tokens_per_second")),
    "diagnose": tuple(f"diagnostics.opsd-gaps.{what}"
                      for what in ("seconds", "extra_gb", "plots_seconds")),
    "distillation": tuple(f"{form}.{name}"
                          for form in ("reverse_kl", "jsd", "jsd_clipped", "jsd_top_100")
                          for name in (*RATIO, "memory_ratio", "seconds", "extra_gb",
                                       "public_seconds", "public_extra_gb")),
    "engines": (*RATIO, "castctl_tokens_per_second", "vllm_tokens_per_second", "start_seconds",
                "sync_seconds", "proof_seconds", "gap_mean", "gb.awake.engine"),
    "head": tuple(f"cases.0.{name}" for name in (
                  *RATIO, "fused_seconds", "naive_seconds", "fused_extra_gb", "naive_extra_gb")),
    "influence": tuple(f"cases.{case}.{what}.{name}" for case in (0, 1) for name in RATIO
                       for what in ("plain_over_perturbation", "gradient_over_scoring")),
    "loop": ("rest_share", "seconds_per_step", "share.generate", "share.score", "share.update",
             "share.verify", "share.shards", "share.shape", "share.measure"),
    "packing": tuple(f"cases.{case}.{name}" for case in (0, 1) for name in (
                     *RATIO, "packed_seconds", "padded_seconds")),
    "report": ("seconds", "extra_gb", "page_mb"),
    "rewritings": ("golds", "kinds.as it is.pairs", "kinds.percent.pairs"),
    "products": tuple(f"layer{each}.{name}" for each in ("", "_with_backward") for name in RATIO),
    "scoring": (*RATIO, "seconds.all", "seconds.auto", "ratio_with_rollout"),
    "shapes": ("step_seconds", "seconds.shape", "seconds.sync", "seconds.rest",
               *(f"stages.{stage}.{what}" for stage in ("rollout", "update")
                 for what in ("seconds", "tokens_per_second", "tflops")),
               *(f"estimated_gb.{what}" for what in ("rollout", "score", "update", "peak"))),
    "shaping": tuple(f"tokens_per_second.{what}_{method}"
                     for what in ("mathematics", "stage") for method in ("cast", "grpo")),
    "shards": tuple(f"{stage}.{rate}_per_second.{what}" for stage in ("rollouts", "signals")
                    for rate in ("tokens", "mb") for what in ("write", "read", "hash")),
    "startup": (*RATIO, "help_seconds", "imports_seconds"),
    "train_step": ("seconds.read", "seconds.passes", "seconds.optimizer", "tokens_per_second"),
    "verification": ("workers_speedup.ratio", "repeats_speedup.ratio",
                     *(f"checks_per_second.{rows}_{workers}_workers"
                       for rows in ("distinct", "repeated") for workers in (1, 2))),
}  # fmt: skip
"""By benchmark, where its numbers stand in the line; a number in a path counts in a list."""

NEED_VLLM = {"engines"}
VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TELL_MEMORY = {"diagnose", "distillation", "engines", "head", "report"}
"""These start as a process of their own: the peak of a process starts with its parent's."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=VLLM if name in NEED_VLLM else ()) for name in PROMISED]
)
def test_prints_one_line_with_its_numbers(
    name: str, commands: Commands, request: pytest.FixtureRequest
) -> None:
    folders = [request.getfixturevalue("benchmarks")] if name == "rewritings" else []
    alone = ["--alone"] if name.startswith("against_") else []  # no environment is made for a test
    line = run(commands, name, *map(str, folders), *alone)
    assert line["benchmark"] == name
    assert line["repeats"] >= 1
    assert {"cpu", "cores", "torch", "threads"} <= line["machine"].keys()
    for path in PROMISED[name]:
        number = at(line, path)
        assert math.isfinite(number) and number > 0, f"{path}: {number}"


@pytest.mark.slow
def test_verification_reads_the_answers_of_a_file(commands: Commands, tmp_path: Path) -> None:
    file = tmp_path / "roots.jsonl"
    answers = [rf"\sqrt{{{i}}}" for i in range(2, 12)]
    file.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    line = run(commands, "verification", "--problems", str(file), "--workers", "1")
    assert line["problems"] == "roots.jsonl"
    assert line["checks_per_second"]["distinct_1_workers"] > 0


@pytest.mark.slow
def test_decoding_holds_two_caches_against_each_other() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "decoding.py"), "--quick", "--lengths", "1"],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    line = json.loads(done.stdout)
    assert [case["new_tokens"] for case in line["cases"]] == [24, 80]
    for case in line["cases"]:
        assert case["ratio"] > 0 and case["blocks_cpu_seconds"] > 0
    assert min(line["extra_gb_of_the_longest"].values()) > 0


@pytest.mark.slow
def test_shapes_tell_the_utilisation_of_each_stage(commands: Commands) -> None:
    adapter = ("--set", "model.lora.r=4", "--set", "model.dtype=bfloat16")
    given = ("--method", "cast", "--n", "8", "--peak-tflops", "0.5")  # of 8 some are right
    line = run(commands, "shapes", *given, *adapter)
    assert line["trained"] < line["parameters"]
    for stage in ("rollout", "score", "update"):
        told = line["stages"][stage]
        expected = told["tflops"] / told["seconds"] / 0.5
        assert told["utilization"] == pytest.approx(expected, rel=2e-3) and expected > 0


@pytest.mark.slow
def test_shapes_keep_their_numbers_where_the_other_side_ends(commands: Commands) -> None:
    given = ("--quick", "--trl", "--python", "/bin/false")
    done = commands.start_file(FOLDER / "shapes.py", *given, cwd=FOLDER).wait()
    assert done.returncode == 1 and "trl_step.py" in done.stderr
    line = json.loads(done.stdout)
    assert line["failed"] == "trl" and "trl" not in line
    assert line["stages"]["update"]["tflops"] > 0


def test_the_readme_names_every_benchmark() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in PROMISED:
        assert f"benchmarks/{name}.py" in readme


def test_the_comparison_has_every_preset() -> None:
    """One that is added is compared too."""
    variants = yaml.safe_load((FOLDER / "comparison.yaml").read_text())["variants"]
    assert {variant["method"].get("name", "grpo") for variant in variants.values()} == {*PRESETS}


def run(commands: Commands, name: str, *arguments: str) -> dict[str, Any]:
    """The line that a quick run prints."""
    file = FOLDER / f"{name}.py"
    if name in TELL_MEMORY:
        done = subprocess.run(
            [sys.executable, str(file), "--quick", *arguments],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    else:
        done = commands.start_file(file, "--quick", *arguments, cwd=FOLDER).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout)


def at(line: Any, path: str) -> float:
    """The number at a dotted path."""
    for key in path.split("."):
        line = line[int(key)] if isinstance(line, list) else line[key]
    return line
