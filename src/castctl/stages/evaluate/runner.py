"""Evaluate a model on held-out problems with the stages of training, and the same grader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.data.benchmarks import RENDERING, resolve, task_source
from castctl.data.templates import PromptTemplate
from castctl.engines import Engine
from castctl.errors import UserError
from castctl.progress import Progress
from castctl.recipe.recipe import DataSettings, Recipe, SamplingSettings
from castctl.recipe.split import holds_out, task_of
from castctl.recipe.task import is_task_file, read_task
from castctl.runs.prompts import prepare_held_out, prompt_lengths, usable_prompts
from castctl.runs.run import Run
from castctl.shards.columns import completion_lengths
from castctl.shards.part import content_hash, write_json
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.summary import summarise
from castctl.stages.rollout import part_count, rollout_step
from castctl.stages.score.rewards import score_rewards
from castctl.verify.judge import grader_name
from castctl.verify.pool import CheckPool
from castctl.versions import library_versions

PART_SIZE = 32
"""Problems in one part of an evaluation."""


def eval_sampling(recipe: Recipe) -> SamplingSettings:
    """How an evaluation samples: `eval.k` completions with the rollouts' stops."""
    settings = recipe.eval
    return SamplingSettings(
        n=settings.k,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        presence_penalty=settings.presence_penalty,
        repetition_penalty=settings.repetition_penalty,
        max_tokens=settings.max_tokens or recipe.sampling.max_tokens,
        stop=recipe.sampling.stop,
        max_rows=recipe.sampling.max_rows,
    )


class Asking(Protocol):
    """What puts a problem to a model."""

    @property
    def version(self) -> str:
        """A digest of all that shapes what is asked."""

    @property
    def date(self) -> str | None:
        """The day that is written into prompts; None where none is."""


T = TypeVar("T", bound=Asking)


@dataclass(frozen=True)
class Posed(Generic[T]):
    """A task's problems, as a model is asked them."""

    data: DataSettings
    template: T
    prompts: pa.Table
    lengths_P: NDArray[np.int64] | None
    """Tokens of each prompt; None where the model's tokenizer is a server's."""
    revision: str | None
    """Commit of a hub data set; None for a file."""


def pose(
    run: Run, tokenizer: Any, progress: Progress, file: str | None = None
) -> Posed[PromptTemplate]:
    """The problems of the recipe's task, or those in a `file` of it; of `held-out` those that the
    run keeps from training.

    Raises `UserError` where they cannot be read and where one of them cannot be posed: an
    evaluation leaves none out.
    """
    recipe = run.recipe
    if holds_out(recipe):
        prompts = prepare_held_out(run, tokenizer, progress).slice(0, recipe.eval.limit)
        revision = (run.manifest.get("data") or {}).get("revision")
        data = recipe.data.model_copy(update={"limit": recipe.eval.limit})
        template = PromptTemplate(tokenizer, data)
    else:
        data = task_data(recipe, file)
        template = PromptTemplate(tokenizer, data)
        prompts, revision = read_problems(recipe, data, progress)
    lengths_P = prompt_lengths(prompts, template, progress)
    return Posed(data, template, prompts, lengths_P, revision)


def task_data(recipe: Recipe, file: str | None) -> DataSettings:
    """The settings that load the recipe's task, or a `file` of it."""
    data = task_source(task_of(recipe), recipe.data, file)
    return data.model_copy(update={"limit": recipe.eval.limit})


def read_problems(
    recipe: Recipe, data: DataSettings, progress: Progress
) -> tuple[pa.Table, str | None]:
    """The problems that `data` names, and the commit of a hub data set; `UserError` where one of
    them has no answer."""
    read = usable_prompts(data, recipe.verifier, progress)
    if read.dropped.num_rows:
        raise UserError(
            f"{task_of(recipe)}: {read.dropped.num_rows} problems cannot be posed "
            f"({read.dropped['reason'][0]}); an evaluation leaves none out. Mend the data"
        )
    return read.table, read.revision


def require_room(posed: Posed[Any], recipe: Recipe, context: int) -> None:
    """Raise `UserError` where a prompt leaves less than the longest completion in a model's
    `context` of so many tokens: none is cut, none left out, and no completion ends sooner than
    another."""
    asked = eval_sampling(recipe).max_tokens
    assert posed.lengths_P is not None, "who knows a model's context knows its tokens"
    if not (lacking := int((posed.lengths_P + asked > context).sum())):
        return
    longest = int(posed.lengths_P.max())
    room = context - longest
    raise UserError(
        f"{task_of(recipe)}: {lacking} of {len(posed.lengths_P)} problems leave less than "
        f"{asked} tokens in the model's {context} positions (the longest prompt has {longest} "
        "tokens), and an evaluation neither cuts nor leaves out; "
        + (f"lower eval.max_tokens to {room} (--max-tokens {room})" if room > 0 else
           "take a model of a longer context, or problems without it")
    )  # fmt: skip


def evaluate(
    folder: StepFolder,
    recipe: Recipe,
    engine: Engine,
    tokenizer: Any,
    pool: CheckPool,
    posed: Posed[PromptTemplate],
    *,
    model_fingerprint: str,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Result | None:
    """Sample, judge and summarise `recipe.eval`; writes `results.json` beside the parts.

    Returns None where this shard is done but others are not. Raises `UserError` rather than report
    on fewer than `eval.k` samples of any problem.
    """

    def sample() -> Result:
        rollout_step(
            folder, posed.prompts, engine, posed.template, tokenizer, eval_sampling(recipe),
            seed=recipe.seed, part_size=PART_SIZE, model_fingerprint=model_fingerprint,
            progress=progress, shard=shard, overwrite=overwrite,
        )  # fmt: skip
        return {"model": model_fingerprint, "engine": engine.identity}

    return sampled(
        folder, recipe, posed, sample, tokenizer, pool,
        progress=progress, shard=shard, overwrite=overwrite,
    )  # fmt: skip


def sampled(
    folder: StepFolder,
    recipe: Recipe,
    posed: Posed[Any],
    sample: Callable[[], Result],
    tokenizer: Any | None,
    pool: CheckPool,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> Result | None:
    """`evaluate`, whoever samples: `sample` writes this shard's `rollouts/` and says who made them.

    `tokenizer` is that of their tokens, None where they have none.
    """
    parts = part_count(posed.prompts, PART_SIZE)
    file = folder.path / "results.json"
    if overwrite:
        file.unlink(missing_ok=True)  # until its samples are there again it speaks of others
    folder.keep_first(parts, shard, overwrite)
    makers = sample()
    score_rewards(
        folder, recipe.verifier.correctness, pool, tokenizer,
        progress=progress, shard=shard, overwrite=overwrite,
    )  # fmt: skip
    if len(folder.parts("rewards")) < parts:
        return None
    rollouts = folder.table("rollouts")
    truncated = np.array(rollouts["finish_reason"].to_pylist()) == "length"
    rewards, task = folder.table("rewards"), task_of(recipe)
    numbers = summarise(rewards, completion_lengths(rollouts), truncated, recipe.eval.k, pool, task)
    result = {
        "name": folder.path.parent.name,
        **_made(recipe, posed),
        **makers,
        "step": folder.step,
        **numbers,
    }
    write_json(file, result)
    return result


def _made(recipe: Recipe, posed: Posed[Any]) -> Result:
    """What an evaluation was made with, beside the model."""
    loads = resolve(posed.data)
    on_hub = posed.revision is not None
    task = task_of(recipe)
    return {
        "task": task,
        "task_file": read_task(task).said if is_task_file(task) else None,
        "data": {
            "path": posed.data.path,
            "hub_id": loads.path if on_hub else None,
            "config": loads.config if on_hub else None,
            "split": loads.split if on_hub else None,
            "revision": posed.revision,
            "limit": loads.limit,
            "content": content_hash(posed.prompts.select(["problem", "answer", "earlier"])),
        },
        "model_path": recipe.model.path,
        "template": posed.template.version,
        "date": posed.template.date,
        "prompt": posed.data.model_dump(mode="json", include=set(RENDERING)),
        "sampling": eval_sampling(recipe).model_dump(mode="json"),
        "seed": recipe.seed,
        "grader": grader_name(recipe.verifier),
        "libraries": library_versions(),
    }
