"""Requests as the arrays that an engine's process is sent, and its answers as completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.engines import Batches, Completion
from castctl.engines.sampling import request_seed
from castctl.engines.stops import first_stop
from castctl.engines.wire import Message
from castctl.errors import UserError
from castctl.models.packing import flattened
from castctl.recipe.recipe import SamplingSettings


class Asked:
    """Batches of requests that one process fills, completion by completion, in whatever order."""

    def __init__(
        self,
        batches: Batches,
        sampling: SamplingSettings,
        stop_ids: Sequence[int],
        tokenizer: Any,
    ) -> None:
        self._requests = [request for requests in batches.values() for request in requests]
        self._owner = [number for number, requests in batches.items() for _ in requests]
        self._missing = {number: len(requests) for number, requests in batches.items()}
        self._done: dict[int, Completion] = {}
        self._sent: list[int] = []  # which request each number of the process means
        self._sampling, self._stop_ids, self._tokenizer = sampling, list(stop_ids), tokenizer
        self.open = True
        """Whether the process has still something to say."""

    def message(self) -> Message:
        """What is still to be sampled. Equal prompts are sent once."""
        self._sent = [n for n in range(len(self._requests)) if n not in self._done]
        requests = [self._requests[n] for n in self._sent]
        distinct = {request.prompt.tobytes(): request.prompt for request in requests}
        number = {key: index for index, key in enumerate(distinct)}
        prompts, offsets = flattened(list(distinct.values()))
        arrays = {
            "prompts": prompts,
            "offsets": offsets,
            "prompt_of": np.array([number[r.prompt.tobytes()] for r in requests], np.int64),
            "seeds": np.array([request_seed(r.key) for r in requests], np.int64),
        }
        return Message("generate", {"sampling": self._settings()}, arrays)

    def _settings(self) -> dict[str, Any]:
        """Arguments of vLLM's `SamplingParams`, all that a draw hangs on."""
        asked = self._sampling
        return {
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "min_p": asked.min_p,
            "presence_penalty": asked.presence_penalty,
            "repetition_penalty": asked.repetition_penalty,
            "max_tokens": asked.max_tokens,
            "logprobs": 0 if asked.temperature else None,  # the sampled token's
            "flat_logprobs": True,
            "ignore_eos": True,  # every token that ends a completion is named here
            "stop_token_ids": self._stop_ids,
            "stop": list(asked.stop),
            "include_stop_str_in_output": True,
            "detokenize": bool(asked.stop),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }

    def take(self, message: Message) -> Iterator[tuple[int, list[Completion]]]:
        """The batches that an answer makes whole.

        Raises `UserError` for an answer to what was not asked, and for completions that are longer
        or shorter than they may be.
        """
        if message.kind == "done":
            if left_out := len(self._requests) - len(self._done):
                raise _broken(f"{left_out} completions were left out")
            self.open = False
        if message.kind != "finished":
            return
        for number, completion in self._read(message):
            if number in self._done:
                raise _broken("a completion came twice")
            self._done[number] = completion
            batch = self._owner[number]
            self._missing[batch] -= 1
            if not self._missing[batch]:
                rows = [n for n, owner in enumerate(self._owner) if owner == batch]
                yield batch, [self._done[n] for n in rows]

    @property
    def finished(self) -> int:
        """Completions that are there."""
        return len(self._done)

    def _read(self, message: Message) -> Iterator[tuple[int, Completion]]:
        try:
            lengths, arrays = message.arrays["lengths"], message.arrays
            ends = np.cumsum(lengths)[:-1]
            tokens = np.split(arrays["tokens"], ends)
            greedy = not self._sampling.temperature
            logprobs = [None] * len(tokens) if greedy else np.split(arrays["logprobs"], ends)
            rows = zip(arrays["number"].tolist(), arrays["stopped"].tolist(), tokens, logprobs,
                       strict=True)  # fmt: skip
            for sent, stopped, ids, chosen in rows:
                yield self._sent[sent], self._completion(ids, chosen, stopped)
        except (KeyError, IndexError, ValueError) as error:
            raise _broken(str(error)) from error

    def _completion(
        self, ids: NDArray[np.int32], logprobs: NDArray[np.float32] | None, stopped: bool
    ) -> Completion:
        """Tokens as they came, up to where they first spell a stop, with what ended them."""
        most = self._sampling.max_tokens
        if logprobs is not None and len(logprobs) != len(ids):
            raise _broken("tokens and log-probs differ in number")
        at = first_stop(self._tokenizer, ids, self._sampling.stop)
        if at is not None:
            ids, stopped = ids[:at], True
            logprobs = None if logprobs is None else logprobs[:at]
        ends = np.isin(ids, self._stop_ids)
        if not len(ids) or ends[:-1].any() or (stopped and at is None and not ends[-1]):
            raise _broken("a completion does not end where it should")
        if len(ids) > most or (not stopped and len(ids) < most):
            raise _broken(f"a completion of {len(ids)} tokens, where {most} were asked for")
        if logprobs is not None and not np.isfinite(logprobs).all():
            raise UserError(
                "the engine's probabilities are not numbers; the weights are broken or have "
                "diverged: go back to an earlier checkpoint, or lower optimizer.lr"
            )
        return Completion(ids, logprobs, "stop" if stopped else "length")


def _broken(what: str) -> UserError:
    return UserError(f"the engine's answer is broken ({what}); see its log, or try another version")
