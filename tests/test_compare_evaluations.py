"""`castctl compare` of evaluations: what is paired, what is refused, what is said."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from castctl.errors import UserError
from castctl.shards.part import read_json, write_json
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.results import Result, read_result
from conftest import Cli

PROBLEMS = [f"{n:016x}" for n in range(6)]
BASE = [0.0, 0.25, 0.5, 0.5, 1.0, 0.75]
BETTER = [0.5, 0.25, 1.0, 0.25, 1.0, 1.0]


def result(means: list[float], k: int = 4, **changes: Any) -> Result:
    """A result as an evaluation leaves it; its estimates are marked, not computed."""

    def share(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean / 2, "high": (1 + mean) / 2}

    return {
        "name": "sums", "task": "sums", "problems": len(means), "k": k, "grader": "g 1",
        "model": "m", "step": 0, "template": "t", "seed": 0,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64},
        "avg": share(statistics.fmean(means)), "maj": share(0.75),
        "pass": {str(m): share(m / 10) for m in range(1, k + 1)},
        "by_problem": dict(zip(PROBLEMS, means, strict=False)),
        **changes,
    }  # fmt: skip


def write(folder: Path, made: Result) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", made)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two evaluations of the same problems, the second of them with its problems in another
    order; and the run of the first, which holds nothing else."""
    write(tmp_path / "runs/base/eval/sums/step-00000", result(BASE))
    write_json(tmp_path / "runs/base/manifest.json", {"state": "new"})
    (tmp_path / "runs/base/recipe.yaml").write_text("seed: 0\n")
    turned = dict(reversed(list(zip(PROBLEMS, BETTER, strict=True))))
    write(tmp_path / "runs/better/eval/sums/step-00050", result(BETTER, by_problem=turned))
    (tmp_path / "runs/better/checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


BETTER_FOLDER = "runs/better/eval/sums/step-00050"


def test_a_pair_of_evaluations(castctl: Cli, here: Path) -> None:
    done = castctl("compare", "base", f"{BETTER_FOLDER}/results.json", "--name", "c", "--full")
    found = read_json(here / "runs/c/comparison.json")
    assert (found["finished"], found["kind"], found["task"]) == (True, "evaluations", "sums")
    assert (found["problems"], found["grader"], found["unequal"]) == (6, "g 1", [])
    assert sorted(path.name for path in (here / "runs/c").iterdir()) == [".lock", "comparison.json"]
    base, better = found["entries"]
    assert [base["name"], better["name"]] == ["base", "better step-00050"]
    assert base["against_first"] is None and found["pass_k"] == 4
    for entry, means in ((base, BASE), (better, BETTER)):
        assert entry["avg"] == result(means)["avg"]
        assert (entry["pass_at"]["mean"], entry["maj"]["mean"]) == (0.4, 0.75)

    paired = better["against_first"]
    differences = [b - a for a, b in zip(BASE, BETTER, strict=True)]
    mean, spread = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(6)
    half = student.ppf(0.975, 5) * spread
    assert paired["difference"] == pytest.approx(
        {"mean": mean, "low": mean - half, "high": mean + half}
    )
    flips = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=6)
    ]
    hits = sum(abs(flip) >= abs(sum(differences)) - 1e-12 for flip in flips)
    assert paired["p_value"] == pytest.approx(hits / 64)
    assert paired["detectable"] == pytest.approx(
        (student.ppf(0.975, 5) + student.ppf(0.8, 5)) * spread
    )
    assert paired["gained"] == [PROBLEMS[n] for n in (0, 2, 5)]
    assert paired["lost"] == [PROBLEMS[3]]
    highest, against, *_ = done.stdout.splitlines()
    assert highest == "Highest avg@k: better step-00050, 66.7 (33.3 to 83.3) %."
    assert f"better step-00050 shows no difference, {100 * mean:+.1f} (" in against
    words = " ".join(done.stdout.split())
    assert "sums, 6 problems: per cent, with 95 % intervals over problems" in words
    assert f"better step-00050 {100 * mean:+.1f}" in words
    assert f"{hits / 64:.3f} 3 1 {100 * paired['detectable']:.1f}" in words
    shown = json.loads(castctl("compare", "runs/base", BETTER_FOLDER, "--json").stdout)
    assert shown["entries"][1]["against_first"] == paired


def test_other_k_temperature_and_prompt_are_said(castctl: Cli, here: Path) -> None:
    sampling = {"temperature": 0.6, "top_p": 1.0, "max_tokens": 64, "stop": ["Q:"],
                "presence_penalty": 1.5, "repetition_penalty": 1.0}  # fmt: skip
    hot = result(BASE, 2, name="sums-k2-t0.6", sampling=sampling, template="u")
    write(here / "runs/base/eval/sums-k2-t0.6/step-00000", hot)
    done = castctl("compare", "runs/base/eval/sums", "runs/base/eval/sums-k2-t0.6/step-00000",
                   BETTER_FOLDER, "--name", "c", "--full")  # fmt: skip
    found = read_json(here / "runs/c/comparison.json")
    assert found["pass_k"] == 2 and [e["pass_at"]["mean"] for e in found["entries"]] == [0.2] * 3
    assert [entry["k"] for entry in found["entries"]] == [4, 2, 4]
    same = found["entries"][1]["against_first"]
    assert same["p_value"] == 1.0 and same["detectable"] is None
    assert same["gained"] == same["lost"] == []
    words = " ".join(done.stdout.split())
    assert "avg@k and pass@2 estimate one thing with any, maj@k does not" in words
    assert (
        "differ in samples of each problem: base 4, base k2-t0.6 2, better step-00050 4." in words
    )
    assert "differ in temperature: base 1.0, base k2-t0.6 0.6" in words
    assert "differ in presence_penalty: base None, base k2-t0.6 1.5" in words
    assert "repetition_penalty" not in words
    assert "differ in stop: base None, base k2-t0.6 ['Q:'], better step-00050 None" in words
    assert "differ in prompt: base t, base k2-t0.6 u" in words and "top_p" not in words
    assert "About one in twenty of 2 differences" in words


def test_rewards_that_are_the_same_fraction_by_other_k_are_no_gain(
    castctl: Cli, here: Path
) -> None:
    thirds = [1 / 3, 2 / 3, 1 / 3, 0.0, 1.0, 2 / 3]
    write(here / "a", result(thirds, 3))
    write(here / "b", result([float(np.mean([m] * 6)) + 1e-16 for m in thirds], 6))
    castctl("compare", "a", "b", "--name", "c")
    paired = read_json(here / "runs/c/comparison.json")["entries"][1]["against_first"]
    assert paired["gained"] == paired["lost"] == [] and paired["p_value"] == 1.0


def refused(castctl: Cli, *arguments: str) -> str:
    done = castctl("compare", *arguments, code=2)
    assert not list(Path("runs").glob("compare-*"))
    return done.stderr.rstrip("\n").splitlines()[-1]


def test_wrong_input_is_one_line(castctl: Cli, here: Path) -> None:
    base = "runs/base/eval/sums/step-00000"
    write(here / "other", result([0.5] * 5))
    write(here / "regraded", result(BASE, grader="g 2"))
    write(here / "old", {"task": "sums"})
    (write(here / "broken", {}) / "results.json").write_text("{")
    write(here / "odd", {**result(BASE), "pass": {}})
    shutil.copytree(here / "runs/base", here / "runs/two")
    write(here / "runs/two/eval/sums-k2/step-00000", result(BASE, 2))
    for arguments, said in (
        ((base, "tiny"), f"{base} is an evaluation and tiny is not there; name an evaluation's"),
        ((base, "runs/better"), "runs/better is none; name an evaluation's folder for each entry"),
        ((base, "other"), "are not of the same problems (6 and 5, 5 in both)"),
        ((base, "regraded"), "were graded by g 1 and g 2; grade the older again: castctl eval "
         f"--rescore {base} --overwrite"),
        ((base, "old"), "old/results.json lacks problems, k, avg,"),
        ((base, "broken"), "broken/results.json"),
        ((base, "odd"), "odd/results.json is not as castctl eval writes it (KeyError: '4')"),
        ((base, "two"), "two holds 2 evaluations (runs/two/eval/sums/step-00000, runs/two/"),
        ((base, base, "--seeds", "2"), "evaluations are taken as they are; leave --seeds"),
        ((base, base, "-k", "3"), "evaluations are taken as they are; leave --seeds"),
    ):  # fmt: skip
        assert said in refused(castctl, *arguments), arguments


def test_hostile_names_are_shown_escaped(castctl: Cli, here: Path) -> None:
    hostile = "_\x1b[31m[bold]\u202e\n"
    write(here / hostile, result(BASE, task=hostile, grader=hostile))
    write(here / "tame", result(BETTER, grader=hostile, template=hostile))
    done = castctl("compare", hostile, "tame", "--name", "c")
    assert not {"\x1b", "\u202e"} & set(done.stdout + done.stderr)
    assert "\\x1b[31m[bold]" in done.stdout
    assert read_json(here / "runs/c/comparison.json")["entries"][0]["name"] == hostile


def test_a_run_whose_interval_does_not_hold_its_mean_is_refused(tmp_path: Path) -> None:
    """As are numbers of another kind; what rounding did is mended."""
    folder, file = StepFolder(tmp_path, 0), tmp_path / "results.json"
    for avg, said in (
        ({"mean": 0.0, "low": 0.1, "high": 0.2}, "does not hold its mean 0"),
        ({"mean": "all", "low": 0.1, "high": 0.2}, "not as castctl eval writes it"),
        ({"low": 0.1, "high": 0.2}, "not as castctl eval writes it"),
        ([0.5], "not as castctl eval writes it"),
    ):
        write_json(file, {"avg": avg})
        with pytest.raises(UserError, match=said):
            read_result(folder)
    write_json(file, {"avg": {"mean": 0.0, "low": 3.5e-18, "high": 0.04}})
    assert read_result(folder) is not None
