"""OAR-P: how much an answer hangs on each reasoning token, by taking the token away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from castctl.methods.oar import AnswerScore
from castctl.models.answers import AnswerDivergence, AnsweredRow, answered_rows
from castctl.models.language_model import LanguageModel
from castctl.models.packing import Ids, Layout, PackedBatch
from castctl.progress import Advance
from castctl.ragged import offsets_of
from castctl.verify.spans import AnswerSpan


@dataclass(frozen=True)
class _Variants:
    """Reasoning positions of a row that are perturbed, one at a time, in one batch."""

    row: AnsweredRow
    positions: list[int]


def strides(
    spans: Sequence[AnswerSpan | None], stride: int, budget: int | None
) -> NDArray[np.int64]:
    """Every how many reasoning tokens one is scored (R).

    `stride`, raised for long reasoning so that at most `budget` tokens of a completion are.
    """
    lengths = np.array([span.reasoning_end if span else 0 for span in spans], np.int64)
    if budget is None:
        return np.full(len(spans), stride, np.int64)
    return np.maximum(stride, -(-lengths // budget))


def perturbation_scores(
    model: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    spans: Sequence[AnswerSpan | None],
    *,
    score: AnswerScore,
    pad_id: int,
    stride: int = 1,
    budget: int | None = None,
    temperature: float,
    microbatch_tokens: int,
    chunk_tokens: int,
    advance: Advance = lambda count: None,
) -> NDArray[np.float32]:
    """Each reasoning token's influence on the answer, in nats, flat in row order (N).

    It is the divergence of the answer's distribution from the clean one where `pad_id` stands
    in the token's place (OAR-P, arXiv 2601.07408). NaN where nothing was scored: outside the
    reasoning, between the `strides`, and in rows without a span.

    Only what follows a perturbed token is computed anew. What precedes it is shared with the
    clean row, which is computed once in a batch of `microbatch_tokens` input tokens.
    """
    divergence = AnswerDivergence(model.head(temperature, chunk_tokens), model.dtype, score)
    offsets = offsets_of([len(row) for row in completions])
    scores_N = np.full(int(offsets[-1]), np.nan, np.float32)
    rows = answered_rows(prompts, completions, spans)
    step_R = strides(spans, stride, budget)
    advance(len(spans) - len(rows))
    for batch in _batches(rows, step_R, microbatch_tokens):
        for variants, scored in zip(
            batch, _divergences(model, divergence, batch, pad_id), strict=True
        ):
            row = variants.row
            scores_N[offsets[row.number] + np.array(variants.positions)] = scored
            finished = variants.positions[-1] + step_R[row.number] >= row.span.reasoning_end
            advance(int(finished))
    return scores_N


def _batches(
    rows: Sequence[AnsweredRow], step_R: NDArray[np.int64], budget: int
) -> Iterator[list[_Variants]]:
    """Split the work, in order, into batches of at most `budget` input tokens, or one variant."""
    batch: list[_Variants] = []
    tokens = 0
    for row in rows:
        clean = len(row.completion) - 1
        for position in range(0, row.span.reasoning_end, int(step_R[row.number])):
            cost = clean - position
            if not batch or batch[-1].row is not row:
                cost += clean + (0 if _share_a_prompt(batch, row) else len(row.prompt))
            if batch and tokens + cost > budget:
                yield batch
                batch, tokens = [], 0
                cost = len(row.prompt) + clean + clean - position
            if not batch or batch[-1].row is not row:
                batch.append(_Variants(row, []))
            batch[-1].positions.append(position)
            tokens += cost
    if batch:
        yield batch


def _divergences(
    model: LanguageModel, divergence: AnswerDivergence, batch: Sequence[_Variants], pad_id: int
) -> Iterator[NDArray]:
    """The divergence of each of a row's variants, row by row."""
    packed = _pack(batch, pad_id)
    with torch.no_grad():
        hidden = model.hidden_states(packed)
        targets = torch.from_numpy(packed.targets_N).to(model.device)
        start = 0
        for variants in batch:
            length, count = len(variants.row.answer), 1 + len(variants.positions)
            states_CAH = hidden[start : start + count * length].unflatten(0, (count, length))
            answer_A = targets[start : start + length]
            yield divergence(states_CAH[0], states_CAH[1:], answer_A).cpu().numpy()
            start += count * length


def _pack(batch: Sequence[_Variants], pad_id: int) -> PackedBatch:
    """Row by row: the clean completion up to its answer's last predictor; then for each variant
    the pad token and what follows the token that it replaces.

    The targets are the answer's tokens, for the clean row and then for each variant.
    """
    layout = Layout()
    predictors: list[Ids] = []
    targets: list[Ids] = []
    prompt = (0, 0)
    for number, variants in enumerate(batch):
        row = variants.row
        if not _share_a_prompt(batch[:number], row):
            prompt = layout.add(row.prompt)[0], len(row.prompt)
        inputs = row.completion[:-1]
        predicting = np.arange(row.span.answer_start, row.span.answer_end) - 1
        clean, start = layout.add(inputs, (prompt,))
        predictors.append(start + predicting)
        for position in variants.positions:
            perturbed = np.append(pad_id, inputs[position + 1 :])
            prefix = (prompt, (clean, position)) if position else (prompt,)
            _, start = layout.add(perturbed, prefix)
            predictors.append(start + predicting - position)
        targets += [row.answer] * (1 + len(variants.positions))
    return layout.batch(predictors, targets)


def _share_a_prompt(batch: Sequence[_Variants], row: AnsweredRow) -> bool:
    """Whether the batch's last row has the row's prompt."""
    return bool(batch) and np.array_equal(batch[-1].row.prompt, row.prompt)
