"""OAR-G: how much an answer hangs on each reasoning token, by one gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castctl.methods.oar import AnswerScore
from castctl.models.answers import AnswerDivergence, AnsweredRow, answered_rows
from castctl.models.language_model import LanguageModel
from castctl.models.packing import Ids, PackedBatch, microbatches, pack
from castctl.progress import Advance
from castctl.ragged import offsets_of
from castctl.verify.spans import AnswerSpan


def gradient_scores(
    model: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    spans: Sequence[AnswerSpan | None],
    seeds: Sequence[int],
    *,
    score: AnswerScore,
    noise_std: float,
    temperature: float,
    microbatch_tokens: int,
    chunk_tokens: int,
    advance: Advance = lambda count: None,
) -> NDArray[np.float32]:
    """Each reasoning token's |sum_h gradient * embedding|, flat in row order (N); NaN elsewhere.

    The gradient is that of the divergence of the answer's distribution from the clean one, at
    the reasoning's input embeddings plus Gaussian noise of `noise_std`; the embedding has
    the noise too (OAR-G, arXiv 2601.07408). A row's noise comes from its seed (R) alone.

    Costs two forward passes and a backward pass, in batches of `microbatch_tokens` input
    tokens. The parameters' gradients are neither computed nor touched.
    """
    divergence = AnswerDivergence(model.head(temperature, chunk_tokens), model.dtype, score)
    offsets = offsets_of([len(row) for row in completions])
    scores_N = np.full(int(offsets[-1]), np.nan, np.float32)
    rows = answered_rows(prompts, completions, spans)
    advance(len(spans) - len(rows))
    with _fixed(model.model), model.recomputing():
        for numbers in microbatches(
            [row.prompt for row in rows], [row.completion for row in rows], microbatch_tokens
        ):
            batch = [rows[number] for number in numbers]
            noise = [_noise(seeds[row.number], row, model) * noise_std for row in batch]
            for row, scored in zip(batch, _scores(model, divergence, batch, noise), strict=True):
                start = offsets[row.number]
                scores_N[start : start + len(scored)] = scored
            advance(len(batch))
    return scores_N


def _scores(
    model: LanguageModel,
    divergence: AnswerDivergence,
    rows: Sequence[AnsweredRow],
    noise: Sequence[Tensor],
) -> Iterator[NDArray]:
    """Each row's scores of its reasoning."""
    batch, reasoning = _pack(rows)
    places = torch.from_numpy(np.concatenate(reasoning)).to(model.device)
    with torch.no_grad():
        clean = model.hidden_states(batch)
        embeddings_LH = model.embeddings(batch)
        noisy_LH = embeddings_LH.index_add(0, places, torch.cat(list(noise)).to(embeddings_LH))
    noisy_LH.requires_grad_()
    hidden = model.hidden_states(batch, noisy_LH)
    slopes = _slopes(divergence, rows, clean, hidden, torch.from_numpy(batch.targets_N))
    # Rows do not interact: one backward pass gives each row its own gradient.
    [gradient_LH] = torch.autograd.grad(hidden, noisy_LH, slopes)
    influence = (gradient_LH * noisy_LH.detach()).sum(-1).abs()
    for row in reasoning:
        yield influence[torch.from_numpy(row).to(model.device)].cpu().numpy()


def _slopes(
    divergence: AnswerDivergence,
    rows: Sequence[AnsweredRow],
    clean_NH: Tensor,
    hidden_NH: Tensor,
    targets_N: Tensor,
) -> Tensor:
    """Gradient (N, H) of the rows' divergences with respect to the answers' hidden states."""
    sizes = [len(row.answer) for row in rows]
    splits = (x.split(sizes) for x in (clean_NH, hidden_NH.detach(), targets_N.to(clean_NH.device)))
    slopes = []
    for clean_AH, states_AH, answer_A in zip(*splits, strict=True):
        states_AH.requires_grad_()
        distance = divergence(clean_AH, states_AH[None], answer_A)
        slopes += torch.autograd.grad(distance.sum(), states_AH)
    return torch.cat(slopes)


def _pack(rows: Sequence[AnsweredRow]) -> tuple[PackedBatch, list[NDArray[np.int64]]]:
    """A batch whose targets are the answers, and the input positions of each row's reasoning."""
    batch = pack([row.prompt for row in rows], [row.completion for row in rows])
    ends = np.cumsum([len(row.completion) for row in rows])
    predictors = list(zip(rows, np.split(batch.predictor_N, ends[:-1]), strict=True))
    answers: list[Ids] = [row.answer for row in rows]
    of_answers = replace(
        batch,
        predictor_N=np.concatenate([each[row.span.answer_start :] for row, each in predictors]),
        targets_N=np.concatenate(answers).astype(np.int64),
    )
    # A token stands where the next one is predicted.
    return of_answers, [each[1 : 1 + row.span.reasoning_end] for row, each in predictors]


def _noise(seed: int, row: AnsweredRow, model: LanguageModel) -> Tensor:
    """Standard normal numbers (reasoning tokens, H), the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    width = model.model.get_input_embeddings().weight.shape[1]
    return torch.randn(row.span.reasoning_end, width, generator=generator)


@contextlib.contextmanager
def _fixed(model: Any) -> Iterator[None]:
    """No parameter wants a gradient inside."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
