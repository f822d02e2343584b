"""A small model of the same architecture: what a big one does with long rows, seen in short ones.

Layers of every kind, experts, windows and position boundaries are there, each as small as it may
be, under random weights whose answers are far from uniform. A row of forty tokens then passes
every boundary that the configuration names, in milliseconds.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

LAYERS = 4
"""The first layers of a twin; one of every kind follows that is not among them."""
WINDOW = 8
ORIGINAL = 16
CONTEXT = 64
HEAD_SIZE = 32
LARGEST = 300_000_000
"""Weights of a twin at most: 2.4 GB for the two of them."""

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
MOST: tuple[tuple[str, int], ...] = (
    (r"original_max_position_embeddings", ORIGINAL),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions", CONTEXT),
    (r"(?!max_window_layers|.*pattern).*window.*|attention_chunk_size|local_attention", WINDOW),
    (r"index_topk", WINDOW),
    (r".*vocab_size(_per_layer_input)?", 64),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|ffn_size)|n_inner|dff|dim_ff|d_inner", 48),
    (r"(moe_)?num_(local_)?experts|n_routed_experts|zero_expert_num", 8),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k|n_group|num_expert_group", 2),
    (r"topk_group|first_k_dense_replace|num_dense_layers|num_kv_shared_layers", 1),
)
"""The largest value of a setting whose name is all of a pattern."""
RANKS: tuple[tuple[str, int], ...] = (
    (r"qk_head_dim|kv_lora_rank|q_lora_rank", 32),
    (r"qk_(rope|nope)_head_dim|v_head_dim", 16),
)
"""The same of latent attention, for narrow twins."""

HEADS = ("num_attention_heads", "n_head", "decoder_attention_heads")
WIDTHS = ("hidden_size", "n_embd", "d_model")


def twin_of(kind: type, config: Any, seed: int = 0) -> tuple[Any, Any]:
    """Two small models of a causal class and a configuration like its own, on the CPU in float32
    and with the same weights: under castctl's attention, and under the architecture's own.

    The global random state stays as it is. Raises what the class raises where it cannot be built.
    """
    from castctl.models import attention

    error: Exception | None = None
    for narrow in (True, False):
        try:
            small = shrunken(config, narrow)
            _refuse_large(kind, small)
            with torch.random.fork_rng(devices=[]):
                ours, theirs = (_built(kind, small, way) for way in (attention.NAME, "eager"))
            _peak(ours, torch.Generator().manual_seed(seed))
            theirs.load_state_dict(ours.state_dict())
            _run(theirs)
            return ours, theirs
        except Exception as reason:  # what a class makes of sizes it does not like has many kinds
            error = error or reason
    assert error is not None
    raise error


def _refuse_large(kind: Any, config: Any) -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in kind._from_config(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"it has {size / 1e6:,.0f} million weights still")


def _run(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


def _built(kind: Any, config: Any, implementation: str) -> Any:
    config = copy.deepcopy(config)
    model = kind._from_config(config, attn_implementation=implementation, dtype=torch.float32)
    still(model)
    return model.eval()


def still(model: Any) -> None:
    """Switch every dropout of a model off: modules, and probabilities that functions are given."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@torch.no_grad()
def _peak(model: Any, generator: torch.Generator) -> None:
    """Weights under which tokens matter: usual ones give every token the same probability."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1.5 / min(parameter.shape[-2:]) ** 0.5, generator=generator)
        elif name.endswith(("bias", "sinks")):
            parameter.normal_(0, 0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)


def shrunken(config: Any, narrow: bool = True) -> Any:
    """A configuration of the same kind with few and small layers; `narrow` ones where it says so,
    which not every architecture allows."""
    return type(config).from_dict(_shrunken(config.to_dict(), narrow))


def _shrunken(config: dict[str, Any], narrow: bool) -> dict[str, Any]:
    small = {
        name: _shrunken(value, narrow) if isinstance(value, dict) else _capped(name, value, MOST)
        for name, value in config.items()
    }
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(small.get(name), int):
            small[name] = 0
    if any(isinstance(config.get(name), int) for name in LAYER_COUNTS):
        _keep_layers(small)
    if narrow:
        _narrow(small)
    return small


def _capped(name: str, value: Any, bounds: tuple[tuple[str, int], ...]) -> Any:
    if isinstance(value, list):
        return [_capped(name, each, bounds) for each in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return min([value, *(most for names, most in bounds if re.fullmatch(names, name))])


def _keep_layers(small: dict[str, Any]) -> None:
    """Keep the first layers and one of each further kind, in every list that has one a layer."""
    count = next(small[name] for name in LAYER_COUNTS if isinstance(small.get(name), int))
    lists = {
        name: value
        for name, value in small.items()
        if isinstance(value, list) and len(value) == count and not _numbers_layers(value, count)
    }
    kinds = [tuple(str(value[layer]) for value in lists.values()) for layer in range(count)]
    firsts = {kind: layer for layer, kind in reversed(list(enumerate(kinds)))}
    kept = sorted({*range(min(LAYERS, count)), *firsts.values()})
    for name, value in small.items():
        if name in lists:
            small[name] = [value[layer] for layer in kept]
        elif isinstance(value, list) and _numbers_layers(value, count):
            small[name] = [place for place, layer in enumerate(kept) if layer in value]
        elif isinstance(value, dict) and value and all(str(key).isdigit() for key in value):
            places = {layer: place for place, layer in enumerate(kept)}
            of_layer = {int(key): each for key, each in value.items() if int(key) in places}
            small[name] = {places[layer]: each for layer, each in of_layer.items()}
        elif name in LAYER_COUNTS and isinstance(value, int):
            small[name] = len(kept)


def _numbers_layers(value: list[Any], count: int) -> bool:
    """Whether a list names layers by their numbers."""
    numbers = all(isinstance(each, int) and 0 <= each < count for each in value)
    return numbers and sorted({*value}) == value and len(value) > 1


def _narrow(small: dict[str, Any]) -> None:
    """Few heads, small ones where no list counts their halves, and the width they take together."""
    latent = "qk_rope_head_dim" in small
    small |= {name: _capped(name, value, RANKS) for name, value in small.items()}
    heads = next((name for name in HEADS if isinstance(small.get(name), int)), None)
    width = next((name for name in WIDTHS if isinstance(small.get(name), int)), None)
    if heads is None or width is None:
        return
    size = small.get("head_dim") or small[width] // small[heads]
    if not _holds_list(small.get("rope_parameters")):
        least = small["qk_rope_head_dim"] if latent else small.get("rotary_dim") or 0
        size = min(size, max(least, 0 if latent else HEAD_SIZE))
    if isinstance(small.get("head_dim"), int):
        small["head_dim"] = size
    keys = small.get("num_key_value_heads")
    grouped = isinstance(keys, int) and 0 < keys < small[heads]
    small[heads] = min(small[heads], 4)
    if isinstance(keys, int):
        small["num_key_value_heads"] = min(keys, 2) if grouped else small[heads]
    small[width] = small[heads] * size


def _holds_list(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else ()
    return isinstance(value, list) or any(map(_holds_list, inner))
