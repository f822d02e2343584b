"""Each stage of one step from a run's files alone: what the loop does, taken apart."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from castctl.data.templates import PromptTemplate
from castctl.engines import make_engine
from castctl.errors import UserError
from castctl.models.policy import Policy
from castctl.models.teacher import TeacherCopy
from castctl.progress import Progress
from castctl.recipe.trust import require_trust
from castctl.runs.prompts import prepare_prompts, prompts_of_step
from castctl.runs.run import Run
from castctl.shards.part import Metadata, content_hash, read_metadata
from castctl.shards.stage import WHOLE, Shard, StepFolder, agreed
from castctl.stages.names import called, model_names
from castctl.stages.policies import (
    PolicySource,
    budget_of,
    load_sampled,
    make_scorers,
    make_teacher,
    reference_of,
    site_of,
)
from castctl.stages.rollout import part_count, rollout_step
from castctl.stages.score.rewards import score_rewards
from castctl.stages.score.selection import EVERY, Selection
from castctl.stages.score.signals import check_signal_names, score_signals
from castctl.stages.train.batch import TRAINED_FROM, read_batch
from castctl.stages.train.checkpoint import (
    load_state,
    load_teacher,
    remove_unfinished,
    save_checkpoint,
)
from castctl.stages.train.provenance import STATE_FILE, provenance_of
from castctl.stages.train.state import new_state
from castctl.stages.train.update import UpdateStats, update
from castctl.verify.judge import judging_pool

log = logging.getLogger(__name__)

Given = ParamSpec("Given")


def _beside_others(
    stage: Callable[Concatenate[Run, Given], None],
) -> Callable[Concatenate[Run, Given], None]:
    """A stage whose processes write parts of one step side by side, but not beside a loop."""

    @functools.wraps(stage)
    def locked(run: Run, *given: Given.args, **named: Given.kwargs) -> None:
        with run.beside_others():
            stage(run, *given, **named)

    return locked


@_beside_others
def rollout_stage(
    run: Run,
    step: int,
    source: PolicySource,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Write `rollouts/` of a step."""
    recipe = run.recipe
    policy = load_sampled(run, source)
    tokenizer = policy.model.tokenizer
    template = PromptTemplate(tokenizer, recipe.data)
    prompts = prompts_of_step(prepare_prompts(run, tokenizer, progress), run, step)
    folder = run.step(step)
    folder.keep_first(part_count(prompts, recipe.train.part_size), shard, overwrite)
    site = site_of(run, source, shard)
    with contextlib.closing(make_engine(recipe, policy, site)) as engine:
        rollout_step(
            folder, prompts, engine, template, tokenizer, recipe.sampling,
            seed=recipe.seed, part_size=recipe.train.part_size,
            model_fingerprint=source.fingerprint,
            progress=progress, shard=shard, overwrite=overwrite,
        )  # fmt: skip


@_beside_others
def score_stage(
    run: Run,
    step: int,
    source: PolicySource,
    wanted: Iterable[str] | None,
    *,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Write `rewards/` and `signals/` of a step: the `wanted` signals beside the policy's
    log-probs, or what the recipe trains with."""
    recipe = run.recipe
    require_trust(recipe.verifier)
    signals = set(recipe.signals if wanted is None else {"policy_logprobs", *wanted})
    check_signal_names(signals)
    temperature = sampled_temperature(run, step, shard=shard)
    folder = run.step(step)
    if not _sampled_by(run, folder, source) and wanted is None:
        signals |= {"policy_logprobs", "entropies"}
    policy = source.load(recipe.model)
    teacher = teacher_at(run, step, source, policy) if "teacher_logprobs" in signals else None
    reference = reference_of(run, policy) if "ref_logprobs" in signals else None
    with judging_pool(recipe.verifier) as pool:
        score_rewards(
            folder, recipe.verifier, pool, policy.model.tokenizer,
            progress=progress, shard=shard, overwrite=overwrite,
        )  # fmt: skip
    score_signals(
        folder, signals, make_scorers(recipe, source.fingerprint, policy, teacher, reference),
        temperature=temperature, budget=budget_of(recipe),
        selection=Selection.of(recipe) if wanted is None else EVERY,
        progress=progress, shard=shard, overwrite=overwrite,
    )  # fmt: skip


def _sampled_by(run: Run, folder: StepFolder, source: PolicySource) -> bool:
    """Whether the rollouts are known to be of the policy that scores them; warn of another's."""
    parts = folder.parts("rollouts")
    metadata = [read_metadata(folder.part_path("rollouts", part), "rollouts") for part in parts]
    sampler = agreed(metadata, "model", source.fingerprint)
    if sampler != source.fingerprint:
        names = model_names(run)
        log.warning(
            "%s was sampled by %s, and is scored with %s: its ratios divide by a policy that did "
            "not sample it", folder.path, called(sampler, names),
            called(source.fingerprint, names),
        )  # fmt: skip
    return all((made or {}).get("model") == source.fingerprint for made in metadata)


def teacher_at(run: Run, step: int, source: PolicySource, policy: Policy) -> TeacherCopy:
    """The teacher as it scores `step`: restored from the checkpoint, then refreshed if due."""
    settings = run.recipe.method.teacher
    if settings.kind == "none":
        raise UserError(
            f"{run.recipe.method.name} has no teacher; add --method cast or set method.teacher.kind"
        )
    teacher = make_teacher(run.recipe, policy, step)
    if step > 0:
        load_teacher(source.folder, teacher)
    teacher.refresh(step)
    return teacher


def train_stage(
    run: Run, step: int, source: PolicySource, overwrite: bool
) -> tuple[Path, UpdateStats | None]:
    """One update from a shaped step; the checkpoint of the next step and the update's numbers.

    Weights, optimizer and teacher are those of the step's checkpoint; where the source is
    none, the optimizer is fresh. A checkpoint made alike is kept, without numbers. Raises `Taken`
    where the run has another writer.
    """
    with run.alone() as held:
        return _train_stage(held, step, source, overwrite)


def _train_stage(
    run: Run, step: int, source: PolicySource, overwrite: bool
) -> tuple[Path, UpdateStats | None]:
    remove_unfinished(run)
    sampled_temperature(run, step, "signals")
    for warning in run.recipe.check_training():
        log.warning("%s", warning)
    batch = read_batch(run.step(step), run.recipe.method, source.fingerprint)
    provenance = _update_provenance(run, step, source)
    there = run.checkpoint(step + 1)
    if there.exists() and not overwrite:
        if provenance_of(there) == provenance:
            return there, None
        raise UserError(
            f"{there} is there, not known to be of this update; add --overwrite to train it again"
        )
    state = new_state(run, source.load(run.recipe.model), step)
    if (source.folder / STATE_FILE).is_file():
        load_state(source.folder, state.teacher, state.optimizer)
    elif step > 0:
        load_teacher(source.folder, state.teacher)  # which says that there is none
    state.teacher.refresh(step)
    stats = update(state.policy, state.teacher.model, state.optimizer, batch, run.recipe, step)
    state.teacher.follow()
    return save_checkpoint(run, step + 1, state, provenance), stats


def _update_provenance(run: Run, step: int, source: PolicySource) -> Metadata:
    """What decides an update: its shards, the weights it starts from, and its settings."""
    folder, recipe = run.step(step), run.recipe
    decisive: dict[str, Any] = {
        "seed": True,
        "model": {"dtype"},
        "sampling": {"temperature", "max_tokens"},
        "method": True,
        "optimizer": True,
        "train": {"steps", "epochs", "minibatches", "microbatch_tokens", "head_chunk_tokens"},
    }
    return {
        "model": source.fingerprint,
        "settings": recipe.model_dump(mode="json", include=decisive),
        "inputs": {stage: content_hash(folder.table(stage)) for stage in TRAINED_FROM},
    }


def sampled_temperature(run: Run, step: int, *others: str, shard: Shard = WHOLE) -> float:
    """The temperature the rollouts were sampled at; the recipe's where they do not say.

    Log-probs at another temperature would belong to another distribution, so a contradiction
    is refused, with `others`, stages made from the rollouts, as well.
    """
    folder, asked = run.step(step), run.recipe.sampling.temperature
    folder.require_parts("rollouts", "run `castctl rollout` first", shard)
    for stage in ("rollouts", *others):
        paths = [folder.part_path(stage, part) for part in folder.parts(stage)]
        found = float(agreed((read_metadata(p, stage) for p in paths), "temperature", asked))
        if found != asked:
            raise UserError(
                f"{folder.path} was {'sampled' if stage == 'rollouts' else 'scored'} at "
                f"temperature {found:g}, but {asked:g} is asked for; "
                f"leave --temperature out, or set sampling.temperature={found:g}"
            )
    if asked == 0:
        raise UserError(f"{folder.path} was decoded greedily; there is no distribution to score")
    return asked
