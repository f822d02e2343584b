"""vLLM inside its child process: answers the messages of `castctl.engines.replica`.

| asked | facts; arrays | answered |
| --- | --- | --- |
| start | the arguments of `LLM` as `arguments` | ready: `device` |
| generate | sampling; `prompts`, `offsets`, `prompt_of`, `seeds` | finished ..., done |
| load | `folder` of weights in the form of a checkpoint, or of an adapter | loaded |
| reset, rest, wake | | the same word |

`alive` comes in between, once a second, where an answer takes long.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.engines.wire import Message, receive, send

ALIVE_SECONDS = 1.0


class Served:
    """The engine, and one method a message."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._llm: Any = None
        self._adapter: Any = None
        self._adapters = 0
        self._told = 0.0

    def start(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        """Load the model."""
        from vllm import LLM
        from vllm.platforms import current_platform

        arguments = dict(facts["arguments"])
        if current_platform.is_cpu():
            # A seed of one's own and a prompt read in chunks crash it there (vLLM 0.32.0).
            room = arguments["max_model_len"]
            arguments |= {"enable_chunked_prefill": False, "enforce_eager": True}
            arguments.setdefault("max_num_batched_tokens", max(16384, room))
        self._llm = LLM(**arguments)
        self._say("ready", device=current_platform.device_type)

    def generate(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        """One completion a seed; each is told as soon as it is finished."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        ids = [prompt.tolist() for prompt in np.split(arrays["prompts"], arrays["offsets"][1:-1])]
        kind = RequestOutputKind.FINAL_ONLY
        for number, (prompt, seed) in enumerate(
            zip(arrays["prompt_of"].tolist(), arrays["seeds"].tolist(), strict=True)
        ):
            settings = SamplingParams(**facts["sampling"], seed=seed, output_kind=kind)
            engine.add_request(
                str(number), {"prompt_token_ids": ids[prompt]}, settings, lora_request=self._adapter
            )
            self._alive()
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            if finished:
                self._tell(finished)
            self._alive()
        self._say("done")

    def _tell(self, finished: Sequence[Any]) -> None:
        """Send finished completions: their numbers, tokens, log-probs (nats) and endings."""
        outputs = [output.outputs[0] for output in finished]
        ids = [np.array(output.token_ids, np.int32) for output in outputs]
        logprobs = [_chosen(output.logprobs) for output in outputs if output.logprobs is not None]
        none = [np.zeros(0, np.float32)]
        self._say(
            "finished",
            {
                "number": np.array([int(output.request_id) for output in finished], np.int64),
                "lengths": np.array([len(each) for each in ids], np.int64),
                "tokens": np.concatenate(ids),
                "logprobs": np.concatenate(logprobs or none).astype(np.float32),
                "stopped": np.array([output.finish_reason == "stop" for output in outputs]),
            },
        )

    def load(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        """Replace the weights or the adapter, and forget the keys and values of the old."""
        if os.path.exists(os.path.join(facts["folder"], "adapter_config.json")):
            self._adapt(facts["folder"])
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": facts["folder"]})
        self._forget()
        self._say("loaded")

    def _adapt(self, folder: str) -> None:
        """Take an adapter in, under a number that none had: of one that it knows vLLM would keep
        the old without a word."""
        from vllm.lora.request import LoRARequest

        engine, old = self._llm.llm_engine, self._adapter
        self._adapters += 1
        self._adapter = LoRARequest(f"adapter-{self._adapters}", self._adapters, folder)
        if not engine.add_lora(self._adapter):
            raise RuntimeError(f"the adapter in {folder} was not taken")
        if old is not None:
            engine.remove_lora(old.lora_int_id)

    def reset(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        self._forget()
        self._say("reset")

    def rest(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        """Move the weights to the host's memory and drop the cache. At level 2 the weights would be
        dropped too, and what wakes up has been gibberish."""
        self._llm.sleep(level=1)
        self._say("rest")

    def wake(self, facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> None:
        self._llm.wake_up()
        self._say("wake")

    def end(self) -> None:
        """End this process at once: to take everything apart would take it ten seconds. Only what
        processes of its own share in memory has to be given back."""
        if self._llm is not None and self._llm.get_world_size() > 1:
            self._llm.llm_engine.engine_core.shutdown()
        sys.stdout.flush()
        os._exit(0)

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use and was not emptied")

    def _say(self, kind: str, arrays: Mapping[str, NDArray] | None = None, **facts: Any) -> None:
        send(self._connection, Message(kind, facts, arrays or {}))

    def _alive(self) -> None:
        if (now := time.monotonic()) - self._told > ALIVE_SECONDS:
            self._told = now
            self._say("alive")


def _chosen(logprobs: Any) -> NDArray[np.float32]:
    """The sampled token's log-prob at each position, of vLLM's flat list of one or more each."""
    return np.array([logprobs.logprobs[start] for start in logprobs.start_indices], np.float32)


def serve(connection: Connection, kind: type[Served] = Served) -> None:
    """Answer until the parent closes the connection; an error ends the process."""
    served = kind(connection)
    while True:
        try:
            message = receive(connection)
        except EOFError:
            break
        getattr(served, message.kind)(message.facts, message.arrays)
    served.end()
