"""The sizes of a model, read from its config.json alone: no weights are fetched or read."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from castctl.errors import UserError
from castctl.models.folder import check_model_folder
from castctl.models.loading import CONFIG_FILES, locate_model
from castctl.models.own_code import refused, runs_own_code
from castctl.models.positions import context_of
from castctl.recipe.model import ModelSettings


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory depends on; `queries` and `keys` are heads times head size, `context`
    is the longest row in tokens, 0 where the configuration states none.

    Of `parameters`, weights, `linear` stand in linear layers between embeddings and output head,
    `blocks` in decoder blocks, the largest of which has `block`; `adapter` are those of the adapter
    that trains in their place, None where there is none.
    """

    parameters: int
    vocabulary: int
    hidden: int
    inner: int
    layers: int
    queries: int
    keys: int
    context: int
    linear: int = 0
    blocks: int = 0
    block: int = 0
    adapter: int | None = None


def model_shape(settings: ModelSettings) -> ModelShape:
    """The sizes of a model from its config.json alone; no weights are fetched or read.

    Raises `UserError` where there is none, and for an architecture that castctl gets wrong.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from castctl.models.adapter import linear_layers
    from castctl.models.compatibility import check_architecture, refuse_unpackable

    folder = locate_model(settings.path, settings.revision, CONFIG_FILES)
    check_model_folder(folder)
    trust = runs_own_code(folder, settings, "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        with torch.device("meta"):  # the attention that asks for no kernel from the hub
            model = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust, attn_implementation="eager"
            )
    except Exception as error:  # transformers raises many kinds
        what = f"{settings.path} has no configuration that loads"
        raise refused(folder, error, what) from None
    refuse_unpackable(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = shape_of(config.get_text_config(), parameters)
    check_architecture(type(model), config)
    layers = [model.get_submodule(name).weight for name in linear_layers(model)]
    linear = sum(weight.numel() for weight in layers)
    blocks = _block_sizes(model)
    return replace(
        shape, linear=linear, blocks=sum(blocks), block=max(blocks, default=0),
        adapter=_adapter_size(model, settings),
    )  # fmt: skip


def _block_sizes(model: Any) -> list[int]:
    """Weights of each decoder block: what is below the first number of a name."""
    sizes: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if block := re.match(r"\D*\.\d+(?=\.)", name):
            sizes[block[0]] += parameter.numel()
    return list(sizes.values())


def _adapter_size(model: Any, settings: ModelSettings) -> int | None:
    """Weights of the adapter that the settings ask for: two factors a layer."""
    from castctl.models.adapter import linear_layers, read_config, require_targets

    layers = linear_layers(model)
    if settings.adapter is not None:
        stored = read_config(Path(settings.adapter).expanduser())
        rank, targets = int(stored["r"]), stored["target_modules"]
    elif settings.lora is not None:
        rank, targets = settings.lora.r, require_targets(layers, settings.lora)
    else:
        return None
    return sum(
        rank * sum(model.get_submodule(name).weight.shape)
        for name in layers
        if any(f".{name}".endswith(f".{target}") for target in targets)
    )


def shape_of(config: Any, parameters: int) -> ModelShape:
    """The sizes that a decoder's configuration states, under the names most of them share.

    Raises `UserError` where it states none of a size, as it does for a model without attention.
    """
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not getattr(config, name, None):
            raise UserError(f"{config.model_type} states no {name}, which memory depends on")
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        layers=config.num_hidden_layers,
        queries=heads * size,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * size,
        context=_context(config),
    )


def _context(config: Any) -> int:
    limit, _ = context_of(config)
    return 0 if limit == sys.maxsize else limit
