"""What moves in training, and comes back from a checkpoint: optimizer, teacher, weights."""

from __future__ import annotations

import contextlib
import json
import math
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from castctl.errors import UserError
from castctl.methods.method import Teacher
from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model
from castctl.models.policy import FullWeights, load_policy
from castctl.models.teacher import TeacherCopy
from castctl.models.weights import Weights
from castctl.recipe.model import ModelSettings
from castctl.recipe.optimizer import OptimizerSettings
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run
from castctl.stages.train.checkpoint import (
    load_state,
    load_teacher,
    prune_checkpoints,
    save_checkpoint,
)
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.state import TrainState
from models import CONFIGS, tiny

Tensors = dict[str, torch.Tensor]


def weights(model: LanguageModel) -> Tensors:
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def settings(**values: Any) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"lr": 1e-2, **values})


def gradient(model: LanguageModel, step: int) -> None:
    """Add what a backward pass might have left at this step."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.model.parameters():
        assert parameter.grad is not None
        parameter.grad += torch.randn(parameter.shape, generator=generator) * (1 + step)


def advance(model: LanguageModel, optimizer: Optimizer, steps: range) -> list[float]:
    """Take these steps; the learning rate of each."""
    rates = []
    for step in steps:
        optimizer.zero_grad()
        gradient(model, step)
        optimizer.clip(5.0)
        rates.append(optimizer.lr)
        optimizer.step()
    return rates


def moments(optimizer: Optimizer, folder: Path) -> Tensors:
    """What the optimizer remembers of each parameter."""
    folder.mkdir(exist_ok=True)
    optimizer.save(folder)
    return load_file(folder / "optimizer.safetensors")


def move(model: LanguageModel, seed: int) -> None:
    """Give the model other weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def qwen3(**changes: Any) -> LanguageModel:
    """A tiny Qwen3 of another shape."""
    shape = {**CONFIGS["qwen3-tied"]().to_dict(), **changes}
    if "num_hidden_layers" in changes:
        shape["layer_types"] = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(**shape), attn_implementation=attention.NAME
    )
    return LanguageModel(model.eval(), None, torch.float32)


OTHER_SHAPES = {
    "wider": {"intermediate_size": 64},
    "deeper": {"num_hidden_layers": 3},
    "shallower": {"num_hidden_layers": 1},
}


@contextlib.contextmanager
def refused(*mentions: str) -> Iterator[None]:
    """A user's mistake, told in one line that names these."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert all(mention in message for mention in mentions), message


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# The optimizer

SCHEDULES = {
    "constant": {"schedule": "constant"},
    "constant-warm-up": {"schedule": "constant", "warmup_steps": 4},
    "cosine": {"schedule": "cosine"},
    "cosine-warm-up": {"schedule": "cosine", "warmup_steps": 3},
    "linear": {"schedule": "linear"},
    "linear-to-an-end": {"schedule": "linear", "end_lr": 1e-3},
    "linear-warm-up": {"schedule": "linear", "end_lr": 4e-3, "warmup_share": 0.3},
    "constant-share": {"schedule": "constant", "warmup_share": 0.25},
    "cosine-share": {"schedule": "cosine", "warmup_share": 0.5},
}
WARMUPS = {
    "constant-warm-up": 4, "cosine-warm-up": 3, "linear-warm-up": 3, "constant-share": 2,
    "cosine-share": 4,
}  # fmt: skip
"""Steps of warm-up of 8; 0 where none are named."""


def expected_rate(schedule: str, end: float, warmup: int, step: int, total: int) -> float:
    if step < warmup:
        return 1e-2 * step / warmup
    done = (step - warmup) / (total - warmup)
    if schedule == "linear":
        return 1e-2 + (end - 1e-2) * done
    return 1e-2 if schedule == "constant" else 1e-2 * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rate_follows_its_schedule(name: str) -> None:
    model, chosen = tiny(), settings(**SCHEDULES[name])
    warmup = WARMUPS.get(name, 0)
    rates = advance(model, Optimizer(FullWeights(model).trained(), chosen, 8), range(8))
    expected = [expected_rate(chosen.schedule, chosen.end_lr, warmup, k, 8) for k in range(8)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "total", "steps"), [(0.05, 300, 15), (0.07, 100, 7), (0.05, 30, 2), (0.01, 8, 1)]
)
def test_a_share_of_the_steps_is_rounded_up(share: float, total: int, steps: int) -> None:
    assert settings(warmup_share=share).warmup_of(total) == steps


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"end_lr": 1e-3}, "schedule=constant reads no end_lr"),
        ({"end_lr": 1e-3, "schedule": "cosine"}, "schedule=cosine reads no end_lr"),
        ({"end_lr": 1e-2, "schedule": "linear"}, "end_lr=0.01 is not below lr=0.01"),
        ({"warmup_steps": 2, "warmup_share": 0.1}, "set one of them"),
        ({"warmup_share": 1.0}, "warmup_share"),
    ],
)
def test_what_no_schedule_reads_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**values)


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_restored_optimizer_continues_bit_for_bit(name: str, stop: int, tmp_path: Path) -> None:
    chosen = settings(**SCHEDULES[name], weight_decay=0.1)
    straight = tiny()
    first = Optimizer(FullWeights(straight).trained(), chosen, 8)
    rates = advance(straight, first, range(stop))
    first.save(tmp_path)
    halfway = weights(straight)
    rates += advance(straight, first, range(stop, 8))

    resumed = tiny(seed=9)
    resumed.model.load_state_dict(halfway, strict=False)
    second = Optimizer(FullWeights(resumed).trained(), chosen, 8)
    second.load(tmp_path)
    assert second.steps == stop
    assert advance(resumed, second, range(stop, 8)) == rates[stop:]
    assert same(weights(resumed), weights(straight))
    assert second.steps == first.steps == 8
    assert same(moments(first, tmp_path / "first"), moments(second, tmp_path / "second"))


def test_steps_are_those_of_adamw_with_matrices_decayed_alone() -> None:
    """AdamW (arXiv 1711.05101), written out in float64."""
    model = tiny("phi-biased-head")  # has biases and norms
    exact = {name: value.double() for name, value in weights(model).items()}
    first = {name: torch.zeros_like(value) for name, value in exact.items()}
    second = {name: torch.zeros_like(value) for name, value in exact.items()}
    optimizer = Optimizer(
        FullWeights(model).trained(), settings(betas=(0.8, 0.95), weight_decay=0.2), 5
    )
    for step in range(5):
        optimizer.zero_grad()
        gradient(model, step)
        for name, parameter in model.model.named_parameters():
            g = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            unbiased = first[name] / (1 - 0.8 ** (step + 1))
            scale = (second[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            decay = 0.2 if parameter.ndim > 1 else 0.0
            exact[name] = exact[name] * (1 - 1e-2 * decay) - 1e-2 * unbiased / scale
        optimizer.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-6)


def test_a_step_without_a_gradient_decays_the_moments(tmp_path: Path) -> None:
    model = tiny()
    optimizer = Optimizer(FullWeights(model).trained(), settings(betas=(0.5, 0.25)), 10)
    advance(model, optimizer, range(1))
    before, old = moments(optimizer, tmp_path), weights(model)
    optimizer.zero_grad()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.parameters())
    optimizer.step()
    assert optimizer.steps == 2
    for name, moment in moments(optimizer, tmp_path).items():
        factor = 0.5 if name.endswith("exp_avg") else 0.25
        torch.testing.assert_close(moment, before[name] * factor)
    assert not same(weights(model), old), "the decaying moments still move the weights"


def test_gradients_are_zero_and_not_absent_before_the_first_backward_pass() -> None:
    model = tiny()
    before = weights(model)
    optimizer = Optimizer(FullWeights(model).trained(), settings(), 10)
    optimizer.zero_grad()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.parameters())
    assert optimizer.clip(1.0) == 0
    optimizer.step()
    assert same(weights(model), before)


def test_clipping_scales_the_whole_gradient_down_and_never_up() -> None:
    model = tiny()
    optimizer = Optimizer(FullWeights(model).trained(), settings(), 10)
    optimizer.zero_grad()
    gradient(model, 0)
    before = [p.grad.clone() for p in model.model.parameters()]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in before))
    assert optimizer.clip(10 * norm) == pytest.approx(norm, rel=1e-5)
    assert all(map(torch.equal, before, [p.grad for p in model.model.parameters()]))
    assert optimizer.clip(norm / 4) == pytest.approx(norm, rel=1e-5)
    for parameter, old in zip(model.model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, old / 4, rtol=1e-4, atol=1e-7)


def test_frozen_parameters_stay() -> None:
    model = tiny()
    embedding = model.model.get_input_embeddings().weight.requires_grad_(False)
    before = embedding.clone()
    optimizer = Optimizer(FullWeights(model).trained(), settings(weight_decay=0.5), 10)
    optimizer.zero_grad()
    assert embedding.grad is None
    optimizer.step()
    assert torch.equal(embedding, before)


@pytest.mark.parametrize("other", OTHER_SHAPES)
def test_the_optimizer_state_of_another_model_is_refused(other: str, tmp_path: Path) -> None:
    theirs = qwen3(**OTHER_SHAPES[other])
    optimizer = Optimizer(FullWeights(theirs).trained(), settings(), 10)
    advance(theirs, optimizer, range(1))
    optimizer.save(tmp_path)
    with refused(str(tmp_path)):
        Optimizer(FullWeights(tiny()).trained(), settings(), 10).load(tmp_path)


def spoil_tensors(folder: Path) -> None:
    cut_in_half(folder / "optimizer.safetensors")


def empty_tensors(folder: Path) -> None:
    (folder / "optimizer.safetensors").write_bytes(b"")


def remove_tensors(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


def remove_steps(folder: Path) -> None:
    (folder / "optimizer.json").unlink()


def cut_steps(folder: Path) -> None:
    (folder / "optimizer.json").write_text('{"steps')


def other_steps(folder: Path) -> None:
    (folder / "optimizer.json").write_text("[3]")


def steps_without_end(folder: Path) -> None:
    (folder / "optimizer.json").write_text('{"steps": 100000000000}')


def steps_of_no_number(folder: Path) -> None:
    (folder / "optimizer.json").write_text('{"steps": 1e400}')


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_tensors,
        empty_tensors,
        remove_tensors,
        remove_steps,
        cut_steps,
        other_steps,
        steps_without_end,
        steps_of_no_number,
    ],
    ids=lambda function: function.__name__,
)
def test_a_broken_optimizer_state_is_refused_in_one_line(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    model = tiny()
    optimizer = Optimizer(FullWeights(model).trained(), settings(), 10)
    advance(model, optimizer, range(1))
    optimizer.save(tmp_path)
    spoil(tmp_path)
    with refused(str(tmp_path)):
        Optimizer(FullWeights(model).trained(), settings(), 10).load(tmp_path)


# The teacher


def test_a_snapshot_is_renewed_at_multiples() -> None:
    policy = tiny()
    teacher = TeacherCopy(Teacher(kind="snapshot", every=3), FullWeights(policy))
    renewed = {}
    for step in range(8):
        teacher.refresh(step)
        if step in (0, 3, 6):
            renewed = weights(policy)
        assert same(weights(teacher.model), renewed)
        assert teacher.refreshed_at == step - step % 3
        move(policy, step)
        teacher.follow()
        assert same(weights(teacher.model), renewed)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_an_average_follows_its_formula(decay: float) -> None:
    policy = tiny()
    teacher = TeacherCopy(Teacher(kind="ema", decay=decay), FullWeights(policy))
    exact = {name: value.double() for name, value in weights(policy).items()}
    for step in range(6):
        teacher.refresh(step)
        move(policy, step)
        teacher.follow()
        for name, value in weights(policy).items():
            exact[name] = decay * exact[name] + (1 - decay) * value.double()
    for name, value in weights(teacher.model).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-6, atol=1e-6)


def test_the_initial_teacher_never_moves() -> None:
    policy = tiny()
    start = weights(policy)
    teacher = TeacherCopy(Teacher(kind="initial", every=1), FullWeights(policy))
    for step in range(3):
        teacher.refresh(step)
        move(policy, step)
        teacher.follow()
    assert same(weights(teacher.model), start)
    assert not same(weights(policy), start)


@pytest.mark.parametrize("kind", ["current", "none"])
def test_the_current_teacher_is_the_policy(kind: str, tmp_path: Path) -> None:
    policy = tiny()
    teacher = TeacherCopy(Teacher(kind=kind), FullWeights(policy))
    teacher.refresh(0)
    teacher.follow()
    assert teacher.model is policy and not teacher.is_copy
    teacher.save(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
    teacher.load(tmp_path / "teacher")


def test_a_teacher_takes_no_gradient_and_no_tokenizer_of_its_own() -> None:
    policy = tiny()
    policy.model.get_input_embeddings().weight.grad = torch.ones(1).expand(
        policy.model.get_input_embeddings().weight.shape
    )
    policy.model.train()
    teacher = TeacherCopy(Teacher(kind="ema"), FullWeights(policy))
    copies = list(teacher.model.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in copies)
    assert not teacher.model.model.training and policy.model.training
    assert teacher.model.tokenizer is policy.tokenizer
    own = {p.data_ptr() for p in policy.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in copies)


def experts() -> LanguageModel:
    """A mixture of experts: held stacked, and written one by one."""
    shape = CONFIGS["qwen3-tied"]().to_dict()
    config = Qwen3MoeConfig(
        **{name: shape[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=60,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    return LanguageModel(model.eval(), None, torch.float32)


POLICIES = {
    "tied": lambda: tiny("qwen3-tied"),
    "untied": lambda: tiny("phi-biased-head"),
    "experts": experts,
}


@pytest.mark.parametrize("kind", ["snapshot", "ema", "initial"])
@pytest.mark.parametrize("make", POLICIES)
def test_a_saved_teacher_comes_back_bit_for_bit(make: str, kind: str, tmp_path: Path) -> None:
    policy = POLICIES[make]()
    teacher = TeacherCopy(Teacher(kind=kind), FullWeights(policy))
    move(teacher.model, 1)
    expected = weights(teacher.model)
    teacher.save(tmp_path / "teacher")
    move(policy, 2)
    restored = TeacherCopy(Teacher(kind=kind), FullWeights(policy))
    assert not same(weights(restored.model), expected)
    restored.load(tmp_path / "teacher")
    assert same(weights(restored.model), expected)
    assert not same(weights(policy), expected)


def test_a_run_without_a_teacher_is_told_so(tmp_path: Path) -> None:
    teacher = TeacherCopy(Teacher(kind="ema"), FullWeights(tiny()))
    with refused(str(tmp_path), "ema teacher"):
        teacher.load(tmp_path / "teacher")


def test_a_folder_without_weights_is_no_teacher(tmp_path: Path) -> None:
    with refused(str(tmp_path)):
        TeacherCopy(Teacher(kind="ema"), FullWeights(tiny())).load(tmp_path)


def test_a_teacher_cut_short_is_refused_in_one_line(tmp_path: Path) -> None:
    teacher = TeacherCopy(Teacher(kind="ema"), FullWeights(tiny()))
    teacher.save(tmp_path)
    cut_in_half(tmp_path / "model.safetensors")
    with refused(str(tmp_path)):
        teacher.load(tmp_path)


@pytest.mark.parametrize("other", OTHER_SHAPES)
def test_a_teacher_of_another_shape_is_refused(other: str, tmp_path: Path) -> None:
    TeacherCopy(Teacher(kind="ema"), FullWeights(qwen3(**OTHER_SHAPES[other]))).save(tmp_path)
    with refused(str(tmp_path)):
        TeacherCopy(Teacher(kind="ema"), FullWeights(tiny())).load(tmp_path)


# Checkpoints


def state(kind: str = "ema", seed: int = 0) -> TrainState:
    policy = FullWeights(tiny(seed=seed))
    teacher = TeacherCopy(Teacher(kind=kind, every=3), policy)
    return TrainState(policy, teacher, Optimizer(policy.trained(), settings(), 20))


def train(moving: TrainState, steps: range) -> None:
    for step in steps:
        moving.teacher.refresh(step)
        advance(moving.policy.model, moving.optimizer, range(step, step + 1))
        moving.teacher.follow()


def run_at(folder: Path) -> Run:
    return Run(folder / "a-run", Recipe())


@pytest.mark.parametrize("kind", ["snapshot", "ema", "initial", "current"])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(kind: str, tmp_path: Path) -> None:
    run, straight = run_at(tmp_path), state(kind)
    train(straight, range(4))
    folder = save_checkpoint(run, 4, straight)
    assert folder == run.checkpoint(4) and run.checkpoints() == [4]
    train(straight, range(4, 8))

    policy = load_policy(Weights(folder), ModelSettings(device="cpu"))
    teacher = TeacherCopy(Teacher(kind=kind, every=3), policy, 4)
    resumed = TrainState(policy, teacher, Optimizer(policy.trained(), settings(), 20))
    load_state(folder, resumed.teacher, resumed.optimizer)
    assert resumed.teacher.refreshed_at == (3 if kind == "snapshot" else 0)
    train(resumed, range(4, 8))
    assert same(weights(resumed.policy.model), weights(straight.policy.model))
    assert same(weights(resumed.teacher.model), weights(straight.teacher.model))
    assert (folder / "teacher").is_dir() == (kind != "current")


def test_a_checkpoint_is_a_model_folder_without_pickles(tmp_path: Path) -> None:
    folder = save_checkpoint(run_at(tmp_path), 1, state())
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "castctl.json"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja"}
    facts = json.loads((folder / "castctl.json").read_text())
    assert facts.pop("provenance") is None
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert facts.pop("sha256").keys() == files - {"castctl.json"}
    assert facts == {"run": "a-run", "step": 1, "teacher": "ema", "teacher_refreshed_at": 0}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_replaces_the_one_before_and_its_left_overs(tmp_path: Path) -> None:
    run, moving = run_at(tmp_path), state()
    save_checkpoint(run, 2, moving)
    (run.checkpoint(2) / "stale").write_text("old")
    half = run.checkpoint(2).with_name(f".{run.checkpoint(2).name}.tmp")
    half.mkdir()
    (half / "stale").write_text("from a killed process")
    assert run.checkpoints() == [2]
    train(moving, range(2))
    folder = save_checkpoint(run, 2, moving)
    assert not (folder / "stale").exists() and not half.exists()
    loaded = load_language_model(folder, ModelSettings(device="cpu"))
    assert same(weights(loaded), weights(moving.policy.model))


@contextlib.contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """No file may grow beyond this size: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("after_bytes", [0, 100, 60_000, 120_000])
def test_a_full_disk_leaves_the_checkpoint_before(after_bytes: int, tmp_path: Path) -> None:
    run, moving = run_at(tmp_path), state()
    folder = save_checkpoint(run, 2, moving)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    train(moving, range(2))
    with full_disk(after_bytes), refused(str(folder)):
        save_checkpoint(run, 2, moving)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == after
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    run.path.mkdir()
    (run.path / "checkpoints").write_text("a file")
    with refused(str(run.path)):
        save_checkpoint(run, 1, state())


def test_pruning_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    run, moving = run_at(tmp_path), state("current")
    for step in (1, 2, 3, 10):
        save_checkpoint(run, step, moving)
    prune_checkpoints(run, keep={2, 10, 77})
    assert run.checkpoints() == [2, 10]
    prune_checkpoints(run, keep=set())
    assert run.checkpoints() == []


def test_the_teacher_of_a_run_that_had_none_is_missed(tmp_path: Path) -> None:
    folder = save_checkpoint(run_at(tmp_path), 1, state("current"))
    with refused(str(folder), "snapshot teacher"):
        load_teacher(folder, TeacherCopy(Teacher(kind="snapshot"), FullWeights(tiny())))
    load_teacher(folder, TeacherCopy(Teacher(kind="current"), FullWeights(tiny())))
