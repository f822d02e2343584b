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
from transformers import Qwen3Config

from castctl.errors import UserError
from castctl.explain import estimate
from castctl.explain.model_shape import model_shape
from castctl.methods import PRESETS
from castctl.progress import Silent
from castctl.recipe.files import find_recipe, known_recipes, read_source, recipes_folder
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import dump_recipe, load_recipe, read_recipe
from castctl.recipe.recipe import Recipe, alterations
from castctl.runs.run import create_run
from castctl.settings import settings_in
from castctl.stages.train.loop import train
from conftest import Cli

RECIPES = known_recipes()
LARGE = [name for name in RECIPES if name != "tiny"]
SPELLED = [f"{name}:{each}" for name in LARGE for each in read_source(name).variants] + LARGE

PUBLIC = {
    "name": "cast-public", "baseline.std": "sample", "baseline.eps": 1e-4,
    "shaping.tau_nats": 0.0, "shaping.flip_size": "other_side",
    "teacher.template": "{{ prompt }}\n\n[Student response]\n", "teacher.chat": False,
}  # fmt: skip
PORT = {
    "name": "cast-port", "shaping.lam": 0.5, "shaping.dead_band": (0.95, 1.05),
    "shaping.flip": "none", "teacher.every": 50,
}  # fmt: skip
"""What the two do otherwise than `cast`."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "cast-qwen3-1.7b": {
        "mixed-only": {"zero_variance.kind": "zero"},
        "no-reversal": {"shaping.flip": "none"},
        "with-answer": {"teacher.context": "answer"},
        "symmetric-clip": {
            "shaping.positive_range": (0.8, 1.2), "shaping.negative_range": (0.8, 1.2),
        },
        "rcc": {"baseline.kind": "rcc"},
        "public": PUBLIC,
        "port": PORT,
        "port-ema": {**PORT, "teacher.kind": "ema"},
    },
    "cast-public-qwen3-4b": {
        "mixed-only": {"zero_variance.kind": "zero"},
        "symmetric-clip": {
            "shaping.positive_range": (0.8, 1.2), "shaping.negative_range": (0.8, 1.2),
        },
        "with-solution": {
            "teacher.context": "solution_or_answer",
            "teacher.template": "{{ prompt }}\n\n[Reference solution]\n{{ solution or answer }}\n\n"
            "[Student response]\n",
        },
        "no-wrong-flips": {"shaping.flip": "correct"},
        "fixed-teacher": {"teacher.kind": "initial"},
        "decayed": {"shaping.decay_steps": 300, "zero_variance.decay_steps": 300},
    },
    "sdpg-qwen3-4b": {
        "ufkl": {"name": "sdpg-ufkl", "anchor.kind": "ufkl"},
        "fkl": {"anchor.kind": "fkl"},
        "rkl": {"anchor.kind": "rkl"},
        "no-anchor": {"anchor.kind": "none"},
        "no-distillation": {"distillation.kind": "none", "teacher.kind": "none"},
        "no-gate": {"distillation.gate": False},
        "dual-clip": {
            "surrogate.kind": "clip", "surrogate.clip_high": 0.28, "surrogate.dual_clip": 10,
        },
        "scheduled": {"distillation.warmup_steps": 50, "distillation.decay_steps": 100},
        "sampled-token": {"distillation.tokens": "sampled"},
    },
    "high-entropy-qwen3-1.7b": {"all-tokens": {"token_mask.mean_over": "all"}},
    "opd-qwen3-1.7b": {
        "sampled-token": {"distillation.tokens": "sampled"}, "jsd": {"distillation.kind": "jsd"},
    },
    "sdft-qwen3-1.7b": {"forward-kl": {"distillation.kind": "forward_kl"}},
    "gspo-qwen3-1.7b": {"token": {"surrogate.level": "token"}},
    "dppo-qwen3-1.7b": {"kl": {"surrogate.divergence": "kl"}},
    "opsd-qwen3-1.7b": {"point-wise-clip": {"distillation.clip": 0.05}},
    "rlsd-qwen3-1.7b": {"no-decay": {"shaping.decay_steps": 0}},
    "rlrt-qwen3-1.7b": {"answer": {"teacher.context": "solution_or_answer"}},
    "sdpo-qwen3-1.7b": {
        "reverse-kl": {
            "teacher.decay": 0.99, "distillation.kind": "reverse_kl", "distillation.top_k": 20,
        },
        "current": {"teacher.kind": "current"},
        "answer": {"teacher.context": "solution_or_answer"},
    },
    "oar-p-qwen3-1.7b": {"joint": {"shaping.score": "answer_joint"}},
    "bicc+rcc-qwen3-4b": {
        "bicc": {"name": "bicc", "baseline.kind": "mean_std"},
        "rcc": {"name": "rcc", "conditioning.kind": "none"},
    },
}  # fmt: skip
"""What each variant sets in the method."""

OPD_TINY = {"teacher.path": "embedded", "teacher.context": "solution_or_answer"}
SDFT_TINY = {"teacher.template": "{{ problem }} ({{ answer }})"}

TINY_CHANGES: dict[str, dict[str, Any]] = {
    **{f"opd-qwen3-1.7b{variant}": OPD_TINY for variant in ("", ":sampled-token", ":jsd")},
    **{f"sdft-qwen3-1.7b{variant}": SDFT_TINY for variant in ("", ":forward-kl")},
    "oar-p-qwen3-1.7b": {"shaping.budget": 16},
    "oar-p-qwen3-1.7b:joint": {"shaping.budget": 16},
    "sdpg-qwen3-4b:scheduled": {
        "distillation.warmup_steps": 5, "distillation.decay_steps": 10,
    },
}  # fmt: skip
"""Where the method is not quite the same on the embedded default."""


def differences(one: Recipe, base: Recipe) -> dict[str, Any]:
    return {each.key: each.value for each in settings_in(one, base) if each.changed}


def in_method(changes: dict[str, Any]) -> dict[str, Any]:
    return {f"method.{key}": value for key, value in changes.items()}


# What there is


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_train(name: str) -> None:
    warned = load_recipe(name).check_training()
    by_sign = name.startswith("cast-public")
    assert ["the verdict decides no direction" in line for line in warned] == [True] * by_sign


def test_every_method_has_a_recipe() -> None:
    assert {load_recipe(name).method.name for name in SPELLED} == set(PRESETS)


@pytest.mark.parametrize("name", SPELLED)
def test_tiny_is_the_method_on_the_embedded_default(name: str) -> None:
    tiny, small = load_recipe("tiny"), load_recipe(name, tiny=True)
    assert small.model_copy(update={"method": tiny.method}) == tiny
    changed = {
        f"method.{each.key}": each.value
        for each in settings_in(small.method, load_recipe(name).method)
        if each.changed
    }
    assert changed == in_method(TINY_CHANGES.get(name, {}))


def test_the_embedded_default_is_its_own_twin() -> None:
    tiny = load_recipe("tiny")
    assert load_recipe("tiny", tiny=True) == load_recipe(tiny=True) == tiny


def test_every_variant_is_known_here() -> None:
    listed = {
        f"{name}:{each.of.variant}"
        for name, path in RECIPES.items()
        for each in read_source(name).variants.values()
        if each.of.file == path
    }
    assert listed == {f"{base}:{name}" for base, names in VARIANTS.items() for name in names}


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in VARIANTS.items() for name in names]
)
def test_a_variant_is_the_settings_away_that_it_says(base: str, name: str) -> None:
    changed = differences(load_recipe(f"{base}:{name}"), load_recipe(base))
    assert changed == in_method(VARIANTS[base][name])


@pytest.mark.parametrize("size", ["1.7b", "4b", "8b"])
def test_sizes_differ_in_model_and_rows_alone(size: str) -> None:
    public = load_recipe("cast-public-qwen3-4b")
    assert differences(public, load_recipe("cast-qwen3-4b:public")) == {}
    for method in ("cast", "opsd", "grpo+opsd"):
        recipe = load_recipe(f"{method}-qwen3-{size}")
        assert recipe.model.path == f"Qwen/Qwen3-{size.upper()}"
        smallest = load_recipe(f"{method}-qwen3-1.7b")
        assert differences(recipe, smallest).keys() <= {"model.path", "sampling.max_rows"}


def test_the_papers_settings() -> None:
    cast = load_recipe("cast-qwen3-4b")
    assert cast.data.path == "BytedTsinghua-SIA/DAPO-Math-17k"
    assert (cast.train.steps, cast.eval.task, cast.eval.k) == (300, "aime24", 16)
    assert (cast.train.prompts_per_step, cast.sampling.n) == (2, 8)
    assert (cast.sampling.temperature, cast.sampling.max_tokens) == (0.7, 3072)
    assert cast.optimizer.warmup_of(300) == 15 and cast.optimizer.end_lr == 1e-7
    assert cast.verifier.box_within_last == 0.05 and cast.method.overlong.kind == "mask"
    assert not alterations(cast.sampling.model_dump()), "nothing trains on that"
    for anchor, name in (("urkl", "sdpg-qwen3-4b"), ("ufkl", "sdpg-qwen3-4b:ufkl")):
        sdpg = load_recipe(name)
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
        if not re.search(r"(^|\.)(about|extends|method\.name)$", key):
            assert re.search(r"  # (paper|public scripts|ours)\b", lines[number]), lines[number]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_its_variants_say_what_they_are(name: str) -> None:
    source = read_source(name)
    assert RECIPES[name].read_text().startswith("about: ")
    for each in (source.parts[-1], *source.variants.values()):
        assert 5 < len(each.about) < 60, each.of


PUBLISHED = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
}
"""What the sizes of Qwen3 differ in, as published."""


def test_a_recipe_says_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one GPU of 80 GB holds those whose papers train adapters."""
    for size, shape in PUBLISHED.items():
        heads = 16 if size == "1.7B" else 32
        Qwen3Config(
            **shape, vocab_size=151_936, num_attention_heads=heads, num_key_value_heads=8,
            head_dim=128, tie_word_embeddings=size != "8B", max_position_embeddings=40_960,
        ).save_pretrained(tmp_path / size)  # fmt: skip
    shapes: dict[str, Any] = {}

    def shape_once(settings: ModelSettings) -> Any:
        key = f"{settings.path} {settings.lora}"
        if key not in shapes:
            shapes[key] = model_shape(settings)
        return shapes[key]

    monkeypatch.setattr(estimate, "model_shape", shape_once)
    for name in LARGE:
        recipe = load_recipe(name)
        folder = tmp_path / recipe.model.path.rpartition("-")[2]
        model = recipe.model.model_copy(update={"path": str(folder), "device": "cuda"})
        method, teacher = recipe.method, recipe.method.teacher
        if teacher.path is not None:
            own = str(tmp_path / teacher.path.rpartition("-")[2])
            taught = {"teacher": teacher.model_copy(update={"path": own})}
            method = method.model_copy(update=taught)
        update = {"model": model, "method": method}
        memory = estimate.estimate_memory(recipe.model_copy(update=update), 80)
        (fit,) = memory.fits
        said = re.search(r"It takes about (\d+) GiB of one GPU", RECIPES[name].read_text())
        assert said and int(said[1]) == round(fit.needed / 2**30), name
        adapts = re.match(r"(cast|opsd|grpo\+opsd)-", name) is not None
        assert recipe.model.adapts == adapts and fit.fits >= adapts


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
    for name in ("rlsd-qwen3-1.7b", "rlsd-qwen3-1.7b.yaml"):
        recipe, origins = read_recipe(write("mine.yaml", f"extends: {name}\nseed: 5"))
        assert recipe == load_recipe("rlsd-qwen3-1.7b").model_copy(update={"seed": 5})
        assert origins["model.path"] == "grpo-qwen3-1.7b.yaml"
        assert origins["method.name"] == "rlsd-qwen3-1.7b.yaml" and origins["seed"] == "mine.yaml"
    write("tiny.yaml", "extends: tiny\nseed: 6")  # castctl's, not itself
    assert load_recipe("tiny.yaml") == load_recipe(recipes_folder() / "tiny.yaml", ["seed=6"])


def test_a_variant_is_laid_over_its_file(here: Path) -> None:
    mine = write(
        "mine.yaml",
        "extends: cast-qwen3-1.7b:no-reversal\nseed: 1\ntrain: {steps: 9}\nvariants:\n"
        "  fast: {about: in a  hurry, seed: 2, train: {steps: 3}, tiny: {sampling: {n: 4}}}\n"
        "  other: {method: {name: opsd}}\n"
        "  no-reversal: {seed: 3}\n",
    )
    recipe, origins = read_recipe(f"{mine}:fast")
    assert (recipe.seed, recipe.train.steps, recipe.sampling.n) == (2, 3, 8)
    assert origins["train.steps"] == "mine.yaml:fast"
    assert origins["method.shaping.flip"] == "cast-qwen3-1.7b.yaml:no-reversal"
    assert origins["method.name"] == "cast-qwen3-1.7b.yaml"
    assert load_recipe("mine:other").method == load_recipe(method={"name": "opsd"}).method
    assert load_recipe("mine:no-reversal").seed == 3
    inherited = load_recipe("mine:mixed-only")
    assert inherited.method.zero_variance.kind == "zero" and inherited.seed == 1
    assert list(read_source(mine).variants)[:3] == ["fast", "other", "no-reversal"]
    assert read_source("mine:fast").parts[-1].about == "in a hurry"

    tiny, origins = read_recipe("mine:fast", tiny=True)
    plain = load_recipe("cast-qwen3-1.7b:no-reversal", tiny=True)
    assert tiny == plain.model_copy(update={"sampling": tiny.sampling}) and tiny.sampling.n == 4
    assert origins["sampling.n"] == "mine.yaml:fast" and origins["optimizer.lr"] == "tiny.yaml"


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
    ({"a.yaml": "extends: csat.yaml"}, "a.yaml extends csat.yaml, and there is no such"),
    ({"a.yaml": "extends: csat-qwen3-4b"}, "the nearest one is cast-qwen3-4b;"),
    ({"a.yaml": "extends: tiny-cast"}, "a.yaml: recipe tiny-cast is now cast-qwen3-1.7b --tiny;"),
    ({"a.yaml": "extends: cast-qwen3-4b:x"}, "recipe cast-qwen3-4b has no variant 'x'; there are"),
    ({"a.yaml": "variants: [x]"}, "a.yaml: variants is a mapping of names and settings"),
    ({"a.yaml": "variants: {x: [y]}"}, "a.yaml:x: a variant is a mapping of sections"),
    ({"a.yaml": "variants: {x y: {}}"}, "a.yaml: a variant cannot be called 'x y'"),
    ({"a.yaml": "variants: {4: {}}"}, "a.yaml: a variant cannot be called 4"),
    ({"a.yaml": "about: [x]"}, "a.yaml: about is a line of text"),
    ({"a.yaml": "tiny: x"}, "a.yaml: tiny is a mapping of sections"),
    ({"a.yaml": "extends: zzz"}, "castctl recipes lists those there are"),
    ({"a.yaml": f"extends: {'z' * 300}"}, "cannot read recipe"),
    (
        {"a.yaml": "extends: b.yaml:x", "b.yaml": "variants: {x: {sampling: {m: 3}}}"},
        "b.yaml:x: unknown key sampling.m",
    ),
    (
        {"a.yaml": "extends: a.yaml:x\nvariants: {x: {}}"},
        "a.yaml extends a.yaml, which rests on it",
    ),
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
    name, own = "rloo-qwen3-1.7b", recipes_folder() / "rloo-qwen3-1.7b.yaml"
    assert find_recipe(name).file == find_recipe(f"{name}.yaml").file == own
    Path(name).mkdir()  # a folder is no recipe
    assert find_recipe(name).file == own
    write(f"{name}.yaml", "seed: 7")
    assert load_recipe(name).seed == load_recipe(f"{name}.yaml").seed == 7


def test_a_file_whose_name_has_a_colon_wins_over_a_variant(here: Path) -> None:
    write("a.yaml", "variants: {b: {seed: 1}, 'c': {seed: 2}}")
    assert [load_recipe(name).seed for name in ("a:b", "a.yaml:b", "./a:c")] == [1, 1, 2]
    write("a:b", "seed: 3")
    write("a:c.yaml", "seed: 4\nvariants: {d: {seed: 5}}")
    assert [load_recipe(name).seed for name in ("a:b", "a:c", "a:c:d")] == [3, 4, 5]


UNKNOWN = {
    "csat-qwen3-4b": "no recipe at csat-qwen3-4b; the nearest one is cast-qwen3-4b;",
    "cast-qwen3-1.7:mixed-only": "the nearest one is cast-qwen3-1.7b:mixed-only;",
    "qqq": "castctl recipes lists those there are",
    "no/tiny.yaml": "the nearest one is tiny;",
    "cast-qwen3-1.7b:mixed-onyl": "recipe cast-qwen3-1.7b has no variant 'mixed-onyl'; the nearest "
    "one is mixed-only; there are mixed-only, no-reversal, with-answer, symmetric-clip, rcc",
    "cast-qwen3-1.7b:": "has no variant ''; there are mixed-only,",
    "cast-qwen3-1.7b:rcc:mixed-only": "has no variant 'rcc:mixed-only'",
    "grpo-qwen3-1.7b:x": "recipe grpo-qwen3-1.7b has no variants; name it without :x",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_refused_in_a_line(here: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(name)
    assert UNKNOWN[name] in str(refused.value) and "\n" not in str(refused.value)


FORMER = {
    "qwen3-dapo": "grpo-qwen3-1.7b",
    "bicc-qwen3-4b": "bicc+rcc-qwen3-4b:bicc",
    "cast+rcc-qwen3-1.7b": "cast-qwen3-1.7b:rcc",
    "cast-qwen3-1.7b-mixed-only": "cast-qwen3-1.7b:mixed-only",
    "sdpg-qwen3-4b-fkl": "sdpg-qwen3-4b:fkl",
    "sdpg-urkl-qwen3-4b": "sdpg-qwen3-4b",
    "recipes/sdpg-ufkl-qwen3-4b.yaml": "sdpg-qwen3-4b:ufkl",
    "tiny-cast.yaml": "cast-qwen3-1.7b --tiny",
    "tiny-cast-mixed-only": "cast-qwen3-1.7b:mixed-only --tiny",
    "tiny-cast+rcc": "cast-qwen3-1.7b:rcc --tiny",
    "tiny-bicc+rcc": "bicc+rcc-qwen3-4b --tiny",
    "tiny-bicc": "bicc+rcc-qwen3-4b:bicc --tiny",
    "tiny-rcc": "bicc+rcc-qwen3-4b:rcc --tiny",
    "tiny-grpo+opsd": "grpo+opsd-qwen3-1.7b --tiny",
    "tiny-oar-p-joint": "oar-p-qwen3-1.7b:joint --tiny",
    "tiny-sdpg-urkl": "sdpg-qwen3-4b --tiny",
    "tiny-sdpg-ufkl": "sdpg-qwen3-4b:ufkl --tiny",
    "tiny-sdpg-no-gate": "sdpg-qwen3-4b:no-gate --tiny",
}


@pytest.mark.parametrize("name", FORMER)
def test_a_former_name_says_the_one_of_today(here: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(name)
    former = Path(name).name.removesuffix(".yaml")
    assert str(refused.value) == f"recipe {former} is now {FORMER[name]}"
    now, tiny = FORMER[name].removesuffix(" --tiny"), FORMER[name].endswith(" --tiny")
    assert load_recipe(now, tiny=tiny).method.name in PRESETS


def test_commands_take_a_recipe_by_its_name(castctl: Cli) -> None:
    dry = castctl("train", "cast-qwen3-1.7b:mixed-only", "--tiny", "--dry-run").stdout
    assert "cast trains model embedded" in dry and "variants" not in dry
    listed = castctl("explain", "rlsd-qwen3-1.7b:no-decay", "--tiny", "--json").stdout
    settings = {each["key"]: each for each in json.loads(listed)["settings"]}
    decay = settings["method.shaping.decay_steps"]
    assert (decay["value"], decay["origin"]) == (0, "rlsd-qwen3-1.7b.yaml:no-decay")
    assert settings["method.name"]["origin"] == "rlsd-qwen3-1.7b.yaml"
    assert settings["optimizer.lr"]["origin"] == "tiny.yaml"
    [line] = castctl("train", "--quiet", "csat-qwen3-4b", code=2).stderr.splitlines()
    assert "no recipe at csat-qwen3-4b; the nearest one is cast-qwen3-4b" in line
    [line] = castctl("compare", "tiny-cast", "tiny", code=2).stderr.splitlines()
    assert line == "castctl: recipe tiny-cast is now cast-qwen3-1.7b --tiny"


def test_tiny_names_model_and_data_itself(castctl: Cli) -> None:
    for command in ("train", "rollout", "explain"):
        for option in ("--model", "--data"):
            [line] = castctl(command, "--tiny", option, "x", code=2).stderr.splitlines()
            assert line == f"castctl: --tiny is the embedded model and data; leave {option} out"


# castctl recipes


def test_recipes_are_listed(castctl: Cli) -> None:
    page = json.loads(castctl("recipes", "--json").stdout)
    assert [row["name"] for row in page["recipes"]] == sorted(RECIPES)
    [row] = [row for row in page["recipes"] if row["name"] == "oar-p-qwen3-1.7b"]
    path = str(recipes_folder() / "oar-p-qwen3-1.7b.yaml")
    about = "the score is the answer's joint log-prob (paper)"
    assert row == {
        "name": "oar-p-qwen3-1.7b",
        "path": path,
        "about": "OAR-P, arXiv 2601.07408",
        "method": "oar-p",
        "model": "Qwen/Qwen3-1.7B",
        "data": "BytedTsinghua-SIA/DAPO-Math-17k",
        "steps": 300,
        "variants": [{"name": "joint", "about": about, "path": path}],
    }


def test_the_list_fits_80_columns_and_breaks_no_word(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[\d;]*m", "", castctl("recipes").stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80 and len(lines) < len(RECIPES) + 25
    assert {*RECIPES} <= {*shown.split()}
    variants = {f":{name}" for path in RECIPES.values() for name in read_source(path).variants}
    assert variants == {word for word in shown.split() if word[0] == ":"}
    at = next(n for n, line in enumerate(lines) if line.startswith("cast-qwen3-4b "))
    row = " ".join(" ".join(lines[at : at + 2]).split())
    assert "those of cast-qwen3-1.7b" in row


def test_one_recipe_is_printed_as_it_resolves(castctl: Cli, here: Path) -> None:
    printed = castctl("recipes", "sdpg-qwen3-4b").stdout
    path = recipes_folder() / "sdpg-qwen3-4b.yaml"
    assert printed.startswith(f"# {path}\n# SDPG, arXiv 2606.04036\n# its variants:\n")
    assert "\n#   :fkl              the anchor exp(-u) (paper's code)\n" in printed
    assert load_recipe(write("again.yaml", printed)) == load_recipe("sdpg-qwen3-4b")

    printed = castctl("recipes", "sdpg-qwen3-4b:fkl", "--tiny").stdout
    about = "the anchor exp(-u) (paper's code)"
    assert printed.startswith(f"# {path}:fkl --tiny\n# {about}\nseed: 0\n")
    again = load_recipe(write("again.yaml", printed))
    assert again == load_recipe("sdpg-qwen3-4b:fkl", tiny=True)

    write("mine.yaml", "extends: cast-qwen3-1.7b\nseed: 9\nvariants: {fast: {seed: 3}}")
    page = json.loads(castctl("recipes", "mine.yaml:fast", "--json").stdout)
    assert (page["name"], page["path"], page["about"]) == ("mine:fast", "mine.yaml", "")
    assert [each["name"] for each in page["variants"]][:2] == ["fast", "mixed-only"]
    assert page["recipe"]["seed"] == 3 and page["recipe"]["method"]["name"] == "cast"
    assert "name it" in castctl("recipes", "--tiny", code=2).stderr


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
    recipe = ":".join(filter(None, ("cast-qwen3-1.7b", name)))
    castctl("shape", "--run", "by-hand", "--recipe", recipe, "--set", "method.overlong.kind=none")
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


# Each method runs

FEW = [
    "seed=1", "train.steps=1", "train.prompts_per_step=4", "train.part_size=2", "sampling.n=4",
    "sampling.max_tokens=48", "eval.k=1", "eval.limit=4", "eval.every=0", "verifier.workers=1",
    "data.limit=128",
]  # fmt: skip
"""A quick step; the seed gives groups of every kind."""

ONE_EACH = {load_recipe(name).method.name: name for name in SPELLED}
"""A recipe of each method."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH.values())
def test_a_recipe_runs_on_the_embedded_default(here: Path, name: str) -> None:
    recipe = load_recipe(name, FEW, tiny=True)
    rows: list[dict[str, Any]] = []
    run = create_run(recipe, "run", "test")
    trained = train(run, Silent(), rows.append)
    assert [row["step"] for row in rows] == [0]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["groups_mixed"] > 0 and rows[0]["grad_norm"] > 0
    assert trained.after["k"] == 1
    signals = run.step(0).table("signals")
    for signal in recipe.method.needs:
        assert signals.column(signal).null_count < signals.num_rows, signal
