"""What several ranks hold and send, recomputed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from castctl import embedded
from castctl.errors import UserError
from castctl.explain.estimate import Memory, estimate_memory
from castctl.explain.model_shape import model_shape
from castctl.models.loading import load_language_model
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import load_recipe
from conftest import Cli

COPY = "whole copy, which samples and scores"
ROOT, BLOCKS = "embeddings, head and last norm, gathered", "two blocks, gathered"
SUMS = "sums of gradients"
READ, SUMMED, RENEWED = (
    "weights for each micro-batch",
    "gradients of each micro-batch",
    "weights of whole copies",
)

QWEN3_8B = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936,
    "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "tie_word_embeddings": False, "max_position_embeddings": 40_960,
}  # fmt: skip
"""As published."""

LINEAR = (
    4096 * (32 * 128) * 2 + 4096 * (8 * 128) * 2 + 3 * 4096 * 12_288
)  # q, o; k, v; feed-forward
BLOCK = LINEAR + 2 * 4096 + 2 * 128  # and norms of the stream, of queries and of keys
ENDS = 2 * 151_936 * 4096 + 4096  # embeddings, head, last norm
ALL = 36 * BLOCK + ENDS


def of_8b(folder: Path, *overrides: str, ranks: int = 8) -> Memory:
    """A step of 64 prompts in two optimizer steps, on GPUs."""
    (folder / "config.json").write_text(json.dumps(QWEN3_8B))
    step = ("train.prompts_per_step=64", "train.part_size=8", "train.minibatches=2")
    common = (f"model.path={folder}", "data.path=embedded", "model.device=cuda", *step)
    return estimate_memory(load_recipe(None, [*common, *overrides]), 80, ranks)


def test_the_shape_of_blocks_is_the_models(tmp_path: Path) -> None:
    model = load_language_model(embedded.ensure().model, ModelSettings()).model
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    shape = model_shape(ModelSettings())
    assert (shape.blocks, shape.block) == (sum(layers), max(layers))
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    large = model_shape(ModelSettings(path=str(tmp_path)))
    assert ALL == 8_190_735_360  # as published
    assert (large.parameters, large.blocks, large.block) == (ALL, 36 * BLOCK, BLOCK)


def test_shares_of_the_published_qwen3_8b(tmp_path: Path) -> None:
    """And the copies of teachers and of the reference, which are whole and at rest."""
    sharding = ("train.sharding=full", "method.anchor.kind=k3")
    memory = of_8b(tmp_path, *sharding, "method.teacher.kind=ema")
    resting = 2 * 36 * LINEAR + 4 * (ALL - 36 * LINEAR)
    assert memory.held == {
        "weights": 4 * ALL // 8, COPY: resting, "gradients": 4 * ALL // 8,
        "optimizer moments": 8 * ALL // 8, "teacher": resting + 4 * ALL // 8, "reference": resting,
    }  # fmt: skip
    assert of_8b(tmp_path, *sharding, "method.teacher.kind=none").held["teacher"] == 0
    for phase, parts in memory.phases.items():
        whole = phase in ("update, output head", "update, backward pass")
        assert parts.get(ROOT) == (8 * ENDS if whole else None), phase
        assert parts.get(BLOCKS) == (2 * 8 * BLOCK if whole else None), phase
        cast = {True: 2 * ALL, False: 2 * (ALL - 36 * LINEAR)}[whole]
        assert parts.get("weights in bfloat16", cast) == cast, phase
    assert memory.phases["update, optimizer step"] == {"temporary copies": 4 * ALL // 8}
    # 32 prompts of 1,024 tokens x 8 of 4,096, in batches of 16,384 tokens: 3 rows, 86 batches
    longest = ("data.max_prompt_tokens=1024", "sampling.max_tokens=4096", "sampling.n=8")
    moved = of_8b(tmp_path, *sharding, *longest).moved
    taught = of_8b(tmp_path, *sharding, *longest, "method.teacher.kind=ema").moved
    walks = 2 * 11  # of two optimizer steps, 86 batches over 8 ranks
    assert moved == {
        READ: 7 * 4 * walks * (2 * 36 * BLOCK + ENDS) // 8,
        SUMMED: 7 * 4 * walks * ALL // 8,
        RENEWED: 7 * 2 * resting // 8,
    }
    assert taught == moved | {RENEWED: 7 * 3 * resting // 8}


def test_ranks_that_hold_everything_send_their_gradients_alone(tmp_path: Path) -> None:
    alone, eight = of_8b(tmp_path, ranks=1), of_8b(tmp_path)
    assert (alone.held, alone.phases) == (eight.held, eight.phases) and eight.ranks == 8
    assert alone.moved == {} and eight.moved == {SUMS: 2 * 7 * 4 * 2 * ALL // 8}
    assert of_8b(tmp_path, "train.sharding=full", ranks=1).held == alone.held
    lora = of_8b(tmp_path, "model.lora={r: 8, alpha: 16, targets: [q_proj]}")
    assert lora.moved == {SUMS: 2 * 7 * 4 * 2 * (36 * 8 * 2 * 4096) // 8}
    (fit,) = of_8b(tmp_path, "train.sharding=full").fits
    assert fit.needed < eight.fits[0].needed - 16 * ALL // 2  # of seven eighths, copies in between


def test_every_rank_brings_an_engine(tmp_path: Path) -> None:
    def engine(ranks: int, *overrides: str) -> Any:
        return of_8b(tmp_path, "engine.kind=vllm", *overrides, ranks=ranks).engine

    one, eight = engine(1), engine(8)
    assert eight.host == {part: 8 * size for part, size in one.host.items()}
    assert (eight.weights, eight.beside) == (one.weights, one.beside)
    assert engine(1, "engine.replicas=2").host
    with pytest.raises(UserError, match="one engine on its own GPU"):
        engine(8, "engine.replicas=2")


def test_the_command_counts_for_ranks(castctl: Cli) -> None:
    two = ("--gpus", "2", "--set", "train.part_size=8")
    said = castctl("explain", "grpo", "--tiny", "--gpus", "4", "--set", "train.part_size=4")
    assert "Memory of each of 4 ranks" in said.stdout and "sent to other ranks" in said.stdout
    assert "80 GB" in said.stdout  # counted for GPUs
    page = castctl("train", "grpo", "--tiny", *two, "--device", "cpu", "--dry-run").stdout
    assert "Memory of each of 2 ranks" in page and SUMS in page
    few = castctl("explain", "grpo", "--tiny", "--gpus", "4", code=2)
    assert "set train.part_size=4" in few.stderr
    memory = json.loads(castctl("explain", "--tiny", *two, "--json").stdout)["memory"]
    assert memory["ranks"] == 2
    assert memory["moved"] == {SUMS: 4 * memory["trained"]}  # 2 x 1/2 x 4 bytes, one optimizer step
