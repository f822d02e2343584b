"""vLLM's process with one thing left out of a change of weights."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from castctl.engines import vllm_child

Facts, Arrays = Mapping[str, Any], Mapping[str, NDArray]


class TiedHead(vllm_child.Served):
    """Is given a checkpoint as it is saved, without the head that is tied to the embeddings."""

    def load(self, facts: Facts, arrays: Arrays) -> None:
        (file,) = Path(facts["folder"]).glob("*.safetensors")
        weights = load_file(file)
        del weights["lm_head.weight"]
        save_file(weights, file, {"format": "pt"})
        super().load(facts, arrays)


class Cache(vllm_child.Served):
    """Keeps the keys and values that the old weights made."""

    def load(self, facts: Facts, arrays: Arrays) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": facts["folder"]})
        self._say("loaded")


class Nothing(vllm_child.Served):
    """Answers, and loads nothing."""

    def load(self, facts: Facts, arrays: Arrays) -> None:
        self._forget()
        self._say("loaded")


class SameAdapter(vllm_child.Served):
    """Hands every adapter over under the number of the first."""

    def _adapt(self, folder: str) -> None:
        from vllm.lora.request import LoRARequest

        self._adapter = LoRARequest("adapter", 1, folder)
        self._llm.llm_engine.add_lora(self._adapter)


def tied_head(connection: Connection) -> None:
    vllm_child.serve(connection, TiedHead)


def cache(connection: Connection) -> None:
    vllm_child.serve(connection, Cache)


def nothing(connection: Connection) -> None:
    vllm_child.serve(connection, Nothing)


def same_adapter(connection: Connection) -> None:
    vllm_child.serve(connection, SameAdapter)
