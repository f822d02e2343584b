"""An adapter over a frozen model: memory against what `castctl explain` says, and time.

A random model of Qwen3-4B's shape on a GPU (`--small` on the CPU). What is held after an update
and its peak stand beside the estimate; on the CPU the system counts no tensors, so only time does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from random_qwen3 import PUBLISHED, make_model

from castctl.explain.estimate import estimate_memory
from castctl.models import attention
from castctl.models.adapter import fresh_adapter
from castctl.models.head import fused_loss
from castctl.models.language_model import LanguageModel
from castctl.models.loading import lay_to_rest
from castctl.models.policy import AdapterWeights
from castctl.ragged import offsets_of
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.update import update

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-4B": PUBLISHED["Qwen3-4B"],
    "small": {},
    "quick": {"vocabulary": 4096, "hidden": 64, "layers": 2},
}
WORK = {"Qwen3-4B": (8, 8, 1024), "small": (2, 8, 64), "quick": (2, 2, 8)}
"""Prompts, completions of each, and tokens of each."""
PROMPT = 64


def main() -> None:
    parser = measure.options(__doc__, repeats=3)
    parser.add_argument("--small", action="store_true", help="a small model, for the CPU")
    parser.add_argument("--rank", type=int, default=64)
    options = measure.parse(parser)
    shape = "quick" if options.quick else "small" if options.small else "Qwen3-4B"
    prompts, n, tokens = WORK[shape]
    with tempfile.TemporaryDirectory() as folder:
        policy, recipe = adapted(shape, Path(folder), options.rank)
        batch = random_batch(prompts, n, tokens, policy.model.vocabulary)
        optimizer = Optimizer(policy.trained(), recipe.optimizer, 1000)
        teacher = policy.copy()

        def train() -> object:
            return update(policy, policy.model, optimizer, batch, recipe, 0)

        def read(model: LanguageModel) -> Callable[[], object]:
            settings = recipe.train
            return lambda: model.score(
                batch.prompts, batch.completions, 1.0,
                settings.microbatch_tokens, settings.head_chunk_tokens,
            )  # fmt: skip

        train()
        held = allocated()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        spent = measure.interleaved(
            {
                "update": measure.timed(train),
                "policy": measure.timed(read(policy.model)),
                "teacher": measure.timed(read(teacher.model)),
                "snapshot": measure.timed(lambda: teacher.blend(0.0)),
                "frozen_head": measure.timed(head(policy.model, tokens, False)),
                "trained_head": measure.timed(head(policy.model, tokens, True)),
            },
            options.repeats,
        )
        estimate = estimate_memory(recipe)
        rollouts = ("reading prompts", "sampling")
        phases = (sum(p.values()) for name, p in estimate.phases.items() if name not in rollouts)
        total = prompts * n * tokens
        measure.report(
            "adapters",
            options.repeats,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            shape=shape,
            rank=options.rank,
            frozen=estimate.parameters,
            trained=estimate.trained,
            prompts=prompts,
            n=n,
            tokens=tokens,
            update_tokens_per_second=total / measure.median(spent["update"]),
            policy_tokens_per_second=total / measure.median(spent["policy"]),
            teacher=measure.ratio(spent["teacher"], spent["policy"]),
            snapshot_seconds=measure.median(spent["snapshot"]),
            head=measure.ratio(spent["trained_head"], spent["frozen_head"]),
            held_gb=held and held / measure.GIB,
            estimated_held_gb=sum(estimate.held.values()) / measure.GIB,
            peak_gb=held and torch.cuda.max_memory_allocated() / measure.GIB,
            estimated_peak_gb=(sum(estimate.held.values()) + max(phases)) / measure.GIB,
        )


def allocated() -> int | None:
    """Bytes of tensors on the GPU; None without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None


def adapted(shape: str, folder: Path, rank: int) -> tuple[AdapterWeights, Recipe]:
    """A random model with an adapter, and the recipe that would train it."""
    prompts, n, tokens = WORK[shape]
    net = make_model(**SHAPES[shape])
    net.config.save_pretrained(folder)
    recipe = load_recipe(
        None,
        ["train.gradient_checkpointing=true", f"train.prompts_per_step={prompts}",
         f"sampling.n={n}", f"sampling.max_tokens={tokens}", f"data.max_prompt_tokens={PROMPT}",
         "train.head_chunk_tokens=1024"],
        model={"path": str(folder), "lora": {"r": rank, "alpha": 2 * rank}},
        method={"name": "cast"},
    )  # fmt: skip
    on_gpu = torch.cuda.is_available()
    net.set_attn_implementation(attention.NAME)
    model = LanguageModel(
        net.to("cuda" if on_gpu else "cpu"), None, torch.bfloat16 if on_gpu else torch.float32
    )
    assert recipe.model.lora is not None
    adapter = fresh_adapter(model, recipe.model.lora, 0)
    lay_to_rest(model, recipe.model)
    model.recompute_activations()
    return AdapterWeights(model, adapter, folder, recipe.model), recipe


def random_batch(prompts: int, n: int, tokens: int, vocabulary: int) -> TrainBatch:
    """Groups of completions of one length, all of which have a gradient."""
    rng = np.random.default_rng(0)
    rows = prompts * n
    texts = [rng.integers(0, vocabulary, PROMPT).astype(np.int32) for _ in range(prompts)]
    repeated = [text for text in texts for _ in range(n)]
    total = rows * tokens
    return TrainBatch(
        prompts=repeated,
        teacher_prompts=repeated,
        completions=[rng.integers(0, vocabulary, tokens).astype(np.int32) for _ in range(rows)],
        group_of_row=np.arange(rows) // n,
        kept_R=np.ones(rows, np.bool_),
        offsets=offsets_of([tokens] * rows),
        advantages=rng.normal(size=total).astype(np.float32),
        loss_weights=np.ones(total, np.float32),
        old_logprobs=np.full(total, -np.log(vocabulary), np.float32),
    )


def head(model: LanguageModel, tokens: int, trains: bool) -> Callable[[], object]:
    """The fused head forward and backward over one micro-batch, its weight trained or not."""
    weight = model.model.get_output_embeddings().weight
    hidden = torch.randn(16 * tokens, weight.shape[1], device=model.device, dtype=model.dtype)
    targets = torch.randint(len(weight), (len(hidden),), device=model.device)

    def work() -> None:
        weight.requires_grad_(trains)
        states = hidden.detach().requires_grad_()
        total, *_ = fused_loss(
            model.head(1.0, 1024), states, targets, lambda part, logprobs, *_: -logprobs
        )
        total.backward()
        weight.grad = None
        weight.requires_grad_(False)

    return work


if __name__ == "__main__":
    main()
