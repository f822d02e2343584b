"""`castctl diagnose opsd-gaps --context other`: is knowing the answer what works?"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from castctl import embedded
from castctl.data.teacher_template import TeacherTemplate
from castctl.diagnosis.diagnosis import Diagnosis
from castctl.errors import UserError
from castctl.methods.teacher import Teacher
from castctl.models.loading import load_tokenizer
from castctl.progress import Silent
from castctl.recipe.recipe import DataSettings, ModelSettings
from castctl.report.diagnostics.gap_control import control_answer
from castctl.runs.run import Run, create_run
from castctl.shards.stage import StepFolder
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from castctl.stages.score.others import others_answers
from conftest import Cli
from runs import part_hashes, small_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One scored step of GRPO, in two parts."""
    recipe = small_recipe("grpo")
    run = create_run(recipe, str(tmp_path_factory.mktemp("runs") / "grpo"), "test")
    rollout_stage(run, 0, policy_at(run, 0), progress=Silent())
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.path, tmp_path / "grpo"))


def _found(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "diagnose" / name / f"{name}.json").read_text())


def _other(run: Path) -> dict[str, Any]:
    return json.loads((run / "diagnose" / "opsd-gaps" / "other" / "opsd-gaps.json").read_text())


def test_a_teacher_told_another_problems_answer(castctl: Cli, run: Path, trained: Run) -> None:
    """Each prompt's is one of the same step with another text, drawn anew from the ids alone; the
    run's own shards stay as they are, and the right answer's separation stands beside it."""
    before = part_hashes(run)
    step = ("--step", "0", "--quiet")
    done = castctl("diagnose", "opsd-gaps", str(run), "--context", "other", *step)
    assert "castctl diagnose opsd-gaps on the same steps" in " ".join(done.stdout.split())
    assert _other(run)["numbers"]["told_own"] is None
    castctl("diagnose", "opsd-gaps", str(run), *step)
    castctl("diagnose", "opsd-gaps", str(run), "--context", "other", *step)
    own, other = _found(run, "opsd-gaps"), _other(run)
    assert other["numbers"]["told_own"]["all"] == own["numbers"]["separation"]["all"]
    assert [s["teacher_context"] for s in (own["steps"][0], other["steps"][0])] == [
        "solution_or_answer", "other"
    ]  # fmt: skip
    assert part_hashes(run) == before
    folder = StepFolder(run / "diagnose" / "opsd-gaps" / "other" / "step-00000", 0)
    rollouts = trained.step(0).table("rollouts").to_pylist()
    answers = {row["prompt_id"]: row["answer"] for row in rollouts}
    tokenizer = load_tokenizer(embedded.ensure().model, ModelSettings())
    for row, asked in zip(rollouts, folder.table("signals").to_pylist(), strict=True):
        id, problem = row["prompt_id"], row["problem"]
        able = sorted(other for other in answers if answers[other] != answers[id])
        digest = hashlib.sha256(f"0/0/{id}/other".encode()).digest()
        drawn = answers[able[int.from_bytes(digest[:8], "little") % len(able)]]
        assert drawn != row["answer"]
        assert f"{problem} ({drawn})" in tokenizer.decode(asked["teacher_prompt_token_ids"])


def test_a_step_whose_problems_have_one_answer_has_no_other() -> None:
    template = TeacherTemplate(
        load_tokenizer(embedded.ensure().model, ModelSettings()), DataSettings(),
        Teacher(kind="current", context="solution_or_answer"),
    )  # fmt: skip

    def told(*rows: tuple[str, str | None, str | None]) -> Any:
        names = ("prompt_id", "answer", "solution")
        columns = zip(names, zip(*rows, strict=True), strict=True)
        table = pa.table({name: pa.array(column, pa.string()) for name, column in columns})
        return others_answers(table, template, 0, 3)

    with pytest.raises(UserError, match=r"no other problem of step 3 has another answer than '7'"):
        told(("a", "7", "so 7"), ("b", " 7 ", "hence 7"))
    found = told(("a", "7", "so 7"), ("b", " 7 ", None), ("c", None, None), ("d", None, "thus"))
    assert found["a"] == found["b"] == (None, "thus") and found["d"] in (
        ("7", "so 7"),
        (" 7 ", None),
    )


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        ((0.8, 0.7, 0.9), (0.79, 0.7, 0.9), "knowing the answer is not what works"),
        ((0.8, 0.7, 0.9), (0.5, 0.4, 0.6), "what separates is its knowledge of the answer"),
        ((0.8, 0.7, 0.9), (0.3, 0.2, 0.4), "prefers incorrect completions: AUC 0.3"),
        ((0.8, 0.7, 0.9), (0.65, 0.6, 0.7), "keeps 50.0% of its distance from chance"),
        ((0.5, 0.4, 0.6), (0.65, 0.6, 0.7), "Neither is shown"),
        (None, (0.65, 0.6, 0.7), "on the same steps puts the right answer's AUC beside it"),
    ],
)
def test_what_follows_from_another_problems_answer(
    own: tuple[float, ...] | None, other: tuple[float, ...], said: str
) -> None:
    def auc(told: tuple[float, ...]) -> dict[str, Any]:
        return {"mean_gap": dict(zip(("mean", "low", "high"), told, strict=True))}

    numbers = {
        "correct": 90, "incorrect": 90, "all": {"prompts": 60}, "separation": {"all": auc(other)},
        "told_own": None if own is None else {"all": auc(own)},
    }  # fmt: skip
    diagnosis = Diagnosis("opsd-gaps", "", {}, [], numbers, [], 0)
    assert said in " ".join(control_answer(diagnosis))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("opsd-gaps", "--context", "wrong"), "no context 'wrong'; --context other tells"),
        (
            ("self-gaps", "--context", "other"),
            "and self-gaps reads none; use castctl diagnose opsd",
        ),
    ],
)
def test_a_context_that_there_is_not(castctl: Cli, arguments: tuple[str, ...], said: str) -> None:
    [line] = castctl("diagnose", *arguments, code=2).stderr.splitlines()
    assert line.startswith("castctl: ") and said in line


def test_the_same_from_python(run: Path) -> None:
    import castctl

    with pytest.raises(UserError, match="no context 'wrong'"):
        castctl.diagnose("opsd-gaps", run, context="wrong")
    found = castctl.diagnose("opsd-gaps", run, steps=[0], context="other", quiet=True)
    assert found.steps[0]["teacher_context"] == "other" and found.numbers["told_own"] is None
