"""How much memory a recipe will take, before anything starts.

Everything is counted at its longest, prompts of `data.max_prompt_tokens` and completions of
`sampling.max_tokens`, so shorter ones take less. Of several ranks it is the memory of each: a part
and a micro-batch are as large however many share them. Under `train.sharding=full` a rank holds its
share of the float32 weights, gradients and moments, and a whole copy at rest that samples and
scores. In an update it gathers, weights and gradients, what is in no block, and two blocks at a
time. Buffers of the sums, 64 MiB, and of NCCL are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil

from castctl.explain.engine import EngineMemory, engine_memory
from castctl.explain.footprint import (
    FLOAT32,
    Arithmetic,
    PackedSize,
    activation_bytes,
    cache_bytes,
    on_gpu,
    pass_bytes,
)
from castctl.explain.gpu import CONTEXT, TrainingFit, gpus
from castctl.explain.model_shape import ModelShape, model_shape
from castctl.explain.traffic import Passes, moved_bytes
from castctl.methods.conditioning import Bilateral
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import Recipe, SamplingSettings
from castctl.recipe.split import task_of
from castctl.recipe.task import about
from castctl.stages.evaluate.runner import PART_SIZE, eval_sampling

Parts = dict[str, int]
"""Bytes by part."""


@dataclass(frozen=True)
class Memory:
    """Bytes: what is held from the first update on, and what each phase in turn adds to it; apart
    from these an engine with weights of its own. Of `parameters` and an adapter's, `trained` move;
    frozen linear layers rest in `resting`. All is of one of `ranks`, each of which sends `moved` in
    a step."""

    parameters: int
    trained: int
    resting: str
    arithmetic: str
    held: Parts
    phases: dict[str, Parts]
    all_logits: int
    ranks: int = 1
    moved: Parts = field(default_factory=dict)
    fits: list[TrainingFit] = field(default_factory=list)
    engine: EngineMemory | None = None

    @property
    def peak_phase(self) -> str:
        """The phase that adds most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def together(self) -> int:
        """What is held and what the largest phase adds."""
        return sum(self.held.values()) + sum(self.phases[self.peak_phase].values())


def estimate_memory(recipe: Recipe, gpu_memory: float | None = None, ranks: int = 1) -> Memory:
    """The memory of training by a recipe, on each of `ranks`, and whether it fits a GPU of
    `gpu_memory` GiB, or those at hand; `UserError` where its model cannot be reached."""
    shape = model_shape(recipe.model)
    arithmetic = arithmetic_of(recipe.model)
    adapts = shape.adapter is not None
    trained = shape.parameters if shape.adapter is None else shape.adapter
    resting = _resting(recipe.model, arithmetic)
    moving, frozen = trained * FLOAT32, _frozen_bytes(shape, resting)
    sharded = ranks > 1 and recipe.train.sharding == "full"
    share = ceil(moving / ranks) if sharded else moving
    held = {
        "weights": frozen if adapts else share,
        **({"adapter": moving} if adapts else {}),
        **({"whole copy, which samples and scores": frozen} if sharded else {}),
        "gradients": share,
        "optimizer moments": 2 * share,
        "teacher": _teacher_bytes(recipe, share, resting, frozen if sharded else 0),
        "reference": 0 if adapts or not recipe.reads_reference else frozen,
    }
    separate = recipe.engine.brings_weights
    phases = {} if separate else _decoding(recipe, shape, arithmetic)
    phases |= _passes(recipe, shape, arithmetic, sharded)
    if arithmetic.width < FLOAT32:  # autocast keeps what it has cast, for the backward pass too
        rests = resting < FLOAT32
        for phase, parts in phases.items():
            rested = shape.linear if rests and (adapts or (sharded and not _updates(phase))) else 0
            count = shape.parameters - rested + (trained if adapts else 0)
            parts["weights in bfloat16"] = count * arithmetic.width
    copies = share if arithmetic.on_gpu else 2 * min(share, _embedding(shape))
    phases["update, optimizer step"] = {"temporary copies": copies}
    tokens = prompts_per_step(recipe) * recipe.sampling.n * recipe.sampling.max_tokens
    all_logits = tokens * shape.vocabulary * FLOAT32
    name = Arithmetic(arithmetic.on_gpu, resting).name
    whole = frozen if sharded else None
    follows = recipe.method.teacher.kind in ("snapshot", "ema")
    moved = moved_bytes(
        shape, trained, _update_passes(recipe, shape), ranks, whole, teaches=follows
    )
    memory = Memory(
        shape.parameters, trained, name, arithmetic.name, held, phases, all_logits, ranks, moved
    )
    if not separate:
        return replace(memory, fits=_fits(recipe, arithmetic, memory.together, gpu_memory))
    total = sum(held.values())
    engine = engine_memory(recipe, shape, arithmetic, total, memory.together, gpu_memory, ranks)
    return replace(memory, engine=engine)


def _fits(
    recipe: Recipe, arithmetic: Arithmetic, together: int, gpu_memory: float | None
) -> list[TrainingFit]:
    """Training against GPUs; none for the CPU."""
    if not arithmetic.on_gpu:
        return []
    index = int(recipe.model.device.partition(":")[2] or 0)
    found = gpus(index, gpu_memory)
    return [TrainingFit(name, total, together + CONTEXT) for name, total in found]


def _teacher_bytes(recipe: Recipe, share: int, resting: int, whole: int) -> int:
    """Weights of the teacher, where it is not the policy itself: a copy is the `share` of what
    moves, and the `whole` model that scores where that is not all."""
    teacher = recipe.method.teacher
    if teacher.path is None:
        return share + whole if teacher.is_copy else 0
    named = {"path": teacher.path, "revision": teacher.revision, "lora": None, "adapter": None}
    return _frozen_bytes(model_shape(recipe.model.model_copy(update=named)), resting)


def _resting(settings: ModelSettings, arithmetic: Arithmetic) -> int:
    """Bytes of a weight in a linear layer that does not train."""
    half = settings.weights == "bfloat16" or (
        settings.weights == "auto" and arithmetic.on_gpu and arithmetic.width < FLOAT32
    )
    return 2 if half else FLOAT32


def _frozen_bytes(shape: ModelShape, resting: int) -> int:
    """Weights of a model of which nothing trains."""
    return shape.linear * resting + (shape.parameters - shape.linear) * FLOAT32


def prompts_per_step(recipe: Recipe) -> int:
    """Prompts of one step, where the data has as many."""
    wanted = recipe.train.prompts_per_step
    return wanted if recipe.data.limit is None else min(wanted, recipe.data.limit)


def arithmetic_of(settings: ModelSettings) -> Arithmetic:
    """The arithmetic that a model's settings come to on this machine."""
    gpu = on_gpu(settings.device)
    half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and gpu)
    return Arithmetic(gpu, 2 if half else FLOAT32)


def _decoding(recipe: Recipe, shape: ModelShape, arithmetic: Arithmetic) -> dict[str, Parts]:
    """The phases of a rollout, or of an evaluation where that decodes more side by side."""
    longest_prompt = recipe.data.max_prompt_tokens
    training = min(prompts_per_step(recipe), recipe.train.part_size)
    asked = about(recipe, task_of(recipe))
    held_out = min(asked.eval.limit or PART_SIZE, PART_SIZE)
    sizes = [
        _side_by_side(recipe.sampling, training),
        _side_by_side(eval_sampling(asked), held_out),
    ]
    prompts, rows, longest = max(sizes, key=lambda size: size[1] * (longest_prompt + size[2]))
    tokens = rows * (longest_prompt + longest)
    prefill = PackedSize(prompts * longest_prompt, prompts, longest_prompt, 0)
    cache = cache_bytes(shape, arithmetic, tokens)
    # A layer's cache grows into a new copy; older transformers repeat it for heads that share it.
    attention = cache // shape.layers + 2 * tokens * shape.queries * arithmetic.width
    return {
        "reading prompts": {
            f"one layer of {prompts:,} prompts": pass_bytes(shape, arithmetic, prefill)
        },
        "sampling": {
            f"KV cache of {rows:,} completions": cache,
            "one layer's attention": attention,
            "logits of one token each, 4 buffers": 4 * rows * shape.vocabulary * FLOAT32,
        },
    }


def _side_by_side(sampling: SamplingSettings, prompts: int) -> tuple[int, int, int]:
    """Prompts and completions that are decoded at once, and the longest completion."""
    rows = min(sampling.max_rows, prompts * sampling.n)
    return ceil(rows / sampling.n), rows, sampling.max_tokens


def _updates(phase: str) -> bool:
    return phase.startswith("update")


def _update_passes(recipe: Recipe, shape: ModelShape) -> Passes:
    """How an update is cut up: its optimizer steps, and the micro-batches of each."""
    splits = min(recipe.train.minibatches, prompts_per_step(recipe))
    prompts = ceil(prompts_per_step(recipe) / splits)
    rows = _micro_batch(recipe, prompts, _bilateral_tokens(recipe, shape)).rows
    return Passes(recipe.train.epochs * splits, ceil(prompts * recipe.sampling.n / rows))


def _passes(
    recipe: Recipe, shape: ModelShape, arithmetic: Arithmetic, sharded: bool
) -> dict[str, Parts]:
    """The phases of scoring and of an update, one micro-batch after another."""
    settings, step = recipe.train, prompts_per_step(recipe)
    own, peer = _bilateral_tokens(recipe, shape), _peer_tokens(recipe)
    scored = _micro_batch(recipe, min(step, settings.part_size), own)
    trained = _micro_batch(recipe, ceil(step / min(settings.minibatches, step)), own)
    kept = _gathered(shape) if sharded else {}
    kept |= {
        "activations of one micro-batch": activation_bytes(
            shape, arithmetic, trained, settings.gradient_checkpointing
        )
    }
    buffers = 3 if arithmetic.width == FLOAT32 else 4
    chunk = min(settings.head_chunk_tokens, trained.rows * trained.completion)
    scored_logits = _logits(shape, chunk, buffers)
    distills = recipe.method.distillation.divergence_spec is not None
    trained_logits = _logits(shape, chunk, buffers + 2 * distills)
    if distills:  # what the teacher says of a micro-batch is held while the policy reads it
        states = trained.rows * trained.completion * shape.hidden * FLOAT32
        kept |= {"hidden states of the teacher": states}
    layer = {"one layer of one micro-batch": pass_bytes(shape, arithmetic, scored)}
    phases: dict[str, Parts] = {"scoring": {**layer, **scored_logits}}
    if "importance_grad" in recipe.method.needs:
        phases["influence on the answer"] = {
            "activations of one scored micro-batch": activation_bytes(
                shape, arithmetic, scored, settings.gradient_checkpointing
            )
        }
    if distills and peer:  # as many rows as the policy's, each under a longer prompt
        length = trained.prompt + peer + trained.completion
        read = PackedSize(trained.rows * length, trained.rows, trained.prompt + peer,
                          trained.completion)  # fmt: skip
        phases["update, teacher"] = {
            **kept, "one layer of the teacher's reading": pass_bytes(shape, arithmetic, read)
        }  # fmt: skip
    return phases | {
        "update, output head": {**kept, **_head_gradient(shape, 1), **trained_logits},
        "update, backward pass": {**kept, **_head_gradient(shape, 2)},
    }


def _gathered(shape: ModelShape) -> Parts:
    """Whole weights and their gradients that a rank has of others at a time."""
    root = shape.parameters - shape.blocks
    return {
        "embeddings, head and last norm, gathered": 2 * root * FLOAT32,
        "two blocks, gathered": 2 * 2 * shape.block * FLOAT32,
    }


def _head_gradient(shape: ModelShape, times: int) -> Parts:
    """A gradient of the output head's weight; a frozen one has none."""
    if shape.adapter is not None:
        return {}
    return {"gradient of the output head" + ", twice" * (times - 1): times * _embedding(shape)}


def _logits(shape: ModelShape, chunk: int, buffers: int) -> Parts:
    name = f"logits of one chunk of {chunk:,} tokens, {buffers} buffers"
    return {name: buffers * chunk * shape.vocabulary * FLOAT32}


def _bilateral_tokens(recipe: Recipe, shape: ModelShape) -> int:
    """Tokens of opposite completions before each completion, at most."""
    conditioning = recipe.method.conditioning
    if not isinstance(conditioning, Bilateral):
        return 0
    context = conditioning.context_tokens or shape.context
    free = context - recipe.data.max_prompt_tokens - recipe.sampling.max_tokens
    others = (recipe.sampling.n - 1) * recipe.sampling.max_tokens
    return max(0, min(int(conditioning.share * free), others))


def _peer_tokens(recipe: Recipe) -> int:
    """Tokens of the completion that a teacher is told before each completion, at most."""
    if not recipe.method.told_by_peers:
        return 0
    longest = recipe.method.teacher.max_prompt_tokens - recipe.data.max_prompt_tokens
    return max(0, min(recipe.sampling.max_tokens, longest))


def _micro_batch(recipe: Recipe, prompts: int, own: int) -> PackedSize:
    """The largest batch that the budget of tokens allows of so many prompts' completions; with
    `own` tokens before each completion no prompt is shared."""
    completion, n = recipe.sampling.max_tokens, recipe.sampling.n
    prompt = recipe.data.max_prompt_tokens + own
    shared = 1 if own else n
    whole = prompts * n * (prompt / shared + completion)
    tokens = int(min(whole, max(recipe.train.microbatch_tokens, prompt + completion)))
    rows = min(prompts * n, max(1, int(tokens / (prompt / shared + completion))))
    return PackedSize(tokens, rows, prompt, completion)


def _embedding(shape: ModelShape) -> int:
    return shape.vocabulary * shape.hidden * FLOAT32
