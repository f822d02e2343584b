"""`castctl diagnose` as it is typed: what it reads, what it computes, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from castctl.diagnosis.catalog import DIAGNOSTICS
from castctl.diagnosis.kept import lost_answers
from castctl.runs.run import Run
from castctl.shards.part import read_metadata
from castctl.shards.stage import StepFolder
from conftest import Cli
from random_steps import write_step
from runs import part_hashes, small_recipe, train_small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of CAST with every checkpoint, and a gap that flips."""
    recipe = small_recipe("cast", "method.shaping.tau_nats=0")
    return train_small(tmp_path_factory.mktemp("runs") / "cast", recipe)[0]


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    """A copy of the run, to be written into."""
    return Path(shutil.copytree(trained.path, tmp_path / "cast"))


def _found(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "diagnose" / name / f"{name}.json").read_text())


def test_bare_it_makes_rollouts_and_a_privileged_teacher(castctl: Cli, tmp_path: Path) -> None:
    done = castctl("diagnose", "opsd-gaps")
    (run,) = (tmp_path / "runs").glob("diagnose-*")
    numbers = _found(run, "opsd-gaps")["numbers"]
    assert numbers["correct"] + numbers["incorrect"] == 512
    assert numbers["separation"]["all"]["mean_gap"]["low"] > 0.5
    (step,) = _found(run, "opsd-gaps")["steps"]
    assert step["teacher_context"] == "solution_or_answer" and step["computed"] == ["signals"]
    for words in (
        "have the higher mean gap: AUC",
        "Gap in the four cells",
        "--full",
    ):
        assert words in done.stdout
    out = run / "diagnose" / "opsd-gaps"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    assert len(list(out.glob("*.png"))) == 3
    assert "<html" in (out / "report.html").read_text()
    again = castctl("diagnose", "opsd-gaps", "--json")
    assert json.loads(again.stdout)["numbers"] == numbers


@pytest.mark.parametrize("name", sorted(DIAGNOSTICS))
def test_each_one_writes_numbers_plots_and_a_page(castctl: Cli, run: Path, name: str) -> None:
    before = part_hashes(run)
    castctl("diagnose", name, str(run), "--quiet")
    out = run / "diagnose" / name
    assert _found(run, name)["numbers"]
    assert (out / "report.html").stat().st_size > 10_000 and list(out.glob("*.png"))
    assert part_hashes(run) == before


def test_what_is_missing_is_computed_with_the_checkpoint_of_its_step(
    castctl: Cli, run: Path
) -> None:
    castctl("diagnose", "opsd-gaps", str(run), "--quiet")
    found = _found(run, "opsd-gaps")
    assert [step["step"] for step in found["steps"]] == [0, 1, 2]
    assert "Signals of step 0 were computed under diagnose/" in found["notes"][0]
    assert not any("sampled by" in note for note in found["notes"])
    own = StepFolder(run / "step-00001", 1)
    made = StepFolder(run / "diagnose" / "opsd-gaps" / "step-00001", 1)
    for part in own.parts("signals"):
        first, second = (folder.read("signals", part).table for folder in (own, made))
        assert first["policy_logprobs"].equals(second["policy_logprobs"])
        assert not first["teacher_logprobs"].equals(second["teacher_logprobs"])
    metadata = read_metadata(made.part_path("signals", 0), "signals")
    assert metadata is not None
    assert metadata["signals"]["teacher_logprobs"]["teacher"]["kind"] == "current"


def test_with_other_weights_policy_and_teacher_are_both_scored_anew(
    castctl: Cli, run: Path
) -> None:
    weights = run / "checkpoints" / "step-00003"
    castctl("diagnose", "opsd-gaps", f"{run}/step-00001", "--model", str(weights), "--quiet")
    found = _found(run, "opsd-gaps")
    (step,) = found["steps"]
    assert step["step"] == 1 and step["policy"] == step["teacher"] == "cast@step-00003"
    assert any("were sampled by cast@step-00001" in note for note in found["notes"])
    made = StepFolder(run / "diagnose" / "opsd-gaps" / "step-00001", 1).read("signals", 0).table
    own = StepFolder(run / "step-00001", 1).read("signals", 0).table
    assert not made["policy_logprobs"].equals(own["policy_logprobs"])


def test_the_runs_own_answer_free_teacher_is_taken_as_it_is(castctl: Cli, run: Path) -> None:
    castctl("diagnose", "self-gaps", str(run), "--quiet")
    found = _found(run, "self-gaps")
    assert not any(step["computed"] for step in found["steps"])
    assert not (run / "diagnose" / "self-gaps" / "step-00001").exists()
    assert [life["age"] for life in found["numbers"]["alive"]] == [0, 1, 0]
    castctl("diagnose", "flips", str(run), "--step", "1", "--quiet")
    assert [step["step"] for step in _found(run, "flips")["steps"]] == [1]


def test_an_answer_free_teacher_of_named_weights_is_the_initial_policy(
    castctl: Cli, run: Path
) -> None:
    weights = str(run / "checkpoints" / "step-00003")
    castctl("diagnose", "self-gaps", str(run), "--model", weights, "--quiet")
    found = _found(run, "self-gaps")
    assert found["steps"][0]["policy"] == "cast@step-00003" != found["steps"][0]["teacher"]
    assert found["numbers"]["all"]["zero_share"] < 0.5


def test_a_teacher_that_is_asked_for_is_the_one_that_is_read(castctl: Cli, run: Path) -> None:
    asked = ("--step", "2", "--set", "method.teacher.kind=current")
    castctl("diagnose", "self-gaps", str(run), *asked, "--quiet")
    found = _found(run, "self-gaps")
    assert found["steps"][0]["teacher_settings"]["kind"] == "current"
    assert found["steps"][0]["computed"] == ["signals"]
    assert found["numbers"]["all"]["zero_share"] == 1.0


def test_what_is_there_is_read_and_only_the_rest_is_computed(castctl: Cli, run: Path) -> None:
    shutil.rmtree(run / "step-00001" / "advantages")
    shutil.rmtree(run / "checkpoints")
    castctl("diagnose", "flips", str(run), "--step", "1", "--step", "2", "--quiet")
    found = _found(run, "flips")
    assert [step["computed"] for step in found["steps"]] == [["advantages"], []]


def test_an_evaluation_is_diagnosed_beside_its_own_shards(castctl: Cli, run: Path) -> None:
    folder = run / "eval" / "embedded" / "step-00003"
    castctl("diagnose", "opsd-gaps", str(folder), "--quiet")
    found = _found(folder, "opsd-gaps")
    assert found["numbers"]["correct"] + found["numbers"]["incorrect"] == 8
    assert not (run / "diagnose").exists()


def test_plots_of_an_earlier_diagnosis_do_not_stay(castctl: Cli, run: Path) -> None:
    castctl("diagnose", "self-gaps", str(run), "--quiet")
    castctl("diagnose", "self-gaps", str(run), "--step", "1", "--quiet")
    names = {path.name for path in (run / "diagnose" / "self-gaps").glob("*.png")}
    assert names and "self-gaps-steps.png" not in names


def test_a_run_still_being_written_is_read_as_far_as_it_is_whole(castctl: Cli, run: Path) -> None:
    for stage in ("rewards", "signals", "advantages"):
        (run / "step-00002" / stage / "part-00001.parquet").unlink()
    castctl("diagnose", "self-gaps", str(run), "--quiet")
    found = _found(run, "self-gaps")
    last = found["steps"][-1]
    assert (last["step"], last["parts"], last["of_parts"]) == (2, 1, 2)
    assert any("1 of 2 parts" in note for note in found["notes"])


def test_shards_made_elsewhere_need_no_run(castctl: Cli, tmp_path: Path) -> None:
    write_step(tmp_path / "made" / "step-00000", np.random.default_rng(0))
    castctl("diagnose", "self-gaps", "made/step-00000", "--quiet")
    assert _found(tmp_path / "made" / "step-00000", "self-gaps")["numbers"]["all"]["tokens"]
    for path in tmp_path.glob("made/*/signals/*"):
        path.unlink()
    done = castctl("diagnose", "self-gaps", "made/step-00000", code=2)
    assert "--model" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("opsd-gap",), "the nearest is opsd-gaps"),
        (("groups", "nowhere"), "no run at"),
        (("groups", "RUN", "--step", "7"), "steps that have: 0, 1, 2"),
        (("groups", "RUN/step-00000/rewards/part-00000.parquet"), "is one part"),
        (
            ("opsd-gaps", "RUN", "--set", "method.teacher.context=nonsense"),
            "method.teacher.context",
        ),
        (("opsd-gaps", "RUN", "--recipe", "tiny"), "has its recipe already"),
    ],
)
def test_wrong_input_gets_one_line(
    castctl: Cli, trained: Run, arguments: tuple[str, ...], told: str
) -> None:
    typed = [each.replace("RUN", str(trained.path)) for each in arguments]
    done = castctl("diagnose", *typed, "--quiet", code=2)
    assert told in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_step_without_checkpoint_is_named_with_its_remedy(castctl: Cli, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00001")
    done = castctl("diagnose", "opsd-gaps", str(run), "--step", "1", code=2)
    assert "--model" in done.stderr and "Traceback" not in done.stderr


def test_what_will_be_lost_is_told_before_anything_is_trained(castctl: Cli, trained: Run) -> None:
    """The diagnoses named are those that a step of the loop does not hold the signals of."""
    absent = [name for name, each in DIAGNOSTICS.items() if not each.need.parts_of(trained.step(1))]
    recipe = small_recipe("cast", "train.keep=best_and_last")
    said = lost_answers(recipe)
    assert said is not None and said.endswith("whose weights stay; set train.keep=all for more")
    assert [name for name in DIAGNOSTICS if name in said] == absent
    assert absent == ["opsd-gaps", "credit", "confidence"]
    assert lost_answers(small_recipe("cast")) is None  # keeps all
    assert lost_answers(small_recipe("cast", "train.steps=1", "train.keep=best_and_last")) is None
    rare = ["train.checkpoint_every=9", "eval.every=0"]
    for keep, words in (("all", ""), ("best_and_last", "train.keep=all and ")):
        said = str(lost_answers(small_recipe("cast", *rare, f"train.keep={keep}")))
        assert f"set {words}train.checkpoint_every below 3" in said
    page = " ".join(castctl("explain", "cast", "--set", "train.steps=2").stdout.split())
    assert "opsd-gaps, credit and confidence will be answered for step 0" in page
    begun = castctl("train", "--method", "cast", "--steps", "2", "--data", "none.jsonl", code=2)
    assert begun.stderr.count("opsd-gaps, credit and confidence will be answered") == 1


def test_what_only_reads_loads_no_model_library() -> None:
    code = (
        "import castctl.diagnosis.runner, castctl.report.diagnosis_page, sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "math_verify"} & set(done.stdout.split())


def test_without_a_name_they_are_explained(castctl: Cli) -> None:
    done = castctl("diagnose")
    assert all(name in done.stdout for name in DIAGNOSTICS)


def test_a_run_named_in_the_place_of_the_diagnostic_is_told(castctl: Cli, trained: Run) -> None:
    done = castctl("diagnose", str(trained.path), "groups", code=2)
    assert "name the diagnostic first" in done.stderr


def test_a_checkpoint_that_a_training_run_removes_is_passed_over(
    castctl: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if step 1's checkpoint went between the listing and the reading."""
    from castctl.diagnosis import subject as room
    from castctl.diagnosis.runner import diagnose
    from castctl.progress import Silent
    from castctl.runs.run import open_run

    found = open_run(str(run))
    listed = room._with_checkpoint

    def pruned(*given: Any) -> list[StepFolder]:
        folders = listed(*given)
        shutil.rmtree(run / "checkpoints" / "step-00001")
        return folders

    monkeypatch.setattr(room, "_with_checkpoint", pruned)
    steps = [found.step(step) for step in found.steps]
    diagnosis, _ = diagnose(
        DIAGNOSTICS["opsd-gaps"], room.Subject(run, steps, found), asked=[], progress=Silent()
    )
    assert [step["step"] for step in diagnosis.steps] == [0, 2]
