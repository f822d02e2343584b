"""A model in training, as loop, teachers, engines and checkpoints know it.

Whoever trains asks these questions alone, and never how the answers come about: where all weights
train, a copy is a second model; where adapters do, a few tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from castctl.models.adapter import AdaptedModel, Adapter, fresh_adapter, stored_adapter
from castctl.models.language_model import LanguageModel
from castctl.models.loading import (
    ALIASES,
    fingerprint,
    lay_to_rest,
    load_frozen,
    load_language_model,
    load_weights,
    locate_model,
)
from castctl.models.weights import ADAPTER, Weights
from castctl.ranks import Ranks
from castctl.recipe.model import ModelSettings

NamedParameters = list[tuple[str, torch.nn.Parameter]]

Loss = Callable[[LanguageModel], tuple[Tensor, ...]]
"""What a model's passes come to: a scalar that is differentiated, and other numbers."""


def save_model(model: Any, folder: Path, **options: Any) -> None:
    """`save_pretrained`, by whatever rank: of a process group transformers lets rank 0 alone write,
    and the others write nothing without a word, where each has an engine to feed."""
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        model.save_pretrained(folder, **options)
    finally:
        del model.should_save_on_this_rank


class PolicyCopy(Protocol):
    """What the policy was at some step, as a model that scores without a gradient."""

    @property
    def model(self) -> LanguageModel:
        """Scores by the copy's weights."""

    def blend(self, keep: float) -> None:
        """Become `keep` times these weights and 1 - `keep` times the policy's."""

    def state(self) -> dict[str, Tensor]:
        """The copy's weights, by name."""

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write such weights, whole, as safetensors."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; `UserError` where it is of another model."""


class Policy(Protocol):
    """A model in training."""

    @property
    def model(self) -> LanguageModel:
        """Samples and scores: the policy as it is, whole."""

    @property
    def learner(self) -> LanguageModel:
        """Takes the gradient."""

    @property
    def in_shares(self) -> bool:
        """Whether each rank holds a share of what trains. They then differentiate in step, each as
        often as the others, and gradients arrive summed over all."""

    def trained(self) -> NamedParameters:
        """What the optimizer moves, by name."""

    def moved(self) -> NamedParameters:
        """What moves of `model`, by name."""

    def differentiate(self, loss: Loss) -> tuple[Tensor, ...]:
        """The loss of the learner, detached, whose gradient is added to what trains."""

    def gather(self) -> None:
        """Bring `model` up to what trains, after a step of the optimizer."""

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this policy, its copies or its optimizer, whole: shares come to the memory of
        rank 0, and nothing to the others, who ask as it does."""

    def copy(self) -> PolicyCopy:
        """The policy as it is now, which stays while the policy moves."""

    def reference(self, initial: Weights, settings: ModelSettings) -> LanguageModel:
        """The policy before any training, frozen, which `settings` load from `initial` where it is
        not at hand."""

    def state(self) -> dict[str, Tensor]:
        """What `save` writes, by name."""

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write what moves into a folder that is there, for `load_policy`: `state`, whole, or as
        `model` has it."""

    def save_whole(self, folder: Path) -> None:
        """Write a whole model in Hugging Face format into a folder that is there; there is no
        policy any more."""

    @property
    def adapter_rank(self) -> int | None:
        """The rank of the adapter that trains; None where whole weights do."""

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write what an engine with weights of its own takes over, in its `dtype`, into a folder
        that is there: all weights, or the adapter to those it has."""


class _Whole:
    """A policy that each rank holds whole: what trains is what samples and scores."""

    in_shares = False
    model: LanguageModel

    @property
    def learner(self) -> LanguageModel:
        return self.model

    def differentiate(self, loss: Loss) -> tuple[Tensor, ...]:
        numbers = loss(self.model)
        numbers[0].backward()
        return tuple(number.detach() for number in numbers)

    def gather(self) -> None:
        pass

    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)


class FullWeights(_Whole):
    """A policy of which every weight trains; copies and the reference are models of their own."""

    adapter_rank = None

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def trained(self) -> NamedParameters:
        return [(n, p) for n, p in self.model.model.named_parameters() if p.requires_grad]

    moved = trained

    def copy(self) -> PolicyCopy:
        return FullCopy(self.model)

    def reference(self, initial: Weights, settings: ModelSettings) -> LanguageModel:
        return _frozen(initial, settings)

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.model.state_dict())

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """The whole model, its tokenizer beside it. The index tells other programs that what lies
        beside the weights is none."""
        save_model(self.model.model, folder, state_dict=state or self.state())
        self.model.tokenizer.save_pretrained(folder)
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            with safe_open(folder / "model.safetensors", "pt") as written:
                names = dict.fromkeys(written.keys(), "model.safetensors")
            index.write_text(json.dumps({"metadata": {}, "weight_map": names}, indent=2) + "\n")

    def save_whole(self, folder: Path) -> None:
        self.save(folder)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """One file of safetensors under the names of a checkpoint, the output head among them.

        A head that is tied to the embeddings is no weight of its own in a checkpoint. An engine
        that replaces weights in place would keep its old one.
        """
        model = self.model.model
        copies = {}
        for name, tensor in model.state_dict().items():
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            copies[name] = tensor.detach().to("cpu", wanted, copy=True)
        save_model(model, folder, state_dict=copies, max_shard_size="1000TB")
        (file,) = folder.glob("*.safetensors")
        head = model.get_output_embeddings()
        (name,) = (f"{name}.weight" for name, module in model.named_modules() if module is head)
        with safe_open(file, "pt") as written:
            there = name in written.keys()  # noqa: SIM118, no mapping
        if not there:
            save_file({name: copies[name]}, folder / "output_head.safetensors")


class FullCopy:
    """A second model of a policy's weights."""

    def __init__(self, policy: LanguageModel) -> None:
        self._policy = policy
        self.model = policy.frozen_copy()

    @torch.no_grad()
    def blend(self, keep: float) -> None:
        for mine, theirs in zip(
            self.model.model.parameters(), self._policy.model.parameters(), strict=True
        ):
            mine.copy_(theirs) if keep == 0 else mine.lerp_(theirs, 1 - keep)

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.model.state_dict())

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        save_model(self.model.model, folder, state_dict=dict(state))

    def load(self, folder: Path) -> None:
        load_weights(self.model.model, folder)


class AdapterWeights(_Whole):
    """A policy whose adapter trains over frozen weights. Copies and the reference are the same
    model under other factors."""

    def __init__(
        self, model: LanguageModel, adapter: Adapter, weights: Path, settings: ModelSettings
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.base = fingerprint(weights)
        self._settings = settings

    @property
    def adapter_rank(self) -> int:
        return self.adapter.rank

    def trained(self) -> NamedParameters:
        return list(self.adapter.tensors.items())

    moved = trained

    def copy(self) -> PolicyCopy:
        return AdapterCopy(self)

    def reference(self, initial: Weights, settings: ModelSettings) -> LanguageModel:
        """Zeros for factors `B` switch the adapter off."""
        if fingerprint(initial.model) != self.base:
            return _frozen(initial, settings)
        tensors = {
            name: torch.zeros_like(factor) if ".lora_B." in name else factor.detach().clone()
            for name, factor in self.trained()
        }
        if initial.adapter is not None:
            self.adapter.read(initial.adapter, self.base, tensors)
        return AdaptedModel(self.model, tensors)

    def state(self) -> dict[str, Tensor]:
        return dict(self.trained())

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        self.write(folder / ADAPTER, state or self.state())

    def save_whole(self, folder: Path) -> None:
        """The adapter is merged into the weights at hand; from there it cannot be taken out."""
        merged = LanguageModel(self.adapter.merged(), self.model.tokenizer, self.model.dtype)
        FullWeights(merged).save(folder)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """In float32, whatever the engine's: it casts them itself."""
        self.write(folder, self.state())

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Factors as an adapter in peft's format."""
        path = self._settings.path
        local = path in ALIASES or Path(path).expanduser().is_dir()
        named = str(locate_model(path).resolve()) if local else path
        self.adapter.write(folder, tensors, named, self.base)


class AdapterCopy:
    """The factors of a policy's adapter at some step."""

    def __init__(self, policy: AdapterWeights) -> None:
        self._policy = policy
        self._tensors = {name: factor.detach().clone() for name, factor in policy.trained()}
        self.model = AdaptedModel(policy.model, self._tensors)

    @torch.no_grad()
    def blend(self, keep: float) -> None:
        for name, theirs in self._policy.trained():
            mine = self._tensors[name]
            mine.copy_(theirs) if keep == 0 else mine.lerp_(theirs, 1 - keep)

    def state(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        self._policy.write(folder, state)

    def load(self, folder: Path) -> None:
        self._policy.adapter.read(folder, self._policy.base, self._tensors)


def load_policy(weights: Weights, settings: ModelSettings, seed: int = 0) -> Policy:
    """The policy on its device; `seed` decides the factors of an adapter that begins.

    Raises `UserError` as `load_language_model`, `fresh_adapter` and `stored_adapter` do.
    """
    if weights.adapter is None and settings.lora is None:
        return FullWeights(load_language_model(weights.model, settings))
    model = load_language_model(weights.model, settings)
    if weights.adapter is not None:
        adapter = stored_adapter(model, weights.adapter, fingerprint(weights.model))
    else:
        assert settings.lora is not None, "an adapter that is not there has settings"
        adapter = fresh_adapter(model, settings.lora, seed)
    lay_to_rest(model, settings)
    return AdapterWeights(model, adapter, weights.model, settings)


def load_shared(weights: Weights, settings: ModelSettings, ranks: Ranks) -> Policy:
    """The policy on its device, every weight of which trains, held by the ranks in shares.

    Raises `UserError` as `load_language_model` does, and where this torch cannot.
    """
    from castctl.models.sharded import ShardedWeights

    policy = FullWeights(load_language_model(weights.model, settings))
    return ShardedWeights(policy, FullWeights(load_frozen(weights.model, settings)), ranks)


def _frozen(weights: Weights, settings: ModelSettings) -> LanguageModel:
    """A model of which nothing trains."""
    if weights.adapter is None:
        return load_frozen(weights.model, settings)
    model = load_policy(weights, settings).model
    model.model.requires_grad_(False)
    return model
