"""Wrong settings of a method and parts that do not fit it: one line that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl import embedded
from castctl.data.bilateral import BilateralTemplate
from castctl.data.teacher_template import TeacherTemplate
from castctl.errors import UserError
from castctl.methods.conditioning import Bilateral
from castctl.methods.teacher import Teacher
from castctl.models.loading import load_tokenizer
from castctl.policies import policy_at
from castctl.progress import Silent
from castctl.recipe import DataSettings, ModelSettings
from castctl.recipe_reader import load_recipe
from castctl.runs import Run, create_run, open_run
from castctl.shape import shape_step
from castctl.stages import rollout_stage, score_stage, train_stage
from castctl.train.loop import train
from conftest import Cli
from runs import small_recipe


def refusal(act: Callable[[], object]) -> str:
    """The line that an act is refused with."""
    with pytest.raises(UserError) as refused:
        act()
    line = str(refused.value)
    assert "\n" not in line
    return line


def refused_recipe(method: str, *overrides: str) -> str:
    given = [f"method.{each}" for each in overrides]
    return refusal(lambda: load_recipe(None, given, method={"name": method}))


# Settings by themselves

RANGES = [
    ("grpo", "baseline.eps", "-1", "greater than or equal to 0, got -1"),
    ("grpo", "baseline.eps", ".nan", "a finite number, got nan"),
    ("grpo", "baseline.std", "biased", "'population' or 'sample', got 'biased'"),
    ("rcc", "baseline.eps", "-1", "greater than or equal to 0"),
    ("rcc", "baseline.std", "3", "'population' or 'sample', got 3"),
    ("rcc", "baseline.reduction", "max", "'sum' or 'mean', got 'max'"),
    ("rcc", "baseline.clip", "wide", "valid tuple, got 'wide'"),
    ("cast", "zero_variance.b_correct", "-1", "greater than or equal to 0"),
    ("cast", "zero_variance.b_wrong", "-1", "greater than or equal to 0"),
    ("dapo", "zero_variance.max_rounds", "0", "greater than or equal to 1, got 0"),
    ("dapo", "overlong.cache", "0", "greater than or equal to 1, got 0"),
    ("dapo", "overlong.cache", "quarter", "valid integer"),
    ("cast", "shaping.lam", "2", "less than or equal to 1, got 2"),
    ("cast", "shaping.clamp", "0", "greater than 0, got 0"),
    ("cast", "shaping.flip", "perhaps", "valid boolean"),
    ("rlsd", "shaping.eps_w", "2", "less than or equal to 1, got 2"),
    ("rlsd", "shaping.lam", "-0.1", "greater than or equal to 0"),
    ("rlsd", "shaping.decay_steps", "-1", "greater than or equal to 0"),
    ("rlrt", "shaping.eps_w", "2", "less than or equal to 1"),
    ("rlrt", "shaping.lam", "2", "less than or equal to 1"),
    ("rlrt", "shaping.decay_steps", "soon", "valid integer"),
    ("oar-p", "shaping.threshold", "2", "less than or equal to 1, got 2"),
    ("oar-p", "shaping.gain", "-1", "greater than or equal to 0"),
    ("oar-p", "shaping.floor", "1.5", "less than or equal to 1"),
    ("oar-p", "shaping.score", "first", "'last', 'answer_mean' or 'answer_joint'"),
    ("oar-p", "shaping.conclude", "3", "valid string, got 3"),
    ("oar-p", "shaping.stride", "0", "greater than or equal to 1, got 0"),
    ("oar-p", "shaping.budget", "0", "greater than or equal to 1, got 0"),
    ("oar-g", "shaping.threshold", "-1", "greater than or equal to 0"),
    ("oar-g", "shaping.noise_std", "0", "greater than 0, got 0"),
    ("cast", "teacher.kind", "oracle", "'initial', 'current' or 'model', got 'oracle'"),
    ("cast", "teacher.every", "0", "greater than or equal to 1"),
    ("cast", "teacher.decay", "1", "less than 1, got 1"),
    ("cast", "teacher.skip_tokens", "-1", "greater than or equal to 0, got -1"),
    ("cast", "teacher.path", "3", "valid string, got 3"),
    ("rlsd", "teacher.context", "hint", "'answer', 'solution' or 'solution_or_answer'"),
    ("rlsd", "teacher.template", "[]", "valid string"),
    ("rlsd", "teacher.chat_template_options", "3", "valid dictionary, got 3"),
    ("bicc", "conditioning.share", "0", "greater than 0, got 0"),
    ("bicc", "conditioning.share", "1.5", "less than 1, got 1.5"),
    ("bicc", "conditioning.context_tokens", "0", "greater than or equal to 1, got 0"),
    ("grpo", "surrogate.kind", "ppo", "'clip', 'reinforce' or 'none', got 'ppo'"),
    ("grpo", "surrogate.clip_low", "2", "less than or equal to 1"),
    ("grpo", "surrogate.clip_high", "-1", "greater than or equal to 0"),
    ("grpo", "surrogate.dual_clip", "1", "greater than 1, got 1"),
    ("grpo", "surrogate.aggregation", "sum", "'token_mean' or 'constant', got 'sum'"),
    ("grpo", "surrogate.entropy_bonus", "-1", "greater than or equal to 0"),
    ("opsd", "distillation.beta", "2", "less than or equal to 1, got 2"),
    ("opsd", "distillation.tokens", "some", "'top_k', 'top_k_tail' or 'sampled', got 'some'"),
    ("opsd", "distillation.top_k", "0", "greater than or equal to 1, got 0"),
    ("opsd", "distillation.coefficient", "-1", "greater than or equal to 0, got -1"),
    ("opsd", "distillation.warmup_steps", "-1", "greater than or equal to 0"),
    ("opsd", "distillation.decay_steps", "1.5", "valid integer"),
    ("opsd", "distillation.gate", "maybe", "valid boolean"),
    ("opsd", "distillation.clip", "0", "greater than 0, got 0"),
    ("sdpg", "anchor.kind", "k9", "'urkl', 'ufkl', 'fkl' or 'rkl', got 'k9'"),
    ("sdpg", "anchor.kind", "[k2]", "'urkl', 'ufkl', 'fkl' or 'rkl'"),
    ("sdpg", "anchor.coefficient", "-1", "greater than or equal to 0, got -1"),
    ("grpo", "importance_cap", "0", "greater than 0, got 0"),
    ("grpo", "importance_cap", ".inf", "a finite number, got inf"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "key", "value", "words"), RANGES)
def test_a_value_out_of_its_range(method: str, key: str, value: str, words: str) -> None:
    line = refused_recipe(method, f"{key}={value}")
    assert line.startswith(f"settings: method.{key}: input should be ") and words in line


@pytest.mark.parametrize(
    ("method", "slot", "kinds"),
    [
        ("grpo", "baseline", "'mean_std', 'mean', 'leave_one_out', 'rcc', 'none'"),
        ("grpo", "zero_variance", "'zero', 'signed', 'resample'"),
        ("grpo", "overlong", "'none', 'penalty', 'mask'"),
        ("grpo", "shaping", "'none', 'cast', 'rlsd', 'rlrt', 'oar-p', 'oar-g'"),
        ("grpo", "conditioning", "'none', 'bilateral'"),
        ("opsd", "distillation", "'none', 'jsd', 'forward_kl', 'reverse_kl'"),
    ],
)
@pytest.mark.parametrize("kind", ["abacus", "[cast]", "7"])
def test_an_unknown_kind_names_those_there_are(
    method: str, slot: str, kinds: str, kind: str
) -> None:
    line = refused_recipe(method, f"{slot}.kind={kind}")
    assert line == f"settings: method.{slot}.kind must say which: {kinds}"


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("grpo", "baseline.clip=[0,1]"),
        ("rloo", "baseline.reduction=mean"),
        ("opsd", "baseline.eps=0"),
        ("cast", "zero_variance.max_rounds=2"),
        ("dapo", "zero_variance.b_wrong=1"),
        ("rlsd", "shaping.tau_rms=1"),
        ("rlrt", "shaping.kappa_wrong=1"),
        ("cast", "shaping.eps_w=0.1"),
        ("oar-g", "shaping.stride=2"),
        ("oar-p", "shaping.noise_std=1"),
    ],
)
def test_a_setting_of_another_kind(method: str, setting: str) -> None:
    line = refused_recipe(method, setting)
    key = setting.partition("=")[0]
    assert f"key method.{key} does not belong to the kind chosen" in line


@pytest.mark.parametrize(
    "setting", ["overlong.cache=8", "conditioning.share=0.3", "distillation.beta=0.5"]
)
def test_a_setting_of_a_slot_that_is_off(setting: str) -> None:
    slot = setting.partition(".")[0]
    assert f"method.{slot}.kind must say which: " in refused_recipe("grpo", setting)


TOGETHER = [
    ("rcc", ["baseline.clip=[1,0]"], "clip must go from low to high; got [1.0, 0.0]"),
    ("cast", ["shaping.positive_range=[1.1,1.2]"], "positive_range must hold 1"),
    ("cast", ["shaping.negative_range=[0.5,0.9]"], "negative_range must hold 1"),
    ("cast", ["teacher.kind=model"], "set method.teacher.path to the model's folder or hub id"),
    ("cast", ["teacher.kind=model", "teacher.path=''"], "needs teacher.path"),
    ("cast", ["teacher.path=org/name"], "reads no teacher.path; set method.teacher.kind=model"),
]


@pytest.mark.parametrize(("method", "settings", "words"), TOGETHER)
def test_settings_of_a_slot_that_contradict(method: str, settings: list[str], words: str) -> None:
    line = refused_recipe(method, *settings)
    slot = settings[0].partition(".")[0]
    assert line.startswith(f"settings: method.{slot}: ") and words in line


# Settings of several slots

CONTRADICTIONS = [
    ("cast", "teacher.kind=none"),
    ("rlsd", "teacher.kind=none"),
    ("opsd", "teacher.kind=none"),
    ("grpo", "shaping.kind=rlrt"),
    ("grpo", "distillation.kind=jsd"),
    ("grpo", "baseline.kind=none"),
    ("cast", "baseline.kind=none"),
    ("sdpg", "baseline.kind=none"),
    ("bicc", "baseline.kind=none"),
    ("opsd", "surrogate.kind=clip"),
    ("opsd", "shaping.kind=rlsd"),
    ("opsd", "distillation.gate=true"),
    ("opsd", "zero_variance.kind=signed"),
    ("opsd", "zero_variance.kind=resample"),
    ("opsd", "overlong.kind=penalty"),
    ("grpo", "surrogate.kind=none"),
    ("oar-p", "surrogate.kind=none"),
    ("opsd", "distillation.kind=none"),
    ("grpo+opsd", "conditioning.kind=bilateral"),
    ("opsd", "conditioning.kind=bilateral"),
    ("bicc", "surrogate.kind=reinforce"),
    ("bicc", "anchor.kind=k3"),
    ("bicc", "distillation.kind=jsd"),
    ("sdpg", "surrogate.dual_clip=10"),
    ("opsd", "surrogate.dual_clip=10"),
    ("sdpg", "distillation.tokens=sampled", "distillation.kind=forward_kl"),
    ("sdpg", "distillation.tokens=sampled", "distillation.clip=0.1"),
    ("rloo", "shaping.kind=cast", "surrogate.kind=none", "conditioning.kind=bilateral"),
]

ADVICE = re.compile(r"(method\.[a-z_]+\.[a-z_]+)(?:=| to )([a-z_0-9]+)")


@pytest.mark.parametrize("case", CONTRADICTIONS, ids=" ".join)
def test_the_first_advice_followed_ends_in_a_sound_recipe(case: tuple[str, ...]) -> None:
    """A message names a setting and its value; what is then still wrong says so in its turn."""
    method, *wrong = case
    settings = [f"method.{each}" for each in wrong]
    line = refused_recipe(method, *wrong)
    for _ in range(3):
        advised = ADVICE.search(line)
        assert advised, f"no way out: {line}"
        settings.append(f"{advised[1]}={advised[2]}")
        try:
            load_recipe(None, settings, method={"name": method}).check_training()
        except UserError as error:
            line = str(error)
        else:
            return
    raise AssertionError(f"{settings} is still refused: {line}")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("csat", "cast"), ("GRPO", "grpo"), ("rlds", "rlsd"), ("sdgp", "sdpg"), ("oarp", "oar-p"),
        ("bicc+rc", "bicc+rcc"), ("Sdpg-URKL", "sdpg-urkl"), (" opsd", "opsd"),
    ],
)  # fmt: skip
def test_a_method_misspelt(name: str, nearest: str) -> None:
    line = refusal(lambda: load_recipe(method={"name": name}))
    assert f"no method {name!r}; the nearest is {nearest} (castctl methods)" in line


def test_a_method_that_is_like_none(castctl: Cli) -> None:
    for name in ("abacus", "", "\x1b[31m"):
        line = refusal(lambda name=name: load_recipe(method={"name": name}))
        assert f"no method {name!r}; there are grpo, dr-grpo, " in line
    done = castctl("methods", "rlds", code=2)
    assert done.stderr.strip() == "castctl: no method 'rlds'; the nearest is rlsd (castctl methods)"


# A scored step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A step of GRPO, scored and shaped, of two parts."""
    run = create_run(small_recipe("grpo"), str(tmp_path_factory.mktemp("one") / "run"), "test")
    source = policy_at(run, 0)
    rollout_stage(run, 0, source, progress=Silent())
    score_stage(run, 0, source, None, progress=Silent())
    shape_step(run.step(0), run.recipe.method, progress=Silent())
    kinds = run.step(0).read_all("advantages")["group_kind"].to_pylist()
    assert "mixed" in kinds
    return run


@pytest.fixture
def step(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That step in a run of this test's own, scored and not shaped."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.path, "runs/r")
    shutil.rmtree("runs/r/step-00000/advantages")
    return Path("runs/r/step-00000")


def as_method(step: Path, name: str, *overrides: str) -> Run:
    """The step's run with another method."""
    run = open_run(str(step.parent))
    method = load_recipe(None, overrides, method={"name": name}).method
    return Run(run.path, run.recipe.model_copy(update={"method": method}))


def scored(step: Path, name: str, *overrides: str) -> Run:
    """The step scored for another method too."""
    run = as_method(step, name, *overrides)
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    return run


def shaped(run: Run) -> None:
    shape_step(run.step(0), run.recipe.method, longest=48, progress=Silent())


def trained(run: Run) -> None:
    train_stage(run, 0, policy_at(run, 0), overwrite=False)


def files_of(step: Path) -> set[Path]:
    return {path for path in step.parent.rglob("*") if path.is_file()}


def rewritten(
    part: Path, change: Callable[[list[dict[str, Any]]], object], keep: bool = False
) -> None:
    """Change a part's rows in place; it becomes one made elsewhere, unless what made it is kept."""
    table = pq.read_table(part)
    rows = table.to_pylist()
    change(rows)
    schema = table.schema if keep else table.schema.with_metadata(None)
    pq.write_table(pa.Table.from_pylist(rows, schema), part)


def spoil(step: Path, stage: str, name: str, value: Callable[[dict], object], rows: slice) -> None:
    """Give some rows of a stage's first part another value."""

    def change(table: list[dict[str, Any]]) -> None:
        for row in table[rows]:
            row[name] = value(row)

    rewritten(step / stage / "part-00000.parquet", change)


NEEDS = {
    "rlsd": "teacher_logprobs",
    "opsd": "teacher_prompt_token_ids",
    "sdpg-urkl": "ref_logprobs",
    "oar-p": "importance_perturb",
    "oar-g": "importance_grad",
    "bicc": "bilateral_logprobs",
    "rcc": "ref_logprobs",
}


@pytest.mark.parametrize("method", NEEDS)
def test_shaping_names_the_command_that_it_waits_for(step: Path, method: str) -> None:
    before = files_of(step)
    line = refusal(lambda: shaped(as_method(step, method)))
    assert f"{method} needs {NEEDS[method]}, which {step}/signals/part-00000.parquet does not" in (
        line
    )
    assert f"run `castctl score --run {step} --method {method}`" in line
    assert files_of(step) == before
    shaped(scored(step, method))


def test_the_command_named_is_one_that_works(castctl: Cli, step: Path) -> None:
    """The way from GRPO's step to an update of SDPG by nothing but what the messages say."""
    shaped(as_method(step, "grpo"))
    command: tuple[str, ...] = ("train", "--from", str(step), "--method", "sdpg")
    todo = [command]
    typed = []
    while todo:
        command = todo.pop()
        typed.append(" ".join(command[:1]))
        done = castctl(*command, code=2 if (code := _code(castctl, command)) == 2 else code)
        assert len(typed) < 12
        if code == 2:
            line = done.stderr.rstrip("\n").splitlines()[-1]
            found = re.search(r"`castctl ([^`]*)`", line)
            if found:
                todo += [command, tuple(found[1].split())]
            else:
                assert "add --overwrite" in line
                todo.append((*command, "--overwrite"))
    assert Path("runs/r/checkpoints/step-00001/model.safetensors").is_file()
