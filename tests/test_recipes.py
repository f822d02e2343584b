"""The recipes that come with castctl, what one may inherit from another, and `castctl recipes`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from castctl.errors import UserError
from castctl.methods import PRESETS
from castctl.progress import Silent
from castctl.recipe.reader import (
    dump_recipe,
    find_recipe,
    known_recipes,
    load_recipe,
    read_recipe,
    recipes_folder,
)
from castctl.recipe.recipe import Recipe
from castctl.runs.run import create_run
from castctl.settings import settings_in
from castctl.stages.train.loop import train
from conftest import Cli

RECIPES = known_recipes()
TINY = [name for name in RECIPES if name.startswith("tiny-")]
LARGE = [name for name in RECIPES if not name.startswith("tiny")]
BASE = "qwen3-dapo"

ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "cast-qwen3-1.7b": {
        "mixed-only": {"zero_variance.kind": "zero"},
        "no-reversal": {"shaping.flip": False},
        "with-answer": {"teacher.context": "answer"},
        "symmetric-clip": {
            "shaping.positive_range": (0.8, 1.2), "shaping.negative_range": (0.8, 1.2),
        },
    },
    "sdpg-urkl-qwen3-4b": {
        "no-gate": {"distillation.gate": False},
        "no-distillation": {"distillation.kind": "none", "teacher.kind": "none"},
        "no-anchor": {"anchor.kind": "none"},
        "dual-clip": {
            "surrogate.kind": "clip", "surrogate.clip_high": 0.28, "surrogate.dual_clip": 10,
        },
        "scheduled": {"distillation.warmup_steps": 50, "distillation.decay_steps": 100},
        "fkl": {"anchor.kind": "fkl"},
        "rkl": {"anchor.kind": "rkl"},
        "sampled-token": {"distillation.tokens": "sampled"},
    },
    "rlsd-qwen3-1.7b": {"no-decay": {"shaping.decay_steps": 0}},
    "oar-p-qwen3-1.7b": {"joint": {"shaping.score": "answer_joint"}},
}  # fmt: skip
"""By the recipe that each is an ablation of: what it sets in the method."""

TINY_CHANGES: dict[str, dict[str, Any]] = {
    "tiny-oar-p": {"shaping.budget": 16},
    "tiny-oar-p-joint": {"shaping.budget": 16},
    "tiny-sdpg-scheduled": {"distillation.warmup_steps": 5, "distillation.decay_steps": 10},
}
"""Where a twin's method is not quite its big brother's."""


def recipe_of(name: str) -> Recipe:
    return load_recipe(RECIPES[name])


def ablation(base: str, name: str) -> str:
    """`sdpg-qwen3-4b-fkl` is one of `sdpg-urkl-qwen3-4b`."""
    return f"{base.replace('sdpg-urkl', 'sdpg')}-{name}"


def twin(name: str) -> str:
    return "tiny-" + re.sub(r"-qwen3-[\d.]+b", "", name)


def differences(one: Recipe, base: Recipe) -> dict[str, Any]:
    return {each.key: each.value for each in settings_in(one, base) if each.changed}


def in_method(changes: dict[str, Any]) -> dict[str, Any]:
    return {f"method.{key}": value for key, value in changes.items()}


# What there is


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_train(name: str) -> None:
    assert recipe_of(name).check_training() == []


def test_every_method_has_a_recipe_and_a_tiny_one() -> None:
    for names in (LARGE, TINY):
        assert {recipe_of(name).method.name for name in names} == set(PRESETS)


def test_every_recipe_has_a_tiny_twin_with_its_method() -> None:
    assert {twin(name) for name in LARGE if name != BASE} == set(TINY)
    tiny = recipe_of("tiny")
    for name in LARGE:
        if name == BASE:
            continue
        small = recipe_of(twin(name))
        assert small.model_copy(update={"method": tiny.method}) == tiny, name
        changed = {
            f"method.{each.key}": each.value
            for each in settings_in(small.method, recipe_of(name).method)
            if each.changed
        }
        assert changed == in_method(TINY_CHANGES.get(twin(name), {})), name


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in ABLATIONS.items() for name in names]
)
def test_an_ablation_is_the_settings_away_that_it_says(base: str, name: str) -> None:
    changed = differences(recipe_of(ablation(base, name)), recipe_of(base))
    assert changed == in_method(ABLATIONS[base][name])


def test_a_free_combination_is_cast_with_another_baseline() -> None:
    changed = differences(recipe_of("cast+rcc-qwen3-1.7b"), recipe_of("cast-qwen3-1.7b"))
    assert changed == {"method.baseline.kind": "rcc"}


@pytest.mark.parametrize("size", ["1.7b", "4b", "8b"])
def test_sizes_differ_in_model_and_rows_alone(size: str) -> None:
    for method in ("cast", "opsd", "grpo+opsd"):
        recipe = recipe_of(f"{method}-qwen3-{size}")
        assert recipe.model.path == f"Qwen/Qwen3-{size.upper()}"
        smallest = recipe_of(f"{method}-qwen3-1.7b")
        assert differences(recipe, smallest).keys() <= {"model.path", "sampling.max_rows"}


def test_the_papers_settings() -> None:
    cast = recipe_of("cast-qwen3-4b")
    assert cast.data.path == "BytedTsinghua-SIA/DAPO-Math-17k"
    assert (cast.train.steps, cast.eval.task, cast.eval.k) == (300, "aime24", 16)
    for anchor in ("urkl", "ufkl"):
        sdpg = recipe_of(f"sdpg-{anchor}-qwen3-4b")
        assert sdpg.model.path == "Qwen/Qwen3-4B" and sdpg.data.path == cast.data.path
        assert (sdpg.train.steps, sdpg.eval.task, sdpg.eval.k) == (400, "aime24", 32)
        assert sdpg.method.anchor.kind == anchor and sdpg.method.anchor.coefficient == 0.001


# What their files say


def lines_with_scalars(node: yaml.Node, keys: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """The line of each scalar and its dotted key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from lines_with_scalars(value, (*keys, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from lines_with_scalars(value, keys)
    else:
        yield node.start_mark.line, ".".join(keys)


@pytest.mark.parametrize("name", LARGE)
def test_every_setting_of_a_file_says_whose_choice_it_is(name: str) -> None:
    text = RECIPES[name].read_text()
    lines = text.splitlines()
    for number, key in lines_with_scalars(yaml.compose(text)):
        if key not in ("extends", "method.name"):
            assert re.search(r"  # (paper|ours)\b", lines[number]), lines[number]


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_begins_with_what_it_is(name: str) -> None:
    text = RECIPES[name].read_text()
    assert re.match(r"# [^\n]{20,}\n", text)
    if name in TINY:
        [brother] = re.findall(r"# (\S+)\.yaml on the embedded default", text)
        assert twin(brother) == name


@pytest.mark.parametrize(
    "name",
    [n for n in LARGE if re.match(r"(cast|cast\+rcc|opsd|grpo\+opsd)-qwen3-[\d.]+b$", n)],
)
def test_where_the_paper_trains_lora_the_file_says_that_full_weights_are(name: str) -> None:
    comments = [line[2:] for line in RECIPES[name].read_text().splitlines() if line[:2] == "# "]
    assert "The paper trains LoRA; here full weights are trained" in " ".join(comments)


# One recipe from another


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return Path(name)


def test_a_file_says_only_what_differs_from_the_one_it_extends(here: Path) -> None:
    write("shared/base.yaml", "sampling: {n: 4, max_tokens: 64}\nmethod: {name: cast}")
    write("shared/middle.yaml", "extends: base.yaml\nmethod: {shaping: {lam: 0.5}}\nseed: 1")
    mine = write("mine.yaml", "extends: shared/middle.yaml\nsampling: {n: 6}\nseed: 2")
    recipe, origins = read_recipe(mine, ["seed=3"])
    assert (recipe.sampling.n, recipe.sampling.max_tokens, recipe.seed) == (6, 64, 3)
    assert recipe.method.name == "cast" and recipe.method.shaping.lam == 0.5  # type: ignore[union-attr]
    named = {key: origins[key] for key in origins if origins[key] != "preset cast"}
    assert named == {
        "seed": "--set",
        "sampling.n": "mine.yaml",
        "sampling.max_tokens": "shared/base.yaml",
        "method.name": "shared/base.yaml",
        "method.shaping.lam": "shared/middle.yaml",
    }
    resolved = yaml.safe_load(dump_recipe(recipe))
    assert "extends" not in resolved and Recipe.model_validate(resolved) == recipe


def test_a_recipe_of_castctls_is_extended_by_its_name(here: Path) -> None:
    for name in ("tiny-cast", "tiny-cast.yaml"):
        recipe, origins = read_recipe(write("mine.yaml", f"extends: {name}\nseed: 5"))
        assert recipe == recipe_of("tiny-cast").model_copy(update={"seed": 5})
        assert origins["optimizer.lr"] == "tiny.yaml"
        assert origins["method.name"] == "tiny-cast.yaml" and origins["seed"] == "mine.yaml"


def test_another_kind_or_method_starts_afresh(here: Path) -> None:
    write(
        "base.yaml",
        "method: {name: sdpg, surrogate: {aggregation: constant}, "
        "distillation: {kind: reverse_kl, warmup_steps: 3}}",
    )
    other = load_recipe(write("a.yaml", "extends: base.yaml\nmethod: {distillation: {kind: none}}"))
    assert other.method.distillation.kind == "none"
    assert other.method.surrogate.aggregation == "constant"
    other = load_recipe(write("b.yaml", "extends: base.yaml\nmethod: {name: cast}"))
    assert other.method == load_recipe(None, method={"name": "cast"}).method
    same = load_recipe(write("c.yaml", "extends: base.yaml\nmethod: {name: sdpg-urkl}"))
    assert same.method.surrogate.aggregation == "constant"  # one method has both names


WRONG = [
    ({"a.yaml": "extends: a.yaml"}, "a.yaml extends a.yaml, which rests on it in turn"),
    (
        {"a.yaml": "extends: b.yaml", "b.yaml": "extends: c.yaml", "c.yaml": "extends: b.yaml"},
        "c.yaml extends b.yaml, which rests on it in turn",
    ),
    ({"a.yaml": "extends: tiny-csat.yaml"}, "a.yaml extends tiny-csat.yaml, and there is no such"),
    ({"a.yaml": "extends: tiny-csat"}, "the nearest one is tiny-cast;"),
    ({"a.yaml": "extends: zzz"}, "castctl recipes lists those there are"),
    ({"a.yaml": f"extends: {'z' * 300}"}, "cannot read recipe"),
    ({"a.yaml": "extends: [tiny, cast]"}, "extends names one other recipe"),
    ({"a.yaml": "extends: ''"}, "extends names one other recipe"),
    ({"a.yaml": "extends: b.yaml", "b.yaml": "sampling: {m: 3}"}, "b.yaml: unknown key sampling.m"),
    ({"a.yaml": "extends: b.yaml\nseed: -1", "b.yaml": "{}"}, "a.yaml: seed: input should be"),
    ({"a.yaml": "extends: b.yaml", "b.yaml": "- a"}, "b.yaml: a recipe is a mapping"),
]


@pytest.mark.parametrize(("files", "words"), WRONG, ids=lambda value: str(value)[:50])
def test_a_recipe_that_rests_on_nothing_is_refused(
    here: Path, files: dict[str, str], words: str
) -> None:
    for name, text in files.items():
        write(name, text)
    with pytest.raises(UserError) as refused:
        load_recipe(Path("a.yaml"))
    assert words in str(refused.value) and "\n" not in str(refused.value)


# By name


def test_a_file_here_wins_over_a_recipe_of_that_name(here: Path) -> None:
    folder = recipes_folder()
    assert find_recipe("tiny-cast") == find_recipe("tiny-cast.yaml") == folder / "tiny-cast.yaml"
    Path("tiny-cast").mkdir()  # a folder is no recipe
    assert find_recipe("tiny-cast") == folder / "tiny-cast.yaml"
    assert find_recipe("tiny-cast") != write("tiny-cast.yaml", "seed: 7").resolve()
    assert load_recipe("tiny-cast").seed == load_recipe("tiny-cast.yaml").seed == 7


def test_commands_take_a_recipe_by_its_name(castctl: Cli) -> None:
    dry = castctl("train", "tiny-cast-mixed-only", "--dry-run").stdout
    assert "cast trains model embedded" in dry and "extends" not in dry
    listed = json.loads(castctl("explain", "tiny-rlsd-no-decay", "--json").stdout)
    settings = {each["key"]: each for each in listed["settings"]}
    assert settings["method.shaping.decay_steps"]["origin"] == "tiny-rlsd-no-decay.yaml"
    assert settings["optimizer.lr"]["origin"] == "tiny.yaml"
    for name, words in {
        "tiny-csat": "no recipe at tiny-csat; the nearest one is tiny-cast",
        "qqq": "castctl recipes lists those there are",
        "no/tiny-cast.yaml": "the nearest one is tiny-cast",
    }.items():
        [line] = castctl("train", "--quiet", name, code=2).stderr.splitlines()
        assert words in line


# castctl recipes


def test_recipes_are_listed(castctl: Cli) -> None:
    done = castctl("recipes")
    [row] = [line for line in done.stdout.splitlines() if line.startswith("sdpg-urkl-qwen3-4b ")]
    assert all(word in row for word in ("sdpg-urkl ", "Qwen3-4B", "400", "SDPG with the"))
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 100
    page = json.loads(castctl("recipes", "--json").stdout)
    assert [row["name"] for row in page["recipes"]] == sorted(RECIPES)
    [tiny] = [row for row in page["recipes"] if row["name"] == "tiny-bicc"]
    assert tiny == {
        "name": "tiny-bicc",
        "path": str(recipes_folder() / "tiny-bicc.yaml"),
        "method": "bicc",
        "model": "embedded",
        "data": "embedded",
        "steps": 50,
        "summary": "bicc-qwen3-4b.yaml on the embedded default.",
    }


def test_on_80_columns_recipes_are_paragraphs(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[\d;]*m", "", castctl("recipes").stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    at = lines.index("cast-qwen3-1.7b-with-answer")
    assert (
        lines[at + 1]
        == "    Ablation of cast-qwen3-1.7b.yaml (paper): the teacher sees the answer."
    )
    data = "BytedTsinghua-SIA/DAPO-Math-17k"
    assert lines[at + 2] == f"    cast, Qwen/Qwen3-1.7B, {data}, 300 steps"


def test_one_recipe_is_printed_as_it_resolves(castctl: Cli, here: Path) -> None:
    printed = castctl("recipes", "tiny-sdpg-fkl").stdout
    assert printed.startswith(f"# {recipes_folder() / 'tiny-sdpg-fkl.yaml'}\nseed: 0\n")
    assert load_recipe(write("again.yaml", printed)) == recipe_of("tiny-sdpg-fkl")
    write("mine.yaml", "extends: tiny-cast\nseed: 9")
    page = json.loads(castctl("recipes", "mine.yaml", "--json").stdout)
    assert (page["name"], page["path"]) == ("mine", "mine.yaml")
    assert page["recipe"]["seed"] == 9 and page["recipe"]["method"]["name"] == "cast"
    assert "nearest one is tiny-cast" in castctl("recipes", "tiny-csat", code=2).stderr


# What an ablation does

GAP = [0.3, -0.3, 2.0, -2.0, *[0.0] * 20]
"""Nats: two tokens that the ranges clip, two that flip, and noise that lifts no threshold."""


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A mixed group, one all correct and one all wrong, two completions each."""
    folder = tmp_path / "by-hand/step-00000"
    rewards, signals = [], []
    for prompt, outcomes in (("mixed", (1, 0)), ("right", (1, 1)), ("wrong", (0, 0))):
        for sample, reward in enumerate(outcomes):
            key = {"prompt_id": prompt, "sample": sample}
            verdict = "correct" if reward else "wrong"
            rewards.append({**key, "reward": float(reward), "verdict": verdict, "seconds": 0.0})
            policy = [-3.0] * len(GAP)
            teacher = [p + g for p, g in zip(policy, GAP, strict=True)]
            signals.append({**key, "policy_logprobs": policy, "teacher_logprobs": teacher})
    for stage, rows in (("rewards", rewards), ("signals", signals)):
        (folder / stage).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / stage / "part-00000.parquet")
    return folder


@pytest.mark.parametrize("name", ["", "mixed-only", "no-reversal", "symmetric-clip"])
def test_an_ablation_leaves_out_what_it_says(castctl: Cli, step: Path, name: str) -> None:
    recipe = "-".join(filter(None, ("cast-qwen3-1.7b", name)))
    castctl("shape", "--run", "by-hand", "--recipe", recipe)
    rows = pq.read_table(step / "advantages/part-00000.parquet").to_pylist()
    shaped = {(row["prompt_id"], row["sample"]): row for row in rows}
    bases = [shaped["right", 0]["base"], shaped["wrong", 0]["base"]]
    assert bases == ([0, 0] if name == "mixed-only" else [1, -1])
    right, wrong = shaped["mixed", 0], shaped["mixed", 1]
    flips = ([3], [2]) if name != "no-reversal" else ([], [])
    assert ([*np.flatnonzero(right["flipped"])], [*np.flatnonzero(wrong["flipped"])]) == flips
    praise, blame = (1.05, 0.8), (0.95, 1.2)
    if name == "symmetric-clip":
        praise, blame = (1.2, 0.8), (0.8, 1.2)
    assert right["weights"][:2] == pytest.approx(praise)
    assert wrong["weights"][:2] == pytest.approx(blame)
    assert right["advantages"][:2] == pytest.approx(praise, abs=1e-5)
    assert wrong["advantages"][:2] == pytest.approx([-b for b in blame], abs=1e-5)


# The tiny ones run

FEW = [
    "seed=1", "train.steps=2", "train.prompts_per_step=4", "train.part_size=2", "sampling.n=4",
    "sampling.max_tokens=48", "eval.k=1", "eval.limit=4", "eval.every=0", "verifier.workers=1",
]  # fmt: skip
"""Two quick steps; the seed gives groups of every kind."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *TINY])
def test_a_tiny_recipe_runs(here: Path, name: str) -> None:
    recipe = load_recipe(RECIPES[name], FEW)
    rows: list[dict[str, Any]] = []
    run = create_run(recipe, "run", name)
    trained = train(run, Silent(), rows.append)
    assert [row["step"] for row in rows] == [0, 1]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["groups_mixed"] > 0 and rows[0]["grad_norm"] > 0
    assert trained.after["k"] == 1
    signals = pa.concat_tables(run.step(step).table("signals") for step in (0, 1))
    for signal in recipe.method.needs:
        assert signals.column(signal).null_count < signals.num_rows, signal
