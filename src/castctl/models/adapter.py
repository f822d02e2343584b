"""Adapters in peft's format: low-rank factors beside the linear layers of a frozen model (LoRA,
arXiv 2106.09685)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from castctl.errors import UserError, one_line
from castctl.files import regular
from castctl.models.language_model import LanguageModel
from castctl.recipe.model import LoraSettings
from castctl.shards.part import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

BASE = "castctl.base"
"""Entry of the weights' metadata: the fingerprint of the model that they were trained on."""

Tensors = dict[str, Tensor]
"""The factors by their parameters' names in the model."""

READ = {"r", "lora_alpha", "target_modules", "use_rslora"}
"""What decides an adapter's numbers, of the settings that castctl takes."""

SILENT = {
    "task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "init_lora_weights", "auto_mapping", "exclude_modules",
    "megatron_core",
}  # fmt: skip
"""Settings that change nothing once the factors are there: dropout, say, is off in castctl."""


class Adapter:
    """The factors that train, in a model that is changed in place.

    Every other weight is frozen. A factor `B` of zeros leaves the model's numbers as they are to
    the last bit.
    """

    def __init__(self, model: LanguageModel, config: Any) -> None:
        from peft import get_peft_model

        model.model.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, about what peft asks it
            self._peft = get_peft_model(model.model, config)
        self._model = model.model

    @property
    def tensors(self) -> dict[str, torch.nn.Parameter]:
        """The factors that train, by name."""
        return {n: p for n, p in self._model.named_parameters() if p.requires_grad}

    @property
    def rank(self) -> int:
        return int(self._config.r)

    @property
    def _config(self) -> Any:
        return self._peft.peft_config["default"]

    def merged(self) -> Any:
        """The model with the factors added to its weights; there is no adapter any more."""
        return self._peft.merge_and_unload()

    def by_file_name(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """Factors by the names that they have in a file."""
        from peft import get_peft_model_state_dict

        inside = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        return dict(get_peft_model_state_dict(self._peft, state_dict=inside))

    def write(self, folder: Path, tensors: Mapping[str, Tensor], model: str, base: str) -> None:
        """Write factors as an adapter of `model`, a path or hub id, whose fingerprint is `base`;
        the folder may be there."""
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        self._config.save_pretrained(folder)
        written = read_json(folder / CONFIG_FILE)
        told = {"base_model_name_or_path": model, "inference_mode": True}
        written |= told | {"target_modules": sorted(self._config.target_modules)}
        (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        named = self.by_file_name({n: t.detach().contiguous() for n, t in tensors.items()})
        save_file(named, folder / WEIGHTS_FILE, metadata={"format": "pt", BASE: base})

    @torch.no_grad()
    def read(self, folder: Path, base: str, into: Mapping[str, Tensor]) -> None:
        """Fill factors with those in a folder.

        Raises `UserError`, everything untouched, where they were trained on another model than the
        one with the fingerprint `base`, and where any is missing, unknown or of another shape.
        """
        from safetensors import safe_open

        file = folder / WEIGHTS_FILE
        try:
            with safe_open(regular(file), "pt") as stored:
                made_on = (stored.metadata() or {}).get(BASE, base)
                found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises many kinds
            raise UserError(f"cannot load the adapter in {folder}: {one_line(error)}") from None
        if made_on != base:
            raise UserError(
                f"the adapter in {folder} was trained on another model ({made_on}, and this one is "
                f"{base}); name its own with --model"
            )
        named = self.by_file_name(into)
        if foreign := sorted(found.keys() ^ named.keys()):
            kind = "lacks" if foreign[0] in named else "has an unknown"
            raise UserError(
                f"the adapter in {folder} {kind} {one_line(foreign[0], 120)}; it is of another "
                "model"
            )
        for name, tensor in found.items():
            if tensor.shape != named[name].shape or not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"the adapter in {folder}: {one_line(name, 120)} has another shape than the "
                    "model's layer, or holds what is no number"
                )
        for name, tensor in found.items():
            named[name].copy_(tensor)


def fresh_adapter(model: LanguageModel, lora: LoraSettings, seed: int) -> Adapter:
    """An adapter that changes nothing yet; `seed` decides its factors `A`.

    Raises `UserError` where a target is no linear layer, or is the output head.
    """
    from peft import LoraConfig

    targets = require_targets(linear_layers(model.model), lora)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Adapter(model, config)


def require_targets(layers: Mapping[str, str], lora: LoraSettings) -> list[str]:
    """The last names of the linear `layers` that get factors; `UserError` as `fresh_adapter`."""
    known = sorted(set(layers.values()))
    if lora.targets == "all-linear":
        return known
    for target in lora.targets:
        if target not in known:
            raise UserError(
                f"model.lora.targets: {target} is no linear layer between embeddings and output "
                f"head; there are {', '.join(known)}"
            )
    return sorted(lora.targets)


def stored_adapter(model: LanguageModel, folder: Path, base: str) -> Adapter:
    """The adapter in a folder, on a model whose fingerprint is `base`.

    Raises `UserError` where it is none that castctl takes, and as `Adapter.read`.
    """
    from peft import LoraConfig

    given = read_config(folder)
    settings = {key: value for key, value in given.items() if key in READ}
    layers = linear_layers(model.model)
    try:
        settings["target_modules"] = sorted(map(str, settings["target_modules"]))
        adapter = Adapter(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    except Exception as error:  # peft raises many kinds
        raise UserError(f"cannot load the adapter in {folder}: {one_line(error)}") from None
    known = {f"{layer}.lora_{factor}.default.weight" for layer in layers for factor in "AB"}
    if wrong := sorted(adapter.tensors.keys() - known):
        raise UserError(
            f"the adapter in {folder} changes {one_line(wrong[0], 120)}, which is no linear layer "
            "between embeddings and output head"
        )
    adapter.read(folder, base, adapter.tensors)
    return adapter


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter; `UserError` where one of them asks for more than low-rank factors
    of linear layers."""
    from peft import LoraConfig

    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no {CONFIG_FILE}, so it is no adapter's folder")
    given = read_json(file, "name another adapter")
    if given.get("peft_type") != "LORA":
        raise UserError(f"{file}: castctl takes adapters of peft_type LORA alone")
    usual = {field.name: getattr(LoraConfig(), field.name, None) for field in fields(LoraConfig)}
    for key, value in given.items():
        if key not in READ | SILENT and value not in (usual.get(key), None, [], {}, False):
            raise UserError(f"{file} sets {one_line(key, 60)}, which castctl does not take")
    if given.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise UserError(f"{file}: init_lora_weights has changed the model's own weights")
    if not isinstance(given.get("target_modules"), list):
        raise UserError(f"{file}: target_modules is no list of layers")
    return given


def linear_layers(model: Any) -> dict[str, str]:
    """The linear layers but the output head: the last part of each one's name, by its name."""
    head = model.get_output_embeddings()
    return {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


class AdaptedModel(LanguageModel):
    """A model that reads with other factors than those that train in it.

    They are there within a call alone, so nothing of them is left in the model, and a graph that is
    waiting for its backward pass keeps its own.
    """

    def __init__(self, model: LanguageModel, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(model.model, model.tokenizer, model.dtype)
        prefix = f"{model.model.base_model_prefix}."
        self._tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    def _decode(self, **inputs: Any) -> Any:
        return torch.func.functional_call(self.model.base_model, self._tensors, kwargs=inputs)
