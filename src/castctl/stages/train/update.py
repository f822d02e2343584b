"""One step's update: optimizer steps over micro-batches of packed completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from castctl.errors import UserError
from castctl.methods.correction import Correction
from castctl.methods.objective import Objective, TokenStreams, token_losses
from castctl.methods.surrogate import token_scales
from castctl.models.head import TeacherSide, fused_loss, score_tokens
from castctl.models.language_model import LanguageModel
from castctl.models.packing import by_prompt, microbatches, pack
from castctl.models.policy import Policy
from castctl.ragged import offsets_of, row_of_value, take_rows
from castctl.ranks import ALONE, Ranks
from castctl.recipe.recipe import Recipe
from castctl.stages.score.sampler import refuse_apart
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.stats import Reading, UpdateStats


def update(
    policy: Policy,
    teacher: LanguageModel,
    optimizer: Optimizer,
    batch: TrainBatch,
    recipe: Recipe,
    step: int,
    ranks: Ranks = ALONE,
) -> UpdateStats:
    """Train on a step's completions; the weights and the optimizer move.

    `teacher` is who a distillation asks, the policy's own model where it is `current`.
    `train.epochs` passes, each split into `train.minibatches` optimizer steps by whole
    groups, in an order drawn from (seed, step, epoch). The loss of an optimizer step is
    normalised over its kept completions before anything is skipped or split, so the
    gradient does not depend on the micro-batches, nor on who of the `ranks` has which: gradients
    and statistics are summed, so that all decide alike. Without old log-probs in the batch they are
    those of the update's own passes. Raises `UserError` where a ratio could then be another than 1,
    when a token is unknown, when such log-probs are not the sampler's, and when the loss or the
    gradient is not finite, before the weights are touched.
    """
    if batch.old_logprobs is None:
        _require_ratios_of_one(batch, recipe, step)
    for kind, ids in batch.token_ids.items():
        policy.model.refuse_unknown_tokens(kind, ids)
    policy.model.refuse_long_rows(batch.prompts, batch.completions)
    stats = UpdateStats(np.ones(len(batch.prompts)))
    if recipe.method.distillation.kind != "none":
        stats.distilled_tokens = 0
    if batch.old_logprobs is None:
        stats.reading = Reading.of(int(batch.offsets[-1]))
    with policy.learner.recomputing():
        for number, rows in enumerate(_minibatches(batch, recipe, step)):
            optimizer.zero_grad()
            moved = number > 0 or not batch.on_policy
            own = stats.fresh()
            own.losses = [
                _accumulate(policy, teacher, batch, micro, recipe, own, moved)
                for micro in _own(list(_microbatches(batch, rows, recipe)), batch, policy, ranks)
            ]
            if own.reading is not None and batch.sampler_logprobs is not None:
                refuse_apart(
                    own.reading.logprobs_N, batch.sampler_logprobs, batch.offsets, batch.sampled_by,
                    policy.model.dtype, f"step {step + 1}",
                )  # fmt: skip
            total = stats.include(own, ranks)
            if not policy.in_shares:
                ranks.sum_gradients(optimizer.gradients)
            with ranks.exchange("the gradient's norm"):
                norm = optimizer.clip(recipe.optimizer.max_grad_norm)
            if not np.isfinite(total) or not np.isfinite(norm):
                raise UserError(
                    f"step {step + 1}: loss {total:g}, gradient norm {norm:g}; stopped before the "
                    f"weights were touched. Lower optimizer.lr, or look at step-{step:05d}"
                )
            stats.lr = optimizer.lr
            optimizer.step()
            policy.gather()
            stats.losses.append(total)
            stats.grad_norms.append(norm)
    return stats


def _require_ratios_of_one(batch: TrainBatch, recipe: Recipe, step: int) -> None:
    why = None
    if not batch.on_policy:
        why = "its rollouts are not known to be of the weights that train"
    elif recipe.updates > 1:
        why = f"train.epochs x train.minibatches gives {recipe.updates} updates"
    if why:
        raise UserError(
            f"step-{step:05d} has no policy_logprobs, which ratios divide by, and {why}; run "
            "`castctl score --signals policy_logprobs,entropies` on it, then `castctl shape "
            "--overwrite`"
        )


def _minibatches(batch: TrainBatch, recipe: Recipe, step: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each optimizer step, whole groups together, in row order."""
    count = int(batch.group_of_row.max(initial=-1)) + 1
    for epoch in range(recipe.train.epochs):
        order = np.random.default_rng([recipe.seed, step, epoch]).permutation(count)
        for groups in np.array_split(order, min(recipe.train.minibatches, max(count, 1))):
            yield np.flatnonzero(np.isin(batch.group_of_row, groups))


@dataclass(frozen=True)
class _MicroBatch:
    """Rows of one forward pass, their tokens' shares of the loss, and which are distilled.

    One that does not count has no gradient either, and keeps a rank in step with the others.
    """

    rows: NDArray[np.int64]
    scales: NDArray[np.float32]
    distilled_R: NDArray[np.bool_]
    counts: bool = True

    def muted(self, length: int) -> _MicroBatch:
        """Its first row, of so many tokens, without a share of the loss."""
        return _MicroBatch(
            self.rows[:1], np.zeros(length, np.float32), np.zeros(1, np.bool_), False
        )


def _own(
    micros: list[_MicroBatch], batch: TrainBatch, policy: Policy, ranks: Ranks
) -> list[_MicroBatch]:
    """This rank's micro-batches: as many as every rank's, where the ranks walk in step."""
    own = list(ranks.mine(micros))
    if policy.in_shares and len(own) * ranks.rank.count < len(micros):
        length = int(np.diff(batch.offsets)[micros[0].rows[0]])
        own.append(micros[0].muted(length))
    return own


def _microbatches(
    batch: TrainBatch, rows: NDArray[np.int64], recipe: Recipe
) -> Iterator[_MicroBatch]:
    """Rows that have a gradient, by token budget; equal prompts stand together."""
    objective = recipe.method.objective
    kept = rows[batch.kept_R[rows]]
    lengths = np.diff(batch.offsets)[kept]
    aggregation = objective.surrogate.aggregation
    scales = token_scales(aggregation, lengths, recipe.sampling.max_tokens)
    scale_offsets = offsets_of(lengths)
    moved = np.zeros(len(kept), np.bool_)
    if objective.surrogate.trains:
        moved = _any_nonzero(batch.advantages * batch.loss_weights, batch.offsets, kept)
    distilled = np.zeros(len(kept), np.bool_)
    if batch.distill_weights is not None and objective.distillation.kind != "none":
        distilled = _any_nonzero(batch.distill_weights, batch.offsets, kept)
    active = (moved | distilled | objective.every_token) & (lengths > 0)
    chosen = np.flatnonzero(active)
    chosen = chosen[by_prompt([batch.prompts[r] for r in kept[chosen]])]
    prompts = [batch.prompts[r] for r in kept[chosen]]
    completions = [batch.completions[r] for r in kept[chosen]]
    for micro in microbatches(prompts, completions, recipe.train.microbatch_tokens):
        shares, _ = take_rows(scales, scale_offsets, chosen[micro])
        flags = distilled[chosen[micro]]
        yield _MicroBatch(kept[chosen[micro]], shares.astype(np.float32), flags)


def _any_nonzero(
    flat: NDArray[np.float32], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether a row has a value other than 0, for each of `rows`."""
    values, chosen = take_rows(flat, offsets, rows)
    owner = row_of_value(chosen)
    return np.bincount(owner[values != 0], minlength=len(rows)) > 0


def _accumulate(
    policy: Policy,
    teacher: LanguageModel,
    batch: TrainBatch,
    micro: _MicroBatch,
    recipe: Recipe,
    stats: UpdateStats,
    moved: bool,
) -> float:
    """Add a micro-batch's gradient; its loss. `moved` is whether a ratio may differ from 1."""
    objective, rows = recipe.method.objective, micro.rows
    packed = pack([batch.prompts[r] for r in rows], [batch.completions[r] for r in rows])
    surrogate, device = objective.surrogate, policy.learner.device
    streams = _streams(batch, micro, objective, device)
    first, lengths = stats.reading is not None, np.diff(batch.offsets)[rows]
    read = torch.zeros_like(streams.old_logprobs)
    correction, sampler_N = recipe.method.correction, None
    if first and batch.sampler_logprobs is not None:
        sampler_N, _ = take_rows(batch.sampler_logprobs, batch.offsets, rows)

    def loss(
        part: slice, logprobs: torch.Tensor, entropies: torch.Tensor, divergences: torch.Tensor
    ) -> torch.Tensor:
        here = streams[part]
        if first:
            here, read[part] = replace(here, old_logprobs=logprobs.detach()), entropies.detach()
            if sampler_N is not None and not correction.of_completions:
                here = _corrected(here, logprobs, sampler_N[part], correction)
        return token_losses(objective, here, logprobs, entropies, divergences)

    wanted = torch.from_numpy(np.repeat(micro.distilled_R, lengths)).to(device)
    versus = _teacher_side(teacher, batch, micro, wanted, recipe)

    def whole_loss(learner: LanguageModel) -> tuple[torch.Tensor, ...]:
        nonlocal streams
        head = learner.head(recipe.sampling.temperature, recipe.train.head_chunk_tokens)
        hidden, fresh = learner.hidden_states(packed), None
        targets = torch.from_numpy(packed.targets_N).to(device)
        weighed = sampler_N if correction.of_completions else None
        if weighed is not None or (surrogate.of_completions and moved):
            fresh, _ = score_tokens(head, hidden.detach(), targets, with_entropies=False)
            if weighed is not None:
                streams = _corrected(streams, fresh, weighed, correction, offsets_of(lengths))
        streams = surrogate.prepared(streams, lengths, fresh if moved else None)
        entropies = surrogate.entropy_bonus > 0 or first
        return fused_loss(head, hidden, targets, loss, with_entropies=entropies, teacher=versus)

    total, logprobs, divergences = policy.differentiate(whole_loss)
    if not micro.counts:
        return 0.0
    if stats.reading is not None:
        streams = replace(streams, old_logprobs=logprobs)
        index, _ = take_rows(np.arange(batch.offsets[-1]), batch.offsets, rows)
        stats.reading.note(index, logprobs, read)
    stats.add(surrogate, streams, logprobs, rows, lengths)
    if micro.distilled_R.any():
        if streams.teacher_logprobs is not None:  # the sampled token's estimate
            divergences = streams.old_logprobs - streams.teacher_logprobs
        stats.add_distilled(streams, divergences, wanted)
    return float(total.detach())


def _corrected(
    streams: TokenStreams,
    logprobs: torch.Tensor,
    sampler_N: NDArray[np.float32],
    correction: Correction,
    offsets: NDArray[np.int64] | None = None,
) -> TokenStreams:
    """The streams corrected by log-probs (N) under policy and sampler; `offsets` cut them into
    completions, where a weight is a completion's."""
    cut = offsets_of([len(sampler_N)]) if offsets is None else offsets
    made = correction.corrected(logprobs.detach().cpu().numpy(), sampler_N, cut)
    if made is None:
        return streams
    weights = torch.from_numpy(made.weights_N).to(streams.loss_weights)
    return replace(streams, loss_weights=streams.loss_weights * weights)


def _teacher_side(
    teacher: LanguageModel,
    batch: TrainBatch,
    micro: _MicroBatch,
    wanted: torch.Tensor,
    recipe: Recipe,
) -> TeacherSide | None:
    """The teacher's reading of the rows that are distilled, whose tokens (N) are `wanted`; None
    where there are none, and where the sampled token's log-prob is enough."""
    divergence = recipe.method.distillation.divergence_spec
    if divergence is None or not micro.distilled_R.any():
        return None
    rows = micro.rows[micro.distilled_R]
    packed = pack([batch.teacher_prompts[r] for r in rows], [batch.completions[r] for r in rows])
    with torch.no_grad():
        read = teacher.hidden_states(packed)
    hidden = read.new_zeros(len(wanted), read.shape[1])
    hidden[wanted] = read
    head = teacher.head(recipe.sampling.temperature, recipe.train.head_chunk_tokens)
    return TeacherSide(head, hidden, divergence, wanted)


def _streams(
    batch: TrainBatch, micro: _MicroBatch, objective: Objective, device: torch.device
) -> TokenStreams:
    def on_device(flat: NDArray[np.float32] | None) -> torch.Tensor | None:
        if flat is None:
            return None
        return torch.from_numpy(take_rows(flat, batch.offsets, micro.rows)[0]).to(device)

    def needed(name: str) -> torch.Tensor | None:
        return on_device(getattr(batch, name)) if name in objective.needs else None

    old, advantages = on_device(batch.old_logprobs), on_device(batch.advantages)
    loss_weights = on_device(batch.loss_weights)
    assert advantages is not None and loss_weights is not None
    return TokenStreams(
        # Who reads them before the update's own pass has given them gets no number.
        old_logprobs=torch.full_like(advantages, torch.nan) if old is None else old,
        advantages=advantages,
        loss_weights=loss_weights,
        scale=torch.from_numpy(micro.scales).to(device),
        ref_logprobs=needed("ref_logprobs"),
        teacher_logprobs=needed("teacher_logprobs"),
        distill_weights=on_device(batch.distill_weights),
    )
