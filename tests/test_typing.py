"""What people type: names of other tools, a setting as an option, a new run's name, `init`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from castctl.methods import PRESETS
from castctl.recipe.files import known_recipes
from castctl.recipe.names import ELSEWHERE, IN_EVALUATIONS, known_keys, meanings, plain
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.starter import starter
from conftest import Cli


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(castctl: Cli, *arguments: str) -> dict[str, object]:
    """The settings that these arguments give a recipe, by key."""
    told = castctl("explain", *arguments, "--json").stdout
    return {each["key"]: each["value"] for each in json.loads(told)["settings"]}


# Names


def test_the_tables_name_settings_that_there_are() -> None:
    keys, sections = known_keys(Recipe), set(Recipe.model_fields)
    for name, meant in (ELSEWHERE | IN_EVALUATIONS).items():
        assert name == plain(name)
        for each in meant:
            key = re.split("[ =]", each)[0]
            assert key in keys or key.partition(".")[0] not in sections, each


def test_a_last_part_means_every_setting_that_has_it() -> None:
    for key in known_keys(Recipe):
        if "." in key:
            assert key in meanings(Recipe, plain(key))
    assert meanings(Recipe, "lr") == ["optimizer.lr"]
    assert meanings(Recipe, "actor.optim.LR") == ["optimizer.lr"]
    assert meanings(Recipe, "batch-size") == ["train.prompts_per_step"]
    assert meanings(Recipe, "batch-size", evaluation=True) == ["sampling.max_rows"]
    assert meanings(Recipe, "nothing") == []


def test_settings_are_options_by_any_name_that_means_one(castctl: Cli) -> None:
    options = ["--lr", "2e-5", "--batch-size=4", "--num_generations", "6", "--epochs", "2"]
    done = castctl("train", "grpo", *options, "--max_tokens", "12", "--train.part_size", "3",
                   "--dry-run")  # fmt: skip
    assert "castctl: --batch-size is train.prompts_per_step here" in done.stderr
    assert "--lr is" not in done.stderr
    recipe = changed(castctl, "grpo", *options, "--max_completion_length", "12")
    assert recipe["optimizer.lr"] == 2e-5 and recipe["train.epochs"] == 2
    assert recipe["train.prompts_per_step"] == 4 and recipe["sampling.n"] == 6
    assert recipe["sampling.max_tokens"] == 12


ANSWERED = [
    ("train --output_dir x", "castctl train has no option --output_dir; write --run PATH"),
    ("train --config x", "castctl train FILE or --recipe FILE"),
    ("train --beta 1", "--set method.anchor.coefficient (KL to the initial policy)"),
    ("train --top-p 1", "write --set sampling.top_p=VALUE or --set eval.top_p=VALUE"),
    ("rollout --presence-penalty 1", "sampling.presence_penalty=VALUE or --set eval.presence_pe"),
    ("train --lr", "--lr needs a value, as in --set optimizer.lr=VALUE"),
    ("train --lr --quiet", "--lr needs a value"),
    ("train --lr abc", "optimizer.lr: input should be a valid number"),
    ("train --nonsense 3", "No such option: --nonsense"),
    ("report --lr 3", "castctl report has no option --lr; see its --help"),
    ("eval --tasks x", "write castctl eval TASK"),
    ("train --set lr=1e-5", "unknown key lr; write optimizer.lr"),
    ("train --set sampling.num_generations=4", "sampling.num_generations; write sampling.n"),
    ("train --set method.kl_coef=1", "method.kl_coef; write method.anchor.coefficient"),
    ("train --importance_cap 2", "write --set method.correction.high=VALUE or --set method.correc"),
    ("train --set vllm_importance_sampling_cap=3", "write method.correction.high"),
    ("train --vllm_importance_sampling_mode x", "--set method.correction.level=VALUE"),
    ("train --set algorithm.rollout_correction.rollout_is_threshold=2", "method.correction.high"),
    ("train --set top_p=1", "unknown key top_p; write sampling.top_p or eval.top_p"),
    ("train --set actor_rollout_ref.rollout.n=8", "actor_rollout_ref.rollout.n; write sampling.n"),
    ("train grpo --method cast", "no recipe at grpo"),
    ("help nonsense", "No such command 'nonsense'"),
    ("compare tiny", "tiny has nothing to be compared with; name a second"),
    ("init . ", ". is a folder; name a file in it"),
    ("init --lr 0", "optimizer.lr: input should be greater than 0"),
    ("init --method nonsense", "no method 'nonsense'"),
    ("init -n 3", "No such option: -n"),
]


@pytest.mark.parametrize(("typed", "words"), ANSWERED)
def test_what_cannot_be_meant_is_answered_in_a_line(castctl: Cli, typed: str, words: str) -> None:
    last = castctl(*typed.split(), code=2).stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("castctl: ") and words in last
    assert not list(Path().iterdir())


def test_all_wrong_keys_are_named_at_once(castctl: Cli) -> None:
    Path("r.yaml").write_text("lr: 1\nsampling: {n: 0, num_generations: 3}\nmethod: {eps: 1}\n")
    last = castctl("train", "r.yaml", code=2).stderr.splitlines()[-1]
    assert "unknown key lr; write optimizer.lr" in last
    assert "sampling.n: input should be greater than or equal to 1, got 0" in last
    assert "unknown key sampling.num_generations; write sampling.n" in last
    assert "unknown key method.eps; write method.baseline.eps" in last
    Path("r.yaml").write_text("".join(f"wrong{i}x: 1\n" for i in range(20)))
    last = castctl("train", "r.yaml", code=2).stderr.splitlines()[-1]
    assert last.count("unknown key") == 8 and last.endswith("; and 12 more")


def test_version_and_help(castctl: Cli) -> None:
    assert castctl("-V").stdout == castctl("--version").stdout
    assert castctl("help").stdout == castctl("--help").stdout
    assert (
        castctl("help", "init").stdout.splitlines()[3:]
        == (castctl("init", "--help").stdout.splitlines()[3:])
    )


# A run's name

QUICK = ("-n", "2", "--max-tokens", "8", "--set", "train.prompts_per_step=1", "--limit", "1",
         "--set", "eval.limit=1", "--set", "eval.k=1")  # fmt: skip


@pytest.mark.slow
def test_a_new_name_begins_a_run_where_a_command_can_begin_one(castctl: Cli) -> None:
    castctl("rollout", "--run", "rolled", *QUICK)
    castctl("eval", "--run", "judged", "-k", "1", "--limit", "1", "--max-tokens", "8")
    castctl("train", "--run", "trained", "--steps", "1", *QUICK)
    assert {each.name for each in Path("runs").iterdir()} == {"rolled", "judged", "trained"}
    castctl("rollout", "--run", "rolled")  # the run that is there
    castctl("eval", "--run", "trained", "--limit", "1", "-k", "1")
    taken = castctl("train", "--run", "trained", code=2).stderr
    assert "run runs/trained is there already; name another, or add --resume" in taken
    own = castctl("eval", "--run", "trained", "--model", "embedded", code=2).stderr
    assert "run runs/trained has weights of its own" in own
    for command in ("score --run", "shape --run", "train --resume --run", "train --from",
                    "report", "inspect", "diagnose self-gaps"):  # fmt: skip
        refused = castctl(*command.split(), "roled", code=2).stderr
        assert "no run at runs/roled; the nearest one is rolled, and castctl train --run" in refused
    assert {each.name for each in Path("runs").iterdir()} == {"rolled", "judged", "trained"}


# A recipe to start from


@pytest.mark.parametrize("full", [False, True])
def test_a_recipe_to_start_from_resolves_to_what_was_asked(full: bool) -> None:
    asked = [Recipe(), *(load_recipe(method={"name": name}) for name in PRESETS)]
    asked += map(load_recipe, known_recipes())
    odd = ["method.shaping.kind=rlsd", "data.path='a: b'",
           r'data.system_prompt="\n # \u2028 \U0001F600"',
           r'sampling.stop=["\n\nQ: ", "\u00e9", "# \U0001F600\t"]',
           "data.chat_template_options={a: {b: [1]}}"]  # fmt: skip
    asked.append(load_recipe("cast-qwen3-1.7b:rcc", odd))
    for recipe in asked:
        text = starter(recipe, full=full)
        assert Recipe.model_validate(yaml.safe_load(text)) == recipe
        switched_on = re.sub(r"(?m)^#((?:  )*\w+:)", r"\1", text)
        assert Recipe.model_validate(yaml.safe_load(switched_on)) == recipe
        assert full == (switched_on != text)


def test_init_writes_a_recipe_that_explain_reads(castctl: Cli) -> None:
    done = castctl("init", "--method", "cast", "--set", "method.shaping.lam=0.5", "--lr", "2e-5")
    assert "recipe: recipe.yaml" in done.stdout
    written = Path("recipe.yaml").read_text()
    assert "  # Peak learning rate of AdamW (ours; usual for full-weight RLVR).\n  lr: " in written
    recipe = load_recipe("recipe.yaml")
    options = ["method.shaping.lam=0.5", "optimizer.lr=2.0e-5"]
    assert recipe == load_recipe("tiny", options, method={"name": "cast"})
    assert "is there already; name another file, or add --overwrite" in (
        castctl("init", code=2).stderr
    )
    assert Path("recipe.yaml").read_text() == written
    castctl("init", "--overwrite", "--model", "Qwen/Qwen3-4B", "--data", "a.jsonl", "--full")
    recipe = load_recipe("recipe.yaml")
    assert recipe == load_recipe(model={"path": "Qwen/Qwen3-4B"}, data={"path": "a.jsonl"})


def test_a_recipe_that_stands_alone_is_told_its_option(castctl: Cli) -> None:
    for command in ("rollout", "shape"):
        said = castctl(command, "st.yaml", code=2).stderr.splitlines()[-1]
        assert f"castctl {command} takes no st.yaml; name a recipe with --recipe" in said
