"""Adapters: the base stays to the last bit, copies are tensors, and files are peft's."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from castctl.errors import UserError
from castctl.methods.teacher import Teacher
from castctl.models.adapter import CONFIG_FILE, WEIGHTS_FILE
from castctl.models.head import fused_loss
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model
from castctl.models.policy import AdapterWeights, Policy, load_policy
from castctl.models.teacher import TeacherCopy
from castctl.models.weights import Weights
from castctl.progress import Silent
from castctl.recipe.model import LoraSettings, ModelSettings
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run, create_run
from castctl.stages.export import export_policy
from castctl.stages.one_step import train_stage
from castctl.stages.policies import policy_at
from castctl.stages.train.loop import train
from conftest import Cli
from models import packed_hidden, random_ids, tiny
from runs import (
    assert_same_step,
    assert_same_weights,
    interrupted,
    small_recipe,
    steps_by_hand,
    train_small,
)

LORA = LoraSettings(r=4, alpha=8)
ON = ModelSettings(path="base", lora=LORA, device="cpu")


def rows(seed: int = 0) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    return [random_ids(rng, 5) for _ in range(3)], [random_ids(rng, n) for n in (7, 1, 12)]


def logprobs(model: LanguageModel) -> np.ndarray:
    prompts, completions = rows()
    return model.score(prompts, completions, 0.7, 4096, 16)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    made = tiny("llama-untied")
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def settings(folder: Path) -> ModelSettings:
    return ON.model_copy(update={"path": str(folder)})


@pytest.fixture
def policy(folder: Path, settings: ModelSettings) -> AdapterWeights:
    made = load_policy(Weights(folder), settings, seed=3)
    assert isinstance(made, AdapterWeights)
    return made


@torch.no_grad()
def move(policy: Policy, seed: int = 0, by: float = 0.3) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _, factor in policy.trained():
            factor.add_(by * torch.randn_like(factor))


def plain(folder: Path) -> np.ndarray:
    return logprobs(load_language_model(folder, ModelSettings(device="cpu")))


def test_the_base_is_there_to_the_last_bit(
    policy: AdapterWeights, folder: Path, settings: ModelSettings
) -> None:
    """Before any update, and with the adapter switched off."""
    assert np.array_equal(logprobs(policy.model), plain(folder))
    reference = policy.reference(Weights(folder), settings)
    move(policy)
    assert not np.allclose(logprobs(policy.model), plain(folder), atol=0.01)
    assert np.array_equal(logprobs(reference), plain(folder))
    assert {name.rsplit(".", 3)[1] for name, _ in policy.trained()} == {"lora_A", "lora_B"}


def test_the_seed_decides_what_an_adapter_begins_with(
    folder: Path, settings: ModelSettings
) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        dict(load_policy(Weights(folder), settings, seed).trained()) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind, keep", [("snapshot", 0.0), ("ema", 0.75)])
def test_a_teacher_is_tensors(policy: AdapterWeights, kind: str, keep: float) -> None:
    teacher = TeacherCopy(Teacher(kind=kind, every=2, decay=keep), policy)  # type: ignore[arg-type]
    before = {name: factor.detach().clone() for name, factor in policy.trained()}
    at_first = logprobs(policy.model)
    move(policy)
    assert np.array_equal(logprobs(teacher.model), at_first)
    moved = logprobs(policy.model)
    teacher.follow()
    teacher.refresh(2)
    expected = {
        name: factor if kind == "snapshot" else keep * before[name] + (1 - keep) * factor
        for name, factor in policy.trained()
    }
    found = logprobs(teacher.model)
    assert np.array_equal(logprobs(policy.model), moved)  # nothing of it is left in the policy
    with torch.no_grad():
        for name, factor in policy.trained():
            factor.copy_(expected[name])
    assert np.allclose(found, logprobs(policy.model), atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_teacher_leaves_a_waiting_graph_alone(
    policy: AdapterWeights, checkpointing: bool
) -> None:
    teacher = policy.copy()
    move(policy)
    if checkpointing:
        policy.model.recompute_activations()

    def gradients(between: bool) -> list[torch.Tensor]:
        for _, factor in policy.trained():
            factor.grad = None
        with policy.model.recomputing():
            _, hidden, _ = packed_hidden(policy.model, *rows())
            if between:
                with torch.no_grad():
                    packed_hidden(teacher.model, *rows())
            hidden.square().sum().backward()
        return [factor.grad.clone() for _, factor in policy.trained() if factor.grad is not None]

    alone, beside = gradients(False), gradients(True)
    assert len(alone) == len(policy.trained()) and any(bool(g.any()) for g in alone)
    assert all(torch.equal(one, two) for one, two in zip(alone, beside, strict=True))


@pytest.mark.parametrize("name", ["llama-untied", "qwen3-tied"])
def test_linear_layers_in_bfloat16_change_no_bit(name: str, tmp_path: Path) -> None:
    """Of log-probs and of the adapter's gradients, against autocast over float32 weights."""
    made = tiny(name)
    made.model.save_pretrained(tmp_path / "base")
    made.tokenizer.save_pretrained(tmp_path / "base")
    found = []
    for weights in ("float32", "bfloat16"):
        asked = ON.model_copy(
            update={"path": str(tmp_path / "base"), "dtype": "bfloat16", "weights": weights}
        )
        policy = load_policy(Weights(tmp_path / "base"), asked)
        move(policy)
        kinds = {p.dtype for n, p in policy.model.model.named_parameters() if "base_layer" in n}
        assert kinds == {getattr(torch, weights)}
        _, hidden, _ = packed_hidden(policy.model, *rows())
        hidden.float().square().sum().backward()
        grads = [factor.grad for _, factor in policy.trained()]
        found.append((logprobs(policy.model), grads))
    (first, grads), (second, others) = found
    assert np.array_equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))  # type: ignore[arg-type]


def test_a_frozen_head_has_no_gradient_of_its_weight(policy: AdapterWeights) -> None:
    move(policy)
    _, hidden, targets = packed_hidden(policy.model, *rows())
    head = policy.model.head(1.0, 8)
    total, *_ = fused_loss(head, hidden, targets, lambda part, logprobs, *_: -logprobs)
    total.backward()
    assert head.weight.grad is None
    assert all(factor.grad is not None for _, factor in policy.trained())


def test_peft_reads_what_is_saved_and_it_reads_pefts(
    policy: AdapterWeights, folder: Path, settings: ModelSettings, tmp_path: Path
) -> None:
    move(policy)
    policy.save(tmp_path)
    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft asks of transformers is to go
        theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    prompts, completions = rows()
    ids = torch.from_numpy(np.concatenate([prompts[2], completions[2]]).astype(np.int64))[None]
    with torch.no_grad():
        ours = policy.model.model(input_ids=ids, use_cache=False).logits
        assert torch.allclose(theirs(input_ids=ids, use_cache=False).logits, ours, atol=1e-4)
    named = json.loads((adapter / CONFIG_FILE).read_text())["base_model_name_or_path"]
    assert named == str(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_policy(Weights(folder, tmp_path / "theirs"), settings)
    assert np.array_equal(logprobs(again.model), logprobs(policy.model))
    assert again.adapter_rank == 4 and len(again.trained()) == len(policy.trained())


def test_a_run_begins_with_an_adapter_and_keeps_it_as_its_reference(
    policy: AdapterWeights, folder: Path, settings: ModelSettings, tmp_path: Path
) -> None:
    move(policy)
    policy.save(tmp_path)
    began = settings.model_copy(update={"lora": None, "adapter": str(tmp_path / "adapter")})
    weights = Weights(folder, tmp_path / "adapter")
    other = load_policy(weights, began)
    reference = other.reference(weights, began)
    at_first = logprobs(other.model)
    assert np.array_equal(at_first, logprobs(policy.model))
    move(other, seed=1)
    assert np.array_equal(logprobs(reference), at_first)
    assert weights.fingerprint != Weights(folder).fingerprint


def test_merged_and_not_merged_agree(policy: AdapterWeights, tmp_path: Path) -> None:
    move(policy, by=0.1)
    expected = logprobs(policy.model)
    policy.save_whole(tmp_path)
    assert not [*tmp_path.glob("adapter*")]
    again = load_language_model(tmp_path, ModelSettings(device="cpu"))
    assert np.abs(logprobs(again) - expected).max() < 1e-5


class TestRefusals:
    def test_targets(self, folder: Path, settings: ModelSettings) -> None:
        for target, words in (("lm_head", "no linear layer between"), ("nothing", "there are")):
            lora = LoraSettings(r=4, alpha=8, targets=(target,))
            with pytest.raises(UserError, match=words):
                load_policy(Weights(folder), settings.model_copy(update={"lora": lora}))

    @pytest.mark.parametrize(
        "change, words",
        [
            ({"use_dora": True}, "use_dora"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"peft_type": "IA3"}, "peft_type LORA"),
            ({"target_modules": ".*"}, "no list of layers"),
            ({"target_modules": ["lm_head"]}, "changes lm_head"),
            ({"target_modules": ["embed_tokens"]}, "which is no linear layer"),
            ({"target_modules": ["q_proj"]}, "unknown"),
            ({"target_modules": ["nowhere"]}, "cannot load the adapter"),
            ({"r": 2}, "another shape"),
            ({"r": -1}, "cannot load the adapter"),
            ({"bias": "all"}, "bias"),
            ({"layer_replication": [[0, 2]]}, "layer_replication"),
            ({"init_lora_weights": "pissa"}, "own weights"),
            ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ],
    )
    def test_adapters_that_ask_for_more(
        self,
        policy: AdapterWeights,
        folder: Path,
        settings: ModelSettings,
        tmp_path: Path,
        change: dict[str, Any],
        words: str,
    ) -> None:
        policy.save(tmp_path)
        file = tmp_path / "adapter" / CONFIG_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(UserError, match=words):
            load_policy(Weights(folder, tmp_path / "adapter"), settings)

    def test_weights_that_do_not_fit(
        self, policy: AdapterWeights, folder: Path, settings: ModelSettings, tmp_path: Path
    ) -> None:
        policy.save(tmp_path)
        adapter = tmp_path / "adapter"
        whole = load_file(adapter / WEIGHTS_FILE)
        name = min(whole)
        for broken, words in (
            ({n: t for n, t in whole.items() if n != name}, "lacks"),
            (whole | {"base_model.model.other.lora_A.weight": whole[name].clone()}, "unknown"),
            (whole | {name: whole[name] * float("nan")}, "no number"),
        ):
            save_file(broken, adapter / WEIGHTS_FILE)
            with pytest.raises(UserError, match=words):
                load_policy(Weights(folder, adapter), settings)
        (adapter / WEIGHTS_FILE).write_bytes(b"nothing")
        with pytest.raises(UserError, match="cannot load the adapter"):
            load_policy(Weights(folder, adapter), settings)
        with pytest.raises(UserError, match=f"holds no {CONFIG_FILE}"):
            load_policy(Weights(folder, folder), settings)

    def test_an_adapter_of_another_base(
        self, policy: AdapterWeights, settings: ModelSettings, tmp_path: Path
    ) -> None:
        policy.save(tmp_path)
        other = tiny("llama-untied", seed=1)
        other.model.save_pretrained(tmp_path / "other")
        other.tokenizer.save_pretrained(tmp_path / "other")
        with pytest.raises(UserError, match="trained on another model"):
            load_policy(Weights(tmp_path / "other", tmp_path / "adapter"), settings)

    def test_a_model_whose_folder_holds_other_weights(self, folder: Path, tmp_path: Path) -> None:
        """As when a model that peft has changed is saved: transformers would make up the rest."""
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        whole = load_file(broken / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        for change, words in (
            ({name.replace("weight", "base_layer.weight"): whole[name]}, "lacks 1 weights"),
            ({name: whole[name], "extra.weight": whole[name].clone()}, "has beside the model's 1"),
        ):
            rest = {n: t for n, t in whole.items() if n != name}
            save_file(rest | change, broken / "model.safetensors", {"format": "pt"})
            with pytest.raises(UserError, match=words):
                load_language_model(broken, ModelSettings(device="cpu"))

    def test_settings(self, folder: Path, settings: ModelSettings) -> None:
        with pytest.raises(UserError, match="bfloat16 as well"):
            load_policy(Weights(folder), settings.model_copy(update={"weights": "bfloat16"}))
        for line, words in (
            ("model={lora: {}, adapter: x}", "leave model.lora out"),
            ("model.lora.r=0", "lora.r"),
            ("model.lora.targets=[]", "list of layers"),
            ("model.lora.targets=['a b']", "list of layers"),
        ):
            with pytest.raises(UserError, match=words):
                load_recipe("tiny", [line])


def test_the_learning_rate_of_whole_weights_is_warned_of() -> None:
    def told(*lines: str) -> list[str]:
        asked = load_recipe(None, ["data.path=x.jsonl", "eval.task=held-out", *lines])
        return [line for line in asked.check_training() if "adapters take more" in line]

    assert told("model.lora={}")
    assert not told() and not told("model.lora={}", "optimizer.lr=3e-6")


ADAPTED = ("model.lora={r: 4, alpha: 8}", "optimizer.lr=0.01")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = small_recipe("cast", *ADAPTED, "method.anchor.kind=k3")
    return train_small(tmp_path_factory.mktemp("loop") / "run", recipe)[0]


@pytest.mark.slow
def test_a_checkpoint_holds_an_adapter_and_no_model(finished: Run) -> None:
    folder = finished.checkpoint(3)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    adapter = {CONFIG_FILE, WEIGHTS_FILE}
    assert names == {
        "castctl.json", "optimizer.json", "optimizer.safetensors",
        *(f"adapter/{name}" for name in adapter), *(f"teacher/{name}" for name in adapter),
    }  # fmt: skip
    references = finished.step(2).table("signals")["ref_logprobs"].to_pylist()
    policies = finished.step(2).table("signals")["policy_logprobs"].to_pylist()
    assert references != policies


@pytest.mark.slow
def test_a_run_resumed_equals_one_that_was_not(finished: Run, tmp_path: Path) -> None:
    again = interrupted(tmp_path / "run", finished.recipe, after=1)
    shutil.rmtree(again.step(2).path, ignore_errors=True)
    train(again, Silent(), lambda row: None)
    for step in range(3):
        assert_same_step(finished.step(step), again.step(step))
    assert_same_weights(finished.checkpoint(3), again.checkpoint(3))


@pytest.mark.slow
def test_stages_by_hand_equal_the_loop(finished: Run, tmp_path: Path) -> None:
    alone = create_run(finished.recipe, str(tmp_path / "run"), "test")
    shutil.copytree(finished.checkpoint(1), alone.checkpoint(1))
    steps_by_hand(alone, (0, 1), finished)
    train_stage(alone, 1, policy_at(alone, 1), overwrite=False)
    assert_same_weights(finished.checkpoint(2), alone.checkpoint(2))


@pytest.mark.slow
def test_a_trained_adapter_is_exported_and_begun_with(
    finished: Run, castctl: Cli, tmp_path: Path
) -> None:
    castctl("export", str(finished.path), "out/adapter", "--step", "2")
    trained = load_file(finished.checkpoint(2) / "adapter" / WEIGHTS_FILE)
    out = load_file(tmp_path / "out" / "adapter" / WEIGHTS_FILE)
    assert all(torch.equal(out[name], trained[name]) for name in trained)
    castctl("export", str(finished.path), "whole", "--merged")
    assert (tmp_path / "whole" / "config.json").is_file()
    assert not [*(tmp_path / "whole").glob("adapter*")]
    assert (
        "name a folder that is not" in castctl("export", str(finished.path), "whole", code=2).stderr
    )
    small = ("--limit", "4", "-k", "1", "--max-tokens", "16")
    given = ("eval", "embedded", *small, "--seed", "1")
    merged = castctl(*given, "--model", "whole", "--run", "one", "--set", "data.prompt_template="
                     "{{ problem }}")  # fmt: skip
    adapted = castctl(*given, "--adapter", "out/adapter", "--run", "two", "--tiny")
    assert merged.stdout and adapted.stdout
    wrong = castctl("train", "grpo", "--tiny", "--adapter", "whole", code=2)
    assert f"holds no {CONFIG_FILE}" in wrong.stderr
    named = castctl(
        "train", "grpo", "--model", str(finished.checkpoint(3)), "--data", "x.jsonl", code=2
    )
    assert "--adapter" in named.stderr


def test_whole_weights_are_exported_without_what_trained_them(tmp_path: Path) -> None:
    run = create_run(small_recipe("grpo"), str(tmp_path / "run"), "test")
    with pytest.raises(UserError, match="no checkpoint to export"):
        export_policy(run, 0, tmp_path / "out", merged=False)
    made = tiny()
    folder = run.checkpoint(1)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    for name in ("castctl.json", "optimizer.json"):
        (folder / name).write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "optimizer.safetensors")
    export_policy(run, 1, tmp_path / "out", merged=False)
    assert not {path.name for path in (tmp_path / "out").iterdir()} & {
        "castctl.json", "optimizer.json", "optimizer.safetensors", "teacher",
    }  # fmt: skip
    again = load_language_model(tmp_path / "out", ModelSettings(device="cpu"))
    assert np.array_equal(logprobs(again), logprobs(copy.deepcopy(made)))
