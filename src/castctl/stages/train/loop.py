"""The loop: rollout, score, shape, train, the same functions as the stages, on the same folders."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from castctl.data.templates import PromptTemplate
from castctl.engines import make_engine
from castctl.engines.handover import weight_sums
from castctl.errors import UserError
from castctl.launcher import rank_of
from castctl.methods.baselines import ratio_margin
from castctl.models.loading import resolve_device
from castctl.progress import Beating, Progress
from castctl.ranks import ALONE, Ranks
from castctl.recipe.reader import dump_recipe
from castctl.recipe.split import task_of
from castctl.recipe.task import about
from castctl.runs.prompts import prepare_prompts, prompts_of_round, prompts_of_step
from castctl.runs.run import Run
from castctl.runs.trust import refuse_untrusted
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.stages.evaluate.results import Result, read_result, require_folder, task_name
from castctl.stages.evaluate.runner import PART_SIZE, evaluate, pose, require_room
from castctl.stages.groups import reward_groups
from castctl.stages.measures import measure_step
from castctl.stages.policies import (
    budget_of,
    load_trained,
    make_scorers,
    policy_at,
    policy_name,
    reference_of,
    site_of,
)
from castctl.stages.rollout import part_count, rollout_step
from castctl.stages.score.rewards import score_rewards
from castctl.stages.score.selection import Selection
from castctl.stages.score.signals import score_signals
from castctl.stages.shape import kept_groups, shape_step
from castctl.stages.train.batch import digest_of, read_batch
from castctl.stages.train.checkpoint import (
    load_state,
    prune_checkpoints,
    remove_unfinished,
    save_checkpoint,
)
from castctl.stages.train.metrics import OF_SCORING, Metrics, Row, tell_of_missing
from castctl.stages.train.outcome import Trained, best_step, trained
from castctl.stages.train.reference_kl import measure_reference
from castctl.stages.train.row import step_row, timed
from castctl.stages.train.schedule import evaluates_after, saves_after
from castctl.stages.train.state import new_state
from castctl.stages.train.trackers import NoTracker, start_tracker
from castctl.stages.train.update import update
from castctl.stages.train.zero_signals import warn_of_zero_rewards, warned_of_zero_gap
from castctl.verify.judge import judging_pool
from castctl.verify.pool import CheckPool

log = logging.getLogger(__name__)

SEEN_SECONDS = 120.0
"""How long a file system may take to show what another machine has written."""


def train(
    run: Run, progress: Progress, on_row: Callable[[Row], None], ranks: Ranks = ALONE
) -> Trained:
    """Train the run to its last step, from its newest checkpoint or from the start.

    `ranks` share its parts and micro-batches; rank 0 alone writes all but their parts.

    `on_row` is told each step's metrics. Interrupted at any instant and called again, it
    ends with the same weights and tables as if it had not been. Raises `Taken` where the run has
    another writer, or gets one.
    """
    require_folder(task_name(task_of(run.recipe)))
    if rank_of(os.environ).count != ranks.rank.count:
        raise UserError(
            "a launcher started several processes, and each would train the whole run; start this "
            "in one process, or train by `castctl train`"
        )
    run.recipe.require_parts_for(ranks.rank.count)
    ranks.patience = run.recipe.train.rank_timeout
    ranks.join(resolve_device(run.recipe.model.device))
    ranks.require_same("recipe", lambda: dump_recipe(run.recipe))
    with run.alone() if ranks.first else contextlib.nullcontext(run) as held:
        ranks.meet("the run")
        return _train(held, progress, on_row, ranks)


def _train(run: Run, progress: Progress, on_row: Callable[[Row], None], ranks: Ranks) -> Trained:
    settings = run.recipe.train
    refuse_untrusted(run)
    start = int(ranks.told("the checkpoint", str(max(run.checkpoints(), default=0))))
    ranks.first_does("the beginning", lambda: _begin(run))
    tracker = start_tracker(run) if ranks.first else NoTracker()
    state = "interrupted"
    try:
        with (
            judging_pool(run.recipe.verifier) as pool,
            contextlib.closing(_Loop(run, start, pool, progress, ranks)) as loop,
        ):
            if start == 0:
                tracker.log(loop.evaluate(0), 0)
            for step in range(start, settings.steps):
                row = loop.step(step)
                if evaluates_after(run.recipe, step + 1):
                    row |= loop.evaluate(step + 1)

                def tell(step: int = step, row: Row = row) -> None:
                    run.require_place()
                    loop.metrics.append(row)
                    tracker.log(row, step + 1)
                    tracker.show(run.step(step), step + 1)

                ranks.first_does("the step's numbers", tell)
                if saves_after(run.recipe, step + 1):
                    save_checkpoint(run, step + 1, loop.state, ranks=ranks)
                    ranks.first_does("the old", partial(_prune, run, step + 1))
                if ranks.first:
                    on_row(row)
            # Once more, where an interruption left some.
            ranks.first_does("the end", lambda: _prune(run, settings.steps))
        state = "finished"
    finally:
        tracker.close()
        _record_end(run, state, ranks)
    ranks.leave()
    return trained(run)


def _begin(run: Run) -> None:
    remove_unfinished(run)
    run.record(state="running", pid=os.getpid())


def _record_end(run: Run, state: str, ranks: Ranks) -> None:
    """Write down how training ended; where rank 0 was killed, another does."""
    if ranks.first:
        run.record(state=state)
    elif ranks.speaks:
        with contextlib.suppress(UserError), run.alone() as held:
            held.record(state=state)


def _prune(run: Run, last: int) -> None:
    if run.recipe.train.keep == "best_and_last":
        prune_checkpoints(run, {best_step(run, last), last})


class _Loop:
    """The models, prompts and folders of a run in training."""

    def __init__(
        self, run: Run, start: int, pool: CheckPool, progress: Progress, ranks: Ranks = ALONE
    ) -> None:
        recipe = run.recipe
        self.run, self.recipe, self.pool = run, recipe, pool
        self.asked = Run(run.path, about(recipe, task_of(recipe)))
        self.progress = Beating(progress, ranks.beat) if ranks.rank.several else progress
        self.ranks, self.shard = ranks, Shard(ranks.rank.index, ranks.rank.count)
        source = policy_at(run, start)
        self.name = source.fingerprint
        policy = load_trained(source, recipe, ranks)
        self.state = new_state(run, policy, start)
        if start > 0:
            load_state(run.checkpoint(start), self.state.teacher, self.state.optimizer)
        self.reference = reference_of(run, policy) if recipe.reads_reference else None
        self.tokenizer = policy.model.tokenizer
        self.template = PromptTemplate(self.tokenizer, recipe.data)
        self.prompts = ranks.first_begins(
            "the prompts", lambda: prepare_prompts(run, self.tokenizer, self.progress)
        )
        self.engine = make_engine(self.asked.recipe, policy, site_of(run, source, self.shard))
        self.metrics = Metrics(run.path / "metrics.parquet")
        self.metrics.rewind(start)
        ranks.first_does("the metrics", lambda: tell_of_missing(self.metrics, run, start))
        self._warned_of_gap = False
        self._sampled_tokens = 0  # of the step that is on

    def close(self) -> None:
        self.engine.close()

    def step(self, step: int) -> Row:
        """Run all stages of one step; its metrics."""
        self.run.require_place()
        folder = self.run.step(step)
        policy, teacher = self.state.policy, self.state.teacher
        seconds: dict[str, float] = defaultdict(float)
        waited = self.ranks.waited
        teacher.refresh(step)
        self._sampled_tokens = 0
        rounds = self._shaped_rounds(step, seconds)
        with timed(seconds, "reference_kl"):
            moved = measure_reference(
                folder, self.recipe, self.reference, self.shard, self.ranks.sums, self.progress
            )
        with timed(seconds, "train"):
            batch = read_batch(folder, self.recipe.method, self.name)
            self.ranks.require_same("batch", lambda: digest_of(batch))
            stats = update(
                policy, teacher.model, self.state.optimizer, batch, self.recipe, step, self.ranks
            )
            self.ranks.require_same("policy", lambda: str(weight_sums(policy, torch.float32)))
            teacher.follow()
        with timed(seconds, "sync"):
            synced = self.engine.sync()
            [tokens] = self.ranks.sums([np.array([self._sampled_tokens], np.float64)])
        self.name = policy_name(self.run, step + 1)
        self._sampled_tokens = int(tokens[0])
        if not self.ranks.first:
            return {}
        with timed(seconds, "measure"):
            measures = measure_step(folder)
            groups = reward_groups(folder.table("rewards")).correctness
            measures["ratio_margin"] = ratio_margin(groups, stats.ratio_R)
            measures["rounds"] = rounds
            speed = self._sampled_tokens / seconds["seconds_rollout"]
            measures["sampled_tokens_per_second"] = speed if self._sampled_tokens else None
            measures |= {**synced, **moved}
            if stats.reading is not None:
                measures |= stats.reading.measures(batch, self.recipe.method.correction)
        told = self._warned_of_gap or warned_of_zero_gap(self.recipe, step, measures)
        self._warned_of_gap = told  # once is enough
        warn_of_zero_rewards(self.recipe, self.metrics.rows, step, measures)
        row = step_row(step, measures, stats, seconds, policy.model.device)
        if self.ranks.rank.several:
            waited = self.ranks.waited - waited
            row |= {"ranks": self.ranks.rank.count, "wait_share": waited / row["seconds"]}
        return row

    def _shaped_rounds(self, step: int, seconds: dict[str, float]) -> int:
        """Roll out and score the step's prompts, and others in place of dropped groups as often as
        the method wants, and shape them; the number of rounds."""
        folder, method = self.run.step(step), self.recipe.method
        most = method.zero_variance.rounds
        prompts = prompts_of_step(self.prompts, self.run, step)
        wanted, taken, part = prompts.num_rows, prompts, 0
        if most == 1:
            count = part_count(prompts, self.recipe.train.part_size)
            self.ranks.first_does("the parts", lambda: folder.keep_first(count, WHOLE, False))
        for round in range(1, most + 1):
            part = self._scored(step, prompts, part, seconds)
            missing = 0 if most == 1 else wanted - kept_groups(folder, range(part), method)
            if missing <= 0:
                break
            prompts = prompts_of_round(self.prompts, taken, self.run, step, round)
            if round == most or not prompts.num_rows:
                tried = f"{most} rounds" if round == most else "every prompt of the data"
                log.warning("step %d: %d kept groups too few after %s", step + 1, missing, tried)
                break
            taken = pa.concat_tables([taken, prompts])
        if most > 1:
            self.ranks.first_does("the parts", lambda: folder.keep_first(part, WHOLE, False))
        with timed(seconds, "shape"):
            shape_step(
                folder, method, longest=self.recipe.sampling.max_tokens, seed=self.recipe.seed,
                progress=self.progress, shard=self.shard,
            )  # fmt: skip
            self.ranks.meet("the advantages")
            self._await_parts(folder, "advantages", part)
        return round

    def _scored(
        self, step: int, prompts: pa.Table, first_part: int, seconds: dict[str, float]
    ) -> int:
        """Roll out these prompts, then score all of the step; the next part's number."""
        folder = self.run.step(step)
        settings, sampling = self.recipe.train, self.recipe.sampling
        with timed(seconds, "rollout"):
            rolled = rollout_step(
                folder, prompts, self.engine, self.template, self.tokenizer, sampling,
                seed=self.recipe.seed, part_size=settings.part_size, first_part=first_part,
                model_fingerprint=self.name, progress=self.progress, shard=self.shard,
            )  # fmt: skip
            self.engine.rest()
            self.ranks.meet("the rollouts")
        self._sampled_tokens += rolled.tokens
        with timed(seconds, "verify"):
            score_rewards(
                folder, self.recipe.verifier, self.pool, self.tokenizer,
                progress=self.progress, shard=self.shard,
            )  # fmt: skip
        with timed(seconds, "score"):
            passes = score_signals(
                folder, self.recipe.signals,
                make_scorers(
                    self.recipe, self.name, self.state.policy, self.state.teacher, self.reference
                ),
                temperature=sampling.temperature, budget=budget_of(self.recipe),
                selection=Selection.of(self.recipe), progress=self.progress, shard=self.shard,
            )  # fmt: skip
            self.ranks.meet("the scores")
            for stage in ("rewards", "signals"):
                self._await_parts(folder, stage, rolled.next_part)
        for pass_name, spent in passes.items():
            seconds[f"{OF_SCORING}{pass_name}"] += spent
        return rolled.next_part

    def _await_parts(self, folder: StepFolder, stage: str, count: int) -> None:
        """Wait until this machine sees the parts that all ranks have written: what a network's file
        system lists may be a minute old."""
        until = time.monotonic() + SEEN_SECONDS
        while self.ranks.rank.several and len(folder.parts(stage)) < count:
            if time.monotonic() > until:
                raise UserError(
                    f"{folder.path} has {len(folder.parts(stage))} of {count} parts of {stage} for "
                    f"rank {self.ranks.rank.index}; do all machines see one file system?"
                )
            time.sleep(0.1)

    def evaluate(self, step: int) -> Row:
        """Evaluate the policy at the start of `step`; avg@k and its interval, for the metrics."""
        asked = self.asked
        posed = self.ranks.first_begins(
            "the problems", lambda: pose(asked, self.tokenizer, self.progress)
        )
        require_room(posed, asked.recipe, self.state.policy.model.context_tokens)
        folder = self.run.eval_folder(task_name(task_of(asked.recipe)), step)

        def work(shard: Shard) -> Result | None:
            return evaluate(
                folder, asked.recipe, self.engine, self.tokenizer, self.pool, posed,
                model_fingerprint=self.name, progress=self.progress, shard=shard,
            )  # fmt: skip

        result = work(self.shard)
        self.engine.rest()
        if self.ranks.rank.several:
            self.ranks.meet("the evaluation's parts")
            self._await_parts(folder, "rewards", part_count(posed.prompts, PART_SIZE))
            self.ranks.first_does("the evaluation", lambda: work(WHOLE))
            result = read_result(folder)
        assert result is not None, "all parts are there"
        return {f"eval_{key}": value for key, value in result["avg"].items()}
