"""A causal language model as the pipeline sees it: hidden states of completions, and a head."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castctl.errors import UserError
from castctl.models.attention import packing
from castctl.models.head import OutputHead, score_tokens
from castctl.models.packing import Ids, PackedBatch, microbatches, pack
from castctl.models.positions import context_of
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
        """The longest row that the model reads alike whatever stands beside it, in tokens."""
        return context_of(self.model.config)[0]

    def refuse_longer(self, tokens: int, what: str, remedy: str) -> None:
        """Raise `UserError` where rows of so many tokens pass the model's context: `what` they are
        and the `remedy` are words."""
        limit, why = context_of(self.model.config)
        if tokens > limit:
            raise UserError(f"{what} pass the model's {limit} {why}; {remedy}")

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
        """Raise `UserError` where a prompt and its completion pass the model's context."""
        lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
        longest = max(lengths, default=0)
        self.refuse_longer(
            longest,
            f"the {longest} tokens of row {lengths.index(longest) if lengths else 0}, prompt and "
            "completion,",
            "name the model that sampled (--model), or make the part again",
        )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 arithmetic over float32 weights where `dtype` asks for it."""
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, self.dtype)
        return contextlib.nullcontext()

    def recompute_activations(self) -> None:
        """Trade time for memory: inside `recomputing`, activations are computed again in the
        backward pass."""
        newer = getattr(self.model, "activation_checkpointing_enable", None)
        (newer or self.model.gradient_checkpointing_enable)()

    @contextlib.contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside, layers that recompute their activations do.

        Transformers asks for train mode. Those modules alone get it, and not what they are made
        of, so that neither dropout nor a router's noise comes with it.
        """
        recomputed = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", 0)]
        for module in recomputed:
            module.training = True
        try:
            yield
        finally:
            for module in recomputed:
                module.training = False

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
        longest = 1 + int(batch.position_ids_L.max(initial=-1))
        self.refuse_longer(longest, f"rows of {longest} tokens", "leave such rows out")
        positions = torch.from_numpy(batch.position_ids_L).to(self.device)[None]
        predictors = torch.from_numpy(batch.predictor_N).to(self.device)
        with self.autocast(), packing(batch.segments):
            output = self._decode(
                **inputs,
                position_ids=positions,
                # Without a mask transformers would look for rows in the positions.
                attention_mask=torch.ones_like(positions),
                use_cache=False,
            )
        return output.last_hidden_state[0].index_select(0, predictors).to(self.dtype)

    def _decode(self, **inputs: Any) -> Any:
        """The decoder's outputs, before the head."""
        return self.model.base_model(**inputs)

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
