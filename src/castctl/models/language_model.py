"""A causal language model as the pipeline sees it: hidden states of completions, and a head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castctl.errors import UserError
from castctl.models.head import OutputHead, score_tokens
from castctl.models.packing import Ids, PackedBatch, microbatches, pack
from castctl.progress import Advance


class LanguageModel:
    """A transformers model with its tokenizer and the dtype of its arithmetic."""

    def __init__(self, model: Any, tokenizer: Any, dtype: torch.dtype) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """Tokens that the output head scores."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def context_tokens(self) -> int:
        """The longest row that the model was made for, in tokens."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def refuse_unknown_tokens(self, kind: str, rows: Sequence[Ids]) -> None:
        """Raise `UserError` where a row of token ids, a `kind`, holds one without an embedding."""
        size = int(self.model.get_input_embeddings().weight.shape[0])
        for ids in rows:
            if len(ids) and (ids.min() < 0 or ids.max() >= size):
                wrong = ids.min() if ids.min() < 0 else ids.max()
                raise UserError(
                    f"a {kind} holds token {wrong}, but the model knows {size} tokens; "
                    "name the model that sampled (--model), or make the part again"
                )

    def refuse_long_rows(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> None:
        """Raise `UserError` where a prompt and its completion pass the model's positions."""
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        if (longest := max(lengths, default=0)) > self.context_tokens:
            raise UserError(
                f"row {lengths.index(longest)} has {longest} tokens with its prompt, but the model "
                f"has {self.context_tokens} positions; name the model that sampled (--model), or "
                "make the part again"
            )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 arithmetic over float32 weights where `dtype` asks for it."""
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def recompute_activations(self) -> None:
        """Trade time for memory: activations are computed again in the backward pass."""
        newer = getattr(self.model, "activation_checkpointing_enable", None)
        (newer or self.model.gradient_checkpointing_enable)()

    def frozen_copy(self) -> LanguageModel:
        """A copy of the weights as they are, without gradients; the tokenizer is shared."""
        twin = copy.deepcopy(self.model)
        twin.requires_grad_(False).eval()
        twin.zero_grad(set_to_none=True)
        return LanguageModel(twin, self.tokenizer, self.dtype)

    def embeddings(self, batch: PackedBatch) -> Tensor:
        """What the batch's tokens (L, H) are to the first layer, in the weights' dtype."""
        inputs = torch.from_numpy(batch.input_ids_L).to(self.device)
        return self.model.get_input_embeddings()(inputs)

    def hidden_states(self, batch: PackedBatch, embeddings_LH: Tensor | None = None) -> Tensor:
        """Hidden states (N, H), in `dtype`, that predict the batch's targets.

        `embeddings_LH` takes the place of the tokens' own embeddings.
        """
        if embeddings_LH is None:
            inputs = {"input_ids": torch.from_numpy(batch.input_ids_L).to(self.device)[None]}
        else:
            inputs = {"inputs_embeds": embeddings_LH[None]}
        positions = torch.from_numpy(batch.position_ids_L).to(self.device)
        predictors = torch.from_numpy(batch.predictor_N).to(self.device)
        # A mask that is already four-dimensional is passed through untouched, so that
        # transformers builds no dense (L, L) mask; the segments say who attends to whom.
        no_mask = torch.ones(1, 1, 1, 1, device=self.device)
        with self.autocast():
            output = self.model.base_model(
                **inputs,
                position_ids=positions[None],
                attention_mask=no_mask,
                segments=batch.segments,
                use_cache=False,
            )
        return output.last_hidden_state[0].index_select(0, predictors).to(self.dtype)

    def head(self, temperature: float, chunk_tokens: int) -> OutputHead:
        """The output head at a sampling temperature."""
        linear = self.model.get_output_embeddings()
        softcap = getattr(self.model.config, "final_logit_softcapping", None)
        return OutputHead(
            linear.weight, getattr(linear, "bias", None), softcap, temperature, chunk_tokens
        )

    def score(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Ids],
        temperature: float,
        microbatch_tokens: int,
        chunk_tokens: int,
        advance: Advance = lambda count: None,
        with_entropies: bool = True,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Log-prob and, if asked for, entropy, in nats, of every completion token, flat in row
        order (N).

        `advance` is told of completions as they are scored.
        """
        head = self.head(temperature, chunk_tokens)
        logprobs, entropies = [], []
        with torch.no_grad():
            for rows in microbatches(prompts, completions, microbatch_tokens):
                batch = pack([prompts[r] for r in rows], [completions[r] for r in rows])
                advance(len(rows))
                if len(batch.targets_N) == 0:
                    continue
                targets = torch.from_numpy(batch.targets_N).to(self.device)
                scored = score_tokens(head, self.hidden_states(batch), targets, with_entropies)
                logprobs.append(scored[0].cpu().numpy())
                if scored[1] is not None:
                    entropies.append(scored[1].cpu().numpy())
        empty = [np.zeros(0, np.float32)]
        return (
            np.concatenate(logprobs or empty),
            np.concatenate(entropies or empty) if with_entropies else None,
        )
