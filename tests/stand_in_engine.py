"""An engine's process without vLLM, and without torch: a model of two tensors in numpy.

Where every layer of a model writes nothing, what follows a token hangs on that token alone: on the
head over its embedding, normalised.

`STAND_IN_FAULTS` names a file of JSON, `{fault: times}`: what goes wrong, and how often, over all
processes that are started.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from castctl.engines import vllm_child

FAULTS = "STAND_IN_FAULTS"
ENTRY = "stand_in_engine:serve"


def serve(connection: Connection) -> None:
    vllm_child.serve(connection, StandIn)


def fault(name: str) -> bool:
    """Whether a fault is due; it is used up then."""
    file = Path(os.environ.get(FAULTS, "/dev/null"))
    left = json.loads(file.read_text() or "{}") if file.is_file() else {}
    if left.get(name, 0) < 1:
        return False
    file.write_text(json.dumps(left | {name: left[name] - 1}))
    return True


def read(folder: str) -> dict[str, NDArray[np.float32]]:
    """The weights in a folder."""
    weights: dict[str, NDArray[np.float32]] = {}
    for file in Path(folder).glob("*.safetensors"):
        weights |= load_file(file)
    return weights


class StandIn(vllm_child.Served):
    def start(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        if fault("no start"):
            raise RuntimeError("no kernel image is available")
        arguments = facts["arguments"]
        print("starting with", json.dumps(arguments))
        self._set(read(arguments["model"]))
        self._cached: NDArray[np.float64] | None = None
        device = "cuda" if fault("built for a GPU") else "cpu"
        self._say("ready", device=device)

    def _set(self, weights: dict[str, NDArray[np.float32]], head: str = "lm_head.weight") -> None:
        """Take over weights; `head` names the output head's, else the embeddings'."""
        embeddings = weights["model.embed_tokens.weight"].astype(np.float64)
        size = np.sqrt((embeddings**2).mean(-1, keepdims=True) + 1e-6)
        self._head = weights.get(head, embeddings).astype(np.float64)
        self._logits = embeddings / size * weights["model.norm.weight"] @ self._head.T

    def generate(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        asked = facts["sampling"]
        prompts = np.split(arrays["prompts"], arrays["offsets"][1:-1])
        proof = not asked["stop_token_ids"]
        if proof and fault("dies in a proof"):
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = [
            self._draw(int(prompts[prompt][-1]), int(seed), asked)
            for prompt, seed in zip(arrays["prompt_of"], arrays["seeds"], strict=True)
        ]
        for number in reversed(range(len(drawn))):  # the last are finished first
            if not proof and number == len(drawn) // 2:
                self._misbehave()
            tokens, logprobs, stopped = drawn[number]
            self._tell_of(number, tokens, logprobs, stopped)
        self._say("done")

    def _draw(
        self, token: int, seed: int, asked: Mapping[str, Any]
    ) -> tuple[list[int], list[float], bool]:
        rng = np.random.default_rng(seed)
        cached = self._logits if self._cached is None else self._cached
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < asked["max_tokens"]:
            logits = self._logits if len(tokens) % 2 else cached  # a cache spoils some of it
            scores = logits[token] / (asked["temperature"] or 1.0)
            scores -= scores.max()
            scores -= np.log(np.exp(scores).sum())
            place = np.searchsorted(np.exp(scores).cumsum(), rng.random())
            token = min(int(place), len(scores) - 1) if asked["temperature"] else scores.argmax()
            tokens.append(int(token))
            logprobs.append(float(scores[token]))
            if token in asked["stop_token_ids"]:
                return tokens, logprobs, True
        return tokens, logprobs if asked["logprobs"] is not None else [], False

    def _tell_of(
        self, number: int, tokens: list[int], logprobs: list[float], stopped: bool
    ) -> None:
        self._say(
            "finished",
            {
                "number": np.array([number]),
                "lengths": np.array([len(tokens)]),
                "tokens": np.array(tokens, np.int32),
                "logprobs": np.array(logprobs, np.float32),
                "stopped": np.array([stopped]),
            },
        )

    def _misbehave(self) -> None:
        if fault("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault("is stuck"):
            time.sleep(600)
        if fault("talks nonsense"):
            self._connection.send_bytes(b"INFO 11-29 loading weights")
        if fault("leaves one out"):
            self._say("done")
        if fault("shortens"):
            self._tell_of(0, [1], [-1.0], False)

    def load(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        if fault("dies in a load"):
            os.kill(os.getpid(), signal.SIGKILL)
        weights = read(facts["folder"])
        assert "lm_head.weight" in weights, "the head is written out, tied or not"
        if fault("keeps its cache"):
            self._cached = self._logits
        if fault("keeps its head"):
            weights["lm_head.weight"] = self._head.astype(np.float32)
        if not fault("loads nothing"):
            self._set(weights)
        self._say("loaded")

    def _forget(self) -> None:
        self._cached = None

    def rest(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        print("rests")
        self._say("rest")

    def wake(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        print("wakes")
        self._say("wake")
