"""The loop: rollout, score, shape, train, the same functions as the stages, on the same folders."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import torch

from castctl.data.templates import PromptTemplate
from castctl.engines import make_engine
from castctl.errors import UserError
from castctl.methods.baselines import ratio_margin
from castctl.models.policy import Policy
from castctl.progress import Progress
from castctl.recipe.split import task_of
from castctl.runs.prompts import prepare_prompts, prompts_of_round, prompts_of_step
from castctl.runs.run import Run
from castctl.runs.trust import refuse_untrusted
from castctl.shards.stage import WHOLE
from castctl.stages.evaluate.results import Result, read_result, require_folder, task_name
from castctl.stages.evaluate.runner import evaluate, pose, require_room
from castctl.stages.measures import Measures, measure_step
from castctl.stages.policies import (
    budget_of,
    make_scorers,
    make_teacher,
    policy_at,
    policy_name,
    reference_of,
    site_of,
)
from castctl.stages.rollout import part_count, rollout_step
from castctl.stages.score.rewards import score_rewards
from castctl.stages.score.signals import score_signals
from castctl.stages.shape import kept_groups, reward_groups, shape_step
from castctl.stages.train.batch import read_batch
from castctl.stages.train.checkpoint import (
    TrainState,
    load_state,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
)
from castctl.stages.train.metrics import OF_SCORING, Metrics, Row, tell_of_missing
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.schedule import evaluates_after, saves_after
from castctl.stages.train.trackers import start_tracker
from castctl.stages.train.update import UpdateStats, update
from castctl.verify.judge import judging_pool
from castctl.verify.pool import CheckPool

log = logging.getLogger(__name__)

ZERO_GAP = 1e-7
"""Nats of root mean square below which a gap is numerically zero."""


@dataclass(frozen=True)
class Trained:
    """What a finished run has to show: its evaluations before and after, and the best step."""

    before: Result
    after: Result
    best_step: int


def train(run: Run, progress: Progress, on_row: Callable[[Row], None]) -> Trained:
    """Train the run to its last step, from its newest checkpoint or from the start.

    `on_row` is told each step's metrics. Interrupted at any instant and called again, it
    ends with the same weights and tables as if it had not been. Raises `Taken` where the run has
    another writer, or gets one.
    """
    require_folder(task_name(task_of(run.recipe)))
    with run.alone() as held:
        return _train(held, progress, on_row)


def _train(run: Run, progress: Progress, on_row: Callable[[Row], None]) -> Trained:
    settings = run.recipe.train
    refuse_untrusted(run)
    remove_unfinished(run)
    start = max(run.checkpoints(), default=0)
    run.record(state="running", pid=os.getpid())
    tracker = start_tracker(run)
    state = "interrupted"
    try:
        with (
            judging_pool(run.recipe.verifier) as pool,
            contextlib.closing(_Loop(run, start, pool, progress)) as loop,
        ):
            if start == 0:
                loop.evaluate(0)
            for step in range(start, settings.steps):
                row = loop.step(step)
                evaluates = evaluates_after(run.recipe, step + 1)
                if evaluates:
                    result = loop.evaluate(step + 1)
                    row |= {f"eval_{key}": value for key, value in result["avg"].items()}
                run.require_place()
                loop.metrics.append(row)
                tracker.log(row, step)
                if saves_after(run.recipe, step + 1):
                    save_checkpoint(run, step + 1, loop.state)
                    _prune(run, step + 1)
                on_row(row)
            _prune(run, settings.steps)  # once more, where an interruption left some
        state = "finished"
    finally:
        tracker.close()
        run.record(state=state)
    before, after = _result(run, 0), _result(run, settings.steps)
    return Trained(before, after, best_step(run, settings.steps))


def _prune(run: Run, last: int) -> None:
    if run.recipe.train.keep == "best_and_last":
        prune_checkpoints(run, {best_step(run, last), last})


def best_step(run: Run, until: int) -> int:
    """The step, up to `until`, at whose start the evaluation was best; the earliest of equals."""
    task = task_name(task_of(run.recipe))
    results = {step: read_result(run.eval_folder(task, step)) for step in range(until + 1)}
    means = {step: result["avg"]["mean"] for step, result in results.items() if result}
    if not means:
        raise UserError(f"{run.path} has no evaluation of {task} to find its best step by")
    return max(means, key=lambda step: means[step])


def _result(run: Run, step: int) -> Result:
    folder = run.eval_folder(task_name(task_of(run.recipe)), step)
    result = read_result(folder)
    if result is None:
        raise UserError(f"{folder.path} has no results; run `castctl eval --run {run.path}`")
    return result


def new_state(run: Run, policy: Policy, step: int) -> TrainState:
    """Fresh teacher and optimizer around a policy."""
    settings = run.recipe.train
    updates = settings.steps * settings.epochs * settings.minibatches
    if settings.gradient_checkpointing:
        policy.model.recompute_activations()
    return TrainState(
        policy,
        make_teacher(run.recipe, policy, step),
        Optimizer(policy.trained(), run.recipe.optimizer, updates),
    )


class _Loop:
    """The models, prompts and folders of a run in training."""

    def __init__(self, run: Run, start: int, pool: CheckPool, progress: Progress) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.pool, self.progress = run, recipe, pool, progress
        source = policy_at(run, start)
        self.name = source.fingerprint
        policy = source.load(recipe.model)
        self.state = new_state(run, policy, start)
        if start > 0:
            load_state(run.checkpoint(start), self.state.teacher, self.state.optimizer)
        needs_reference = "ref_logprobs" in recipe.method.needs
        self.reference = reference_of(run, policy) if needs_reference else None
        self.tokenizer = policy.model.tokenizer
        self.template = PromptTemplate(self.tokenizer, recipe.data)
        self.prompts = prepare_prompts(run, self.tokenizer, progress)
        self.engine = make_engine(recipe, policy, site_of(run, source))
        self.metrics = Metrics(run.path / "metrics.parquet")
        self.metrics.rewind(start)
        tell_of_missing(self.metrics, run, start)
        self._warned_of_gap = False
        self._sampled_tokens = 0  # of the step that is on

    def close(self) -> None:
        self.engine.close()

    def step(self, step: int) -> Row:
        """Run all stages of one step; its metrics."""
        self.run.require_place()
        folder = self.run.step(step)
        model, teacher = self.state.policy.model, self.state.teacher
        seconds: dict[str, float] = defaultdict(float)
        teacher.refresh(step)
        self._sampled_tokens = 0
        rounds = self._shaped_rounds(step, seconds)
        with _timed(seconds, "train"):
            batch = read_batch(folder, self.recipe.method)
            stats = update(model, teacher.model, self.state.optimizer, batch, self.recipe, step)
            teacher.follow()
        with _timed(seconds, "sync"):
            synced = self.engine.sync()
        self.name = policy_name(self.run, step + 1)
        with _timed(seconds, "measure"):
            measures = measure_step(folder)
            rewards = folder.table("rewards")
            measures["ratio_margin"] = ratio_margin(reward_groups(rewards), stats.ratio_R)
            measures["rounds"] = rounds
            speed = self._sampled_tokens / seconds["seconds_rollout"]
            measures["sampled_tokens_per_second"] = speed if self._sampled_tokens else None
            measures |= synced
        self._warn_of_zero_gap(step, measures)
        self._warn_of_zero_rewards(step, measures)
        return _row(step, measures, stats, seconds, model.device)

    def _shaped_rounds(self, step: int, seconds: dict[str, float]) -> int:
        """Roll out, score and shape the step's prompts, and others in place of dropped groups as
        often as the method wants; the number of rounds."""
        folder, most = self.run.step(step), self.recipe.method.zero_variance.rounds
        prompts = prompts_of_step(self.prompts, self.run, step)
        wanted, taken, part = prompts.num_rows, prompts, 0
        if most == 1:
            folder.keep_first(part_count(prompts, self.recipe.train.part_size), WHOLE, False)
        for round in range(1, most + 1):
            part = self._shaped(step, prompts, part, seconds)
            missing = 0 if most == 1 else wanted - kept_groups(folder, range(part))
            if missing <= 0:
                break
            prompts = prompts_of_round(self.prompts, taken, self.run, step, round)
            if round == most or not prompts.num_rows:
                tried = f"{most} rounds" if round == most else "every prompt of the data"
                log.warning("step %d: %d kept groups too few after %s", step + 1, missing, tried)
                break
            taken = pa.concat_tables([taken, prompts])
        if most > 1:
            folder.keep_first(part, WHOLE, False)
        return round

    def _shaped(
        self, step: int, prompts: pa.Table, first_part: int, seconds: dict[str, float]
    ) -> int:
        """Roll out these prompts, then score and shape all of the step; the next part's number."""
        folder = self.run.step(step)
        settings, sampling, method = self.recipe.train, self.recipe.sampling, self.recipe.method
        with _timed(seconds, "rollout"):
            rolled = rollout_step(
                folder, prompts, self.engine, self.template, self.tokenizer, sampling,
                seed=self.recipe.seed, part_size=settings.part_size, first_part=first_part,
                model_fingerprint=self.name, progress=self.progress,
            )  # fmt: skip
            self.engine.rest()
        self._sampled_tokens += rolled.tokens
        with _timed(seconds, "verify"):
            score_rewards(
                folder, self.recipe.verifier, self.pool, self.tokenizer, progress=self.progress
            )
        with _timed(seconds, "score"):
            passes = score_signals(
                folder, method.needs | {"entropies"},
                make_scorers(
                    self.recipe, self.name, self.state.policy, self.state.teacher, self.reference
                ),
                temperature=sampling.temperature, budget=budget_of(self.recipe),
                progress=self.progress,
            )  # fmt: skip
        for pass_name, spent in passes.items():
            seconds[f"{OF_SCORING}{pass_name}"] += spent
        with _timed(seconds, "shape"):
            shape_step(folder, method, longest=sampling.max_tokens, progress=self.progress)
        return rolled.next_part

    def evaluate(self, step: int) -> Result:
        """Evaluate the policy at the start of `step`."""
        posed = pose(self.run, self.tokenizer, self.progress)
        require_room(posed, self.recipe, self.state.policy.model.context_tokens)
        result = evaluate(
            self.run.eval_folder(task_name(task_of(self.recipe)), step), self.recipe,
            self.engine, self.tokenizer, self.pool, posed,
            model_fingerprint=self.name, progress=self.progress,
        )  # fmt: skip
        self.engine.rest()
        assert result is not None, "one process owns every part"
        return result

    def _warn_of_zero_rewards(self, step: int, measures: Measures) -> None:
        patience = self.recipe.train.warn_after_zero_rewards
        rewards = [*(row["reward_mean"] for row in self.metrics.rows), measures["reward_mean"]]
        streak = next((n for n, reward in enumerate(reversed(rewards)) if reward), len(rewards))
        if streak and streak % patience == 0:
            log.warning(
                "step %d: no completion of the last %d steps earned a reward; look at the "
                "completions and the verifier, or take easier problems",
                step + 1, streak,
            )  # fmt: skip

    def _warn_of_zero_gap(self, step: int, measures: Measures) -> None:
        """Say once why a teacher has nothing to tell; at first every teacher equals the policy."""
        spread = measures.get("gap_rms")
        if self._warned_of_gap or step == 0 or not isinstance(spread, float) or spread > ZERO_GAP:
            return
        self._warned_of_gap = True
        teacher = self.recipe.method.teacher
        why = {
            "current": "method.teacher.kind=current is the policy itself",
            "snapshot": f"the snapshot was renewed, as every {teacher.every} steps",
        }.get(teacher.kind, "the policy has not moved from its teacher; is optimizer.lr too low?")
        log.warning(
            "step %d: the teacher's gap is zero (RMS %.1e nats): %s. Tokens keep their base "
            "advantage in such a step; method.teacher.kind=ema or initial keeps a gap alive",
            step + 1, spread, why,
        )  # fmt: skip


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[f"seconds_{name}"] += time.perf_counter() - began


def _row(
    step: int,
    measures: Measures,
    stats: UpdateStats,
    seconds: dict[str, float],
    device: torch.device,
) -> Row:
    on_gpu = device.type == "cuda"
    peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else _peak_resident_bytes()
    return {
        "step": step,
        **measures,
        **stats.row(),
        **seconds,
        "seconds": sum(s for name, s in seconds.items() if not name.startswith(OF_SCORING)),
        "peak_memory_gb": peak_bytes / 2**30,
    }


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
