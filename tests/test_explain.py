"""Where settings come from, what a recipe will do, and whether the memory it says is right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import BaseModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from castctl import embedded
from castctl.engines.cache import cache_in_blocks
from castctl.engines.transformers_engine import cache_argument
from castctl.explain.estimate import estimate_memory
from castctl.explain.explanation import work_of
from castctl.explain.footprint import (
    FLOAT32,
    Arithmetic,
    PackedSize,
    activation_bytes,
    cache_bytes,
)
from castctl.explain.model_shape import shape_of
from castctl.methods import MethodSettings
from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_tokenizer
from castctl.models.packing import pack
from castctl.models.policy import load_policy
from castctl.models.weights import Weights
from castctl.recipe.choices import choice_of
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import load_recipe, read_recipe
from castctl.recipe.recipe import Recipe
from castctl.settings import settings_in
from castctl.stages.train.schedule import evaluates_after, saves_after
from conftest import Cli

RECIPE = """
model: {path: embedded}
data: {path: embedded, prompt_template: "[red]{{ problem }}[/red]", max_prompt_tokens: 64}
sampling: {n: 4, max_tokens: 32}
method: {name: cast, shaping: {kappa_wrong: 0.25}}
train: {steps: 4, prompts_per_step: 6, epochs: 2, minibatches: 3, checkpoint_every: 3}
eval: {every: 2, k: 3}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return "mine.yaml"


def manifest(tmp_path: Path, run: str) -> dict[str, Any]:
    return json.loads((tmp_path / f"runs/{run}/manifest.json").read_text())


def explained(castctl: Cli, *arguments: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    return json.loads(castctl("explain", "--json", *arguments).stdout, parse_constant=refuse)


# Origins


def test_each_layer_is_named_for_what_it_set_and_defaults_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "sampling: {n: 4, max_tokens: 2048, temperature: 0.9}\n"
        "method: {name: cast, surrogate: {clip_low: 0.1}}\n"
        "data: {chat_template_options: {enable_thinking: false}}\n"
    )
    _, origins = read_recipe(
        path,
        ["sampling.max_tokens=64", "method.shaping.lam=0.5", "sampling.n=4"],
        sampling={"n": 4, "temperature": 0.8},
        seed=3,
    )
    assert origins == {
        "seed": "option",
        "data.chat_template_options": str(path),
        "sampling.n": str(path),  # the option and --set say the same
        "sampling.temperature": "option",
        "sampling.max_tokens": "--set",
        "method.name": str(path),
        "method.zero_variance.kind": "preset cast",
        "method.shaping.kind": "preset cast",
        "method.shaping.lam": "--set",
        "method.teacher.kind": "preset cast",
        "method.surrogate.clip_low": str(path),
        "method.surrogate.clip_high": "preset cast",
        "method.surrogate.aggregation": "preset cast",
    }


def test_the_default_recipe_has_no_origins() -> None:
    assert read_recipe() == (Recipe(), {})


def test_what_another_method_or_kind_swept_away_is_not_credited(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: {surrogate: {clip_high: 0.28, clip_low: 0.1}, teacher: {kind: ema}}")
    recipe, origins = read_recipe(path, method={"name": "cast"})
    assert recipe.method.surrogate.clip_low == 0.2
    assert "method.surrogate.clip_low" not in origins
    assert origins["method.surrogate.clip_high"] == "preset cast"
    assert origins["method.teacher.kind"] == "preset cast"

    _, origins = read_recipe(path, ["method.teacher.kind=initial"])
    assert origins["method.teacher.kind"] == "--set"
    assert origins["method.surrogate.clip_high"] == str(path)


@pytest.mark.slow
def test_a_runs_manifest_keeps_the_origins_it_began_with(castctl: Cli, tmp_path: Path) -> None:
    small = ("--limit", "2", "--set", "train.prompts_per_step=2", "--set", "train.steps=1")
    fewer = ("-n", "2", "--max-tokens", "8", "--set", "eval.limit=2", "--set", "eval.k=1")
    castctl("rollout", "--run", "r", "--method", "cast", *small, *fewer)
    origins = manifest(tmp_path, "r")["origins"]
    assert origins["sampling.n"] == origins["sampling.max_tokens"] == "option"
    assert origins["train.prompts_per_step"] == origins["train.steps"] == "--set"
    assert origins["optimizer.lr"] == "tiny.yaml"
    assert origins["method.teacher.kind"] == "preset cast"
    assert "sampling.temperature" not in origins and "model.path" not in origins

    castctl("score", "--run", "r", "--set", "verifier.workers=1", "--method", "grpo")
    assert manifest(tmp_path, "r")["origins"] == origins
    castctl("train", "--resume", "--run", "r")
    assert manifest(tmp_path, "r")["origins"] == origins
    assert manifest(tmp_path, "r")["state"] == "finished"


def test_a_recipe_is_named_as_it_was_given(castctl: Cli, tmp_path: Path, recipe: str) -> None:
    small = ("--set", "train.prompts_per_step=1", "-n", "1", "--max-tokens", "4")
    castctl("rollout", "--run", "r", "--recipe", f"./{recipe}", *small)
    origins = manifest(tmp_path, "r")["origins"]
    assert origins["train.epochs"] == recipe and origins["sampling.n"] == "option"


# Every setting and whose choice it is


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The section and all below it, every member of a union included."""
    yield section
    for field in section.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from sections(inner)


def test_every_setting_is_described() -> None:
    for setting in settings_in(Recipe(), Recipe()):
        assert setting.meaning, setting.key
    for section in sections(MethodSettings):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize("method", ["grpo", "cast"])
def test_every_number_of_a_method_is_somebodys_choice(method: str) -> None:
    recipe, origins = read_recipe(method={"name": method})
    for setting in settings_in(recipe.method, Recipe().method, "method."):
        if isinstance(setting.value, int | float | tuple):
            assert choice_of(setting, origins.get(setting.key)), setting.key


CHOICES = {
    "sampling.n": None,
    "optimizer.lr": "ours",
    "train.steps": "paper",
    "train.prompts_per_step": None,
    "method.name": None,
    "method.baseline.kind": "paper",
    "method.baseline.eps": "ours",
    "method.zero_variance.kind": "paper",
    "method.zero_variance.b_wrong": "paper",
    "method.shaping.kind": "paper",
    "method.shaping.positive_range": "paper",
    "method.shaping.lam": "ours",
    "method.shaping.tau_floor": "ours",
    "method.shaping.tau_nats": None,
    "method.shaping.kappa_wrong": None,
    "method.shaping.clamp": "paper",
    "method.teacher.kind": "ours",
    "method.teacher.every": "ours",
    "method.surrogate.clip_low": "paper",
    "method.surrogate.clip_high": "ours",
    "method.surrogate.aggregation": "ours",
    "method.surrogate.dual_clip": None,
}
"""Under CAST, with `train.prompts_per_step` and `method.shaping.kappa_wrong` set by the user."""


def test_whose_choice_a_value_is() -> None:
    recipe, origins = read_recipe(
        None,
        ["train.prompts_per_step=8", "method.shaping.kappa_wrong=0.25"],
        method={"name": "cast"},
    )
    settings = {setting.key: setting for setting in settings_in(recipe, Recipe())}
    found = {key: choice_of(settings[key], origins.get(key)) for key in CHOICES}
    assert found == CHOICES
    grpo = {setting.key: setting for setting in settings_in(Recipe(), Recipe())}
    assert choice_of(grpo["method.teacher.kind"], None) is None
    assert choice_of(grpo["method.surrogate.aggregation"], None) == "paper"


# What a recipe does


def test_work_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    work = work_of(load_recipe(path))
    assert (work.prompts, work.samples, work.completions, work.tokens) == (6, 4, 24, 24 * 32)
    assert work.scoring_passes == ("policy", "teacher")
    assert work.training_passes == 2 and work.optimizer_steps == 6
    assert work.total_completions == 96 and work.total_optimizer_steps == 24
    assert work.evaluations == (0, 2, 4) and work.checkpoints == (2, 3, 4)


def test_passes_follow_the_teacher_and_the_anchor() -> None:
    def passes(method: str, *overrides: str) -> tuple[str, ...]:
        return work_of(load_recipe(None, overrides, method={"name": method})).scoring_passes

    always = "train.score_policy=always"
    assert passes("grpo") == () and passes("grpo", always) == ("policy",)
    assert passes("grpo", "train.epochs=2") == passes("grpo", "train.minibatches=2") == ("policy",)
    assert passes("grpo", "train.reference_kl_tokens=50") == ("policy",)
    assert passes("cast", "method.teacher.kind=current") == ("policy",)
    assert passes("grpo", "method.anchor.kind=k3") == ("reference",)
    assert passes("grpo", "method.anchor.kind=k3", always) == ("policy", "reference")


def test_an_epoch_has_no_more_optimizer_steps_than_prompts() -> None:
    work = work_of(load_recipe(None, ["train.minibatches=9", "data.limit=4"]))
    assert work.prompts == 4 and work.optimizer_steps == 4


def test_evaluations_and_checkpoints_at_the_end_whatever_the_interval() -> None:
    recipe = load_recipe(None, ["train.steps=7", "eval.every=0", "train.checkpoint_every=3"])
    assert [s for s in range(1, 8) if evaluates_after(recipe, s)] == [7]
    assert [s for s in range(1, 8) if saves_after(recipe, s)] == [3, 6, 7]


# The command


def test_explain_says_what_a_step_does_and_where_settings_come_from(
    castctl: Cli, recipe: str
) -> None:
    done = castctl("explain", recipe, "--set", "sampling.n=5")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 100
    page = " ".join(done.stdout.split())
    assert "cast trains model embedded on data embedded" in page
    assert "6 prompts x 5 samples = 30 completions of at most 32 tokens, 960 in all" in page
    assert "teacher (a snapshot, renewed every 10 steps)" in page
    assert "2 passes forward and backward" in page and "6 optimizer steps" in page
    assert "after 0, 2, 4 steps" in page and "after 2, 3, 4 steps" in page
    assert "memory, together (" in page and "all logits of a step at once would take" in page
    [clip] = [line for line in lines if line.startswith("clip_high")]
    assert all(word in clip for word in ("0.28", "0.2 ", "preset cast", "ours"))
    [samples] = [line for line in lines if line.startswith("n ")]
    assert all(word in samples for word in ("5", "8", "--set"))
    assert "[red]{{" in page  # a recipe's text is no markup
    told = " ".join(lines[lines.index("Warnings") + 1 :])
    assert told.startswith("the embedded model knows prompts of the bare problem alone")


def test_on_80_columns_meanings_go_below_their_settings(
    castctl: Cli, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[\d;]*m", "", castctl("explain", recipe).stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80 and "…" not in shown
    at = lines.index("clip_high = 0.28; from preset cast, default 0.2; ours")
    assert lines[at + 1].startswith("    And at 1 + clip_high")


def test_explain_as_json(castctl: Cli, recipe: str) -> None:
    page = explained(castctl, recipe, "--set", "method.shaping.tau_nats=0")
    assert page["work"]["completions"] == 24 and page["work"]["evaluations"] == [0, 2, 4]
    settings = {setting.pop("key"): setting for setting in page["settings"]}
    assert settings["method.shaping.positive_range"] == {
        "value": [0.8, 1.05],
        "default": [0.8, 1.05],
        "origin": None,
        "choice": "paper",
        "meaning": "Range of the weight where the base is positive.",
    }
    assert settings["sampling.n"]["origin"] == recipe and settings["sampling.n"]["default"] == 8
    memory = page["memory"]
    assert memory["parameters"] == 354_144 and page["memory_missing"] is None
    assert memory["held"]["teacher"] == memory["held"]["weights"] == 4 * 354_144
    largest = max(sum(parts.values()) for parts in memory["phases"].values())
    assert memory["together"] == sum(memory["held"].values()) + largest
    prompts, flips = page["warnings"]
    assert "extends: tiny" in prompts and "tau is 0" in flips


@pytest.mark.parametrize(
    ("overrides", "value"),
    [("={since: 2026-01-01}", {"since": "2026-01-01"}), ("={x: .nan}", {"x": None})],
)
def test_what_yaml_knows_and_json_does_not_is_still_strict_json(
    castctl: Cli, overrides: str, value: dict[str, Any]
) -> None:
    page = explained(castctl, "--set", f"data.chat_template_options{overrides}")
    [options] = [s for s in page["settings"] if s["key"] == "data.chat_template_options"]
    assert options["value"] == value


@pytest.mark.parametrize("model", ["owner/no-such-model", "./no-such-folder", "./no-attention"])
def test_without_the_model_only_the_memory_is_missing(
    castctl: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):  # nobody listens there, and the hub is not asked
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "no-attention").mkdir()
    config = {"model_type": "rwkv", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
    (tmp_path / "no-attention/config.json").write_text(json.dumps(config))
    page = explained(castctl, "--model", model, "--data", "embedded")
    assert page["memory"] is None and "\n" not in page["memory_missing"]
    missing = "num_attention_heads" if model == "./no-attention" else model
    assert missing in page["memory_missing"]
    assert page["work"]["prompts"] == 64 and page["settings"]
    done = castctl("explain", "--model", model, "--data", "embedded")
    reasons = [line for line in done.stdout.splitlines() if "memory: not estimated" in line]
    assert len(reasons) == 1 and "64 prompts x 8 samples" in done.stdout
    dry = castctl("train", "--model", model, "--data", "embedded", "--dry-run")
    assert "memory: not estimated" in dry.stdout and "64 prompts x 8 samples" in dry.stdout


def test_dry_run_prints_the_recipe_and_then_the_same_page(
    castctl: Cli, tmp_path: Path, recipe: str
) -> None:
    dry = castctl("train", recipe, "--method", "grpo", "--dry-run").stdout
    page = castctl("explain", recipe, "--method", "grpo").stdout
    assert dry.startswith("seed: 0\n") and dry.endswith("\n" + page)
    assert not (tmp_path / "runs").exists()


def test_quiet_explains_on_standard_output_alone(castctl: Cli) -> None:
    done = castctl("explain", "--quiet")
    assert done.stderr == "" and "A step" in done.stdout


WRONG = [
    (("no-recipe.yaml",), "no recipe at no-recipe.yaml"),
    (("--set", "method.shapng.lam=1"), "the nearest one is method.shaping"),
    (("--set", "train.step=1"), "the nearest one is train.steps"),
    (("--set", "sampling.temperature=0"), "temperature 0 gives equal completions"),
    (("--method", "cast", "--set", "method.teacher.kind=none"), "reads a teacher's log-probs"),
    (("--set", "sampling.n=1"), "sampling.n (-n) to 2"),
    (("--set", "sampling.top_p=0.9"), "nothing trains on that"),
    (("--method", "nonsense"), "no method 'nonsense'"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_input_gets_one_line_and_code_2(
    castctl: Cli, arguments: tuple[str, ...], words: str
) -> None:
    done = castctl("explain", "--quiet", *arguments, code=2)
    [line] = done.stderr.splitlines()
    assert line.startswith("castctl: ") and words in line and done.stdout == ""


# Memory


def random_qwen3(vocabulary: int, hidden: int, layers: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // 32, num_key_value_heads=2,
        head_dim=32, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation(attention.NAME)
    return model


def saved_bytes(model: LanguageModel, size: PackedSize, samples: int) -> int:
    """What autograd holds of a packed batch: each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    prompts = [np.full(size.prompt, row // samples) for row in range(size.rows)]
    batch = pack(prompts, [np.full(size.completion, 3)] * size.rows)
    assert len(batch.input_ids_L) <= size.tokens <= len(batch.input_ids_L) + size.rows
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden_states(batch)
    assert hidden.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(("prompt", "completion"), [(20, 200), (100, 60), (300, 20)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_saves(
    prompt: int, completion: int, checkpointing: bool
) -> None:
    samples, groups = 4, 2
    size = PackedSize(
        groups * (prompt + samples * completion), groups * samples, prompt, completion
    )
    net = random_qwen3(100, 128, 3)
    model, shape = LanguageModel(net, None, torch.float32), shape_of(net.config, 0)
    on_cpu = Arithmetic(on_gpu=False, width=FLOAT32)
    estimated = activation_bytes(shape, on_cpu, size, checkpointing)
    if checkpointing:  # of the layers, their inputs alone are kept until one is computed again
        model.recompute_activations()
        net.train()
        kept = saved_bytes(model, size, samples)
        layer = activation_bytes(shape, on_cpu, size, False) / shape.layers
        assert kept < estimated < kept + 1.1 * layer
    else:
        assert estimated == pytest.approx(saved_bytes(model, size, samples), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_is_as_large_as_that_of_the_loop(dtype: torch.dtype) -> None:
    net = random_qwen3(100, 64, 2)
    cache = cache_in_blocks(net.config, limit=7)
    model = LanguageModel(net, None, dtype)
    with torch.no_grad(), model.autocast():
        ids = torch.ones(3, 7, dtype=torch.long)
        net(ids, **{cache_argument(net): cache}, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    arithmetic = Arithmetic(on_gpu=False, width=dtype.itemsize)
    assert cache_bytes(shape_of(net.config, 0), arithmetic, tokens=3 * 7) == held


def test_memory_follows_the_recipe() -> None:
    def memory(*overrides: str, method: str = "cast") -> Any:
        common = ["model.device=cpu", "data.max_prompt_tokens=64", "eval.k=1", *overrides]
        return estimate_memory(load_recipe(None, common, method={"name": method}))

    whole = memory()
    weights = whole.held["weights"]
    assert whole.held["optimizer moments"] == 2 * weights and whole.held["reference"] == 0
    assert memory(method="grpo").held["teacher"] == 0
    assert memory("method.teacher.kind=current").held["teacher"] == 0
    assert memory("method.anchor.kind=k2").held["reference"] == weights
    assert memory("train.gradient_checkpointing=true").together < whole.together
    assert memory("train.microbatch_tokens=4200").together < whole.together
    half = memory("model.dtype=bfloat16")
    assert half.held == whole.held and half.together < whole.together
    cache = f"KV cache of {16 * 8} completions"
    small = memory("sampling.max_tokens=48", "data.max_prompt_tokens=16")
    kv_heads_x_size, layers = 32, 3
    assert small.phases["sampling"][cache] == 128 * 64 * layers * kv_heads_x_size * 2 * 4


def test_memory_counts_the_peer_that_a_teacher_is_told() -> None:
    """It stands before each completion, up to the longest prompt that the teacher may have."""

    def reading(*overrides: str) -> int:
        recipe = load_recipe("sdpo-qwen3-1.7b", overrides, tiny=True)
        return estimate_memory(recipe).phases["update, teacher"][
            "one layer of the teacher's reading"
        ]

    assert reading() > reading("method.teacher.max_prompt_tokens=200") > 0
    own = load_recipe("sdpo-qwen3-1.7b:answer", tiny=True)
    assert "update, teacher" not in estimate_memory(own).phases


@pytest.mark.slow
def test_memory_of_a_real_run_is_as_estimated(castctl: Cli, tmp_path: Path) -> None:
    """Peak resident memory of two steps, above that of a model of next to nothing."""
    folder = embedded.ensure().model
    tokenizer = load_tokenizer(folder, ModelSettings())
    for name, vocabulary, hidden in (("large", 40_000, 128), ("small", len(tokenizer), 64)):
        random_qwen3(vocabulary, hidden, 4).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    settings = [
        "train.steps=2", "train.prompts_per_step=4", "sampling.n=6", "sampling.max_tokens=64",
        "data.max_prompt_tokens=32", "eval.k=1", "eval.limit=2", "eval.every=0",
        "data.limit=4", "data.prompt_template='{{ problem }}'", "data.path=embedded",
    ]  # fmt: skip
    measured, estimated = [], []
    for name in ("large", "small"):
        recipe = load_recipe(
            None, settings, model={"path": str(tmp_path / name)}, method={"name": "cast"}
        )
        estimated.append(estimate_memory(recipe).together)
        options = [word for setting in settings for word in ("--set", setting)]
        castctl("train", "--run", f"of-{name}", "--method", "cast", "--model", name, *options)
        rows = pq.read_table(tmp_path / f"runs/of-{name}/metrics.parquet")
        measured.append(max(rows["peak_memory_gb"].to_pylist()) * 2**30)
    ratio = (estimated[0] - estimated[1]) / (measured[0] - measured[1])
    assert 0.75 < ratio < 1.35, f"estimated {estimated}, measured {measured}"


def test_memory_of_an_adapter() -> None:
    """What does not train has neither gradient nor moments, and rests in bfloat16 on a GPU."""

    def memory(*overrides: str) -> Any:
        common = ["model.lora={r: 8, alpha: 16}", "method.anchor.kind=k3", *overrides]
        return estimate_memory(load_recipe("tiny", common, method={"name": "cast"}))

    cpu, gpu = memory("model.device=cpu"), memory("model.device=cuda")
    policy = load_policy(Weights(embedded.ensure().model),
                         load_recipe("tiny", ["model.lora={r: 8, alpha: 16}"]).model)  # fmt: skip
    trained = sum(factor.numel() for _, factor in policy.trained())
    layers = [w for name, w in policy.model.model.named_parameters() if "base_layer" in name]
    assert cpu.trained == gpu.trained == trained == 8 * sum(sum(w.shape) for w in layers)
    linear = sum(weight.numel() for weight in layers)
    assert cpu.held["weights"] == 4 * cpu.parameters
    assert gpu.held["weights"] == 4 * (cpu.parameters - linear) + 2 * linear
    for held in (cpu.held, gpu.held):
        assert held["adapter"] == held["gradients"] == held["teacher"] == 4 * trained
        assert held["optimizer moments"] == 8 * trained and held["reference"] == 0
    assert not any("gradient of the output head" in parts for parts in cpu.phases.values())
    assert not cpu.fits and gpu.fits


def test_a_named_gpu_holds_it_or_does_not(castctl: Cli) -> None:
    for size, fits in (("80", True), ("1", False)):
        page = castctl("explain", "grpo", "--tiny", "--lora", "--gpu-memory", size).stdout
        line = next(line for line in page.splitlines() if "training takes" in line)
        assert f"a GPU of {size} GiB" in line and ("does not fit" in line) != fits
    assert "--gpu-memory" in castctl("explain", "--tiny", "--gpu-memory", "0", code=2).stderr
