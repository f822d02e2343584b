"""Sampling with the model in this process: a decode loop over the model's own cache.

`generate` gives all rows one random stream and keeps finished rows; this loop gives every
row its own and drops them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from castctl.engines import Batches, Completion, Measures, Request
from castctl.engines.cache import cache_in_blocks
from castctl.engines.sampling import Penalties, RowUniforms, draw, next_token_scores
from castctl.engines.stops import StopSearch, stop_token_ids
from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.progress import Advance
from castctl.recipe.recipe import SamplingSettings
from castctl.shards.part import Metadata

COMPACT_BELOW = 0.85
"""Finished rows leave the cache once less than this share is live: dropping copies the cache."""


class TransformersEngine:
    """Samples from a loaded model."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.stop_ids = stop_token_ids(model)
        self._cache_argument = cache_argument(model.model)

    @property
    def identity(self) -> Metadata:
        """The library's version decides, since its models and filters compute the distribution."""
        return {
            "kind": "transformers",
            "version": version("transformers"),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "seeds": "philox-128",
        }

    def rest(self) -> None:
        """Nothing to give back between two calls."""

    def sync(self) -> Measures:
        """Nothing to do: the weights are the policy's own."""
        return {}

    def close(self) -> None:
        """Nothing to give back: the model is the policy's."""

    def generate(
        self, batches: Batches, sampling: SamplingSettings, advance: Advance
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Batch by batch, at most `sampling.max_rows` completions decoded side by side."""
        for requests in batches.values():
            self._check_lengths(requests, sampling.max_tokens)
        for number, requests in batches.items():
            done: list[Completion] = []
            with torch.no_grad(), self.model.autocast():
                for start in range(0, len(requests), sampling.max_rows):
                    rows = requests[start : start + sampling.max_rows]
                    done += self._decode(rows, sampling, advance)
            yield number, done

    def _check_lengths(self, requests: Sequence[Request], max_tokens: int) -> None:
        longest = max((len(request.prompt) for request in requests), default=0)
        self.model.refuse_longer(
            longest + max_tokens,
            f"a prompt of {longest} tokens and max_tokens={max_tokens}",
            "lower --max-tokens or data.max_prompt_tokens",
        )

    def _decode(
        self, requests: Sequence[Request], sampling: SamplingSettings, advance: Advance
    ) -> list[Completion]:
        uniforms = RowUniforms([request.key for request in requests])
        tokens = np.zeros((len(requests), sampling.max_tokens), np.int32)
        logprobs = np.zeros((len(requests), sampling.max_tokens), np.float32)
        lengths = np.zeros(len(requests), np.int64)
        stopped = np.zeros(len(requests), np.bool_)
        search = StopSearch(self.model.tokenizer, sampling.stop, len(requests))
        penalise = self._penalties(requests, sampling)
        logits, cache, mask = self._prefill(requests, sampling.max_tokens)
        rows = np.arange(len(requests))  # rows[i]: the request that cache row i decodes
        for position in range(sampling.max_tokens):
            if penalise:
                logits = penalise(logits, rows, tokens[rows, :position])
            picked, picked_logprobs = self._pick(logits, uniforms.at(position, rows), sampling)
            live = ~stopped[rows]
            tokens[rows[live], position] = picked[live]
            logprobs[rows[live], position] = picked_logprobs[live]
            lengths[rows[live]] = position + 1
            stopped[rows[live]] = np.isin(picked[live], self.stop_ids)
            if sampling.stop:
                for row in rows[~stopped[rows]]:
                    stopped[row] = search.ends(row, tokens[row, : position + 1])
            still = ~stopped[rows]
            advance(int(live.sum() - still.sum()))
            if not still.any() or position + 1 == sampling.max_tokens:
                advance(int(still.sum()))
                break
            if still.mean() < COMPACT_BELOW:
                keep = torch.from_numpy(np.flatnonzero(still)).to(mask.device)
                cache.batch_select_indices(keep)
                mask, rows, picked = mask[keep], rows[still], picked[still]
            logits, mask = self._step(picked, cache, mask)
        if not np.isfinite(logprobs).all():
            raise UserError(
                "the model's probabilities are not numbers; its weights are broken or have "
                "diverged: go back to an earlier checkpoint, or lower optimizer.lr"
            )
        return [
            Completion(
                tokens[r, : lengths[r]],
                None if sampling.temperature == 0 else logprobs[r, : lengths[r]],
                "stop" if stopped[r] else "length",
            )
            for r in range(len(requests))
        ]

    def _prefill(
        self, requests: Sequence[Request], max_tokens: int
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """Run each distinct prompt once; the last logits, the cache and mask, a row a request."""
        distinct = {request.prompt.tobytes(): request.prompt for request in requests}
        number = {key: index for index, key in enumerate(distinct)}
        width = max(len(prompt) for prompt in distinct.values())
        ids = np.zeros((len(distinct), width), np.int64)
        mask = np.zeros((len(distinct), width), np.int64)
        for index, prompt in enumerate(distinct.values()):  # padded on the left, in here only
            ids[index, width - len(prompt) :] = prompt
            mask[index, width - len(prompt) :] = 1
        device = self.model.device
        mask_BL = torch.from_numpy(mask).to(device)
        cache = cache_in_blocks(self.model.model.config, width + max_tokens)
        output = self.model.model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=mask_BL,
            position_ids=(mask_BL.cumsum(-1) - 1).clamp(min=0),
            **{self._cache_argument: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        owner = torch.tensor([number[r.prompt.tobytes()] for r in requests], device=device)
        cache.batch_select_indices(owner)
        return output.logits[owner, -1], cache, mask_BL[owner]

    def _step(
        self, picked: NDArray[np.int64], cache: DynamicCache, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = self.model.model(
            input_ids=torch.from_numpy(picked).to(mask.device)[:, None],
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            **{self._cache_argument: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], mask

    def _penalties(
        self, requests: Sequence[Request], sampling: SamplingSettings
    ) -> Penalties | None:
        """What tokens that a row holds already are changed by; None where nothing changes them."""
        presence, repetition = sampling.presence_penalty, sampling.repetition_penalty
        if presence == 0 and repetition == 1:
            return None
        prompts = [request.prompt for request in requests]
        return Penalties(prompts, presence, repetition, self.model.device)

    def _pick(
        self, logits: Tensor, uniforms: NDArray[np.float64], sampling: SamplingSettings
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if sampling.temperature == 0:
            return logits.argmax(-1).cpu().numpy(), np.zeros(len(logits), np.float32)
        scores = next_token_scores(
            logits, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p
        )
        picked, logprobs = draw(scores, torch.from_numpy(uniforms).to(scores.device))
        return picked.cpu().numpy(), logprobs.cpu().numpy()


def cache_argument(model: Any) -> str:
    """What a model's forward calls its cache: `past_key_values` before transformers 5.24, and in
    code that came with a model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
