"""A model in training, as loop, teachers, engines and checkpoints know it.

Whoever trains asks these questions alone, and never how the answers come about: today all weights
train, and a copy is a second model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model, load_weights
from castctl.recipe.recipe import ModelSettings

NamedParameters = list[tuple[str, torch.nn.Parameter]]


class PolicyCopy(Protocol):
    """What the policy was at some step, as a model that scores without a gradient."""

    @property
    def model(self) -> LanguageModel:
        """Scores by the copy's weights."""

    def blend(self, keep: float) -> None:
        """Become `keep` times these weights and 1 - `keep` times the policy's."""

    def save(self, folder: Path) -> None:
        """Write the copy's weights, as safetensors."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; `UserError` where it is of another model."""


class Policy(Protocol):
    """A model in training."""

    @property
    def model(self) -> LanguageModel:
        """Samples, scores, and takes the gradient."""

    def trained(self) -> NamedParameters:
        """What the optimizer moves, by name."""

    def copy(self) -> PolicyCopy:
        """The policy as it is now, which stays while the policy moves."""

    def reference(self, initial: Callable[[], LanguageModel]) -> LanguageModel:
        """The policy before any training, frozen; `initial` loads it where it is not at hand."""

    def save(self, folder: Path) -> None:
        """Write what `load_policy` reads into a folder that is there, the tokenizer beside it."""

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write what an engine with weights of its own takes over, in its `dtype`, into a folder
        that is there."""


class FullWeights:
    """A policy of which every weight trains; copies and the reference are models of their own."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def trained(self) -> NamedParameters:
        return [(n, p) for n, p in self.model.model.named_parameters() if p.requires_grad]

    def copy(self) -> PolicyCopy:
        return FullCopy(self.model)

    def reference(self, initial: Callable[[], LanguageModel]) -> LanguageModel:
        model = initial()
        model.model.requires_grad_(False)
        return model

    def save(self, folder: Path) -> None:
        """The index tells other programs that what lies beside the weights is none."""
        self.model.model.save_pretrained(folder)
        self.model.tokenizer.save_pretrained(folder)
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            with safe_open(folder / "model.safetensors", "pt") as written:
                names = dict.fromkeys(written.keys(), "model.safetensors")
            index.write_text(json.dumps({"metadata": {}, "weight_map": names}, indent=2) + "\n")

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
        model.save_pretrained(folder, state_dict=copies, max_shard_size="1000TB")
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

    def save(self, folder: Path) -> None:
        self.model.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        load_weights(self.model.model, folder)


def load_policy(folder: Path, settings: ModelSettings) -> Policy:
    """The policy in a model's or a checkpoint's folder, on its device; `UserError` as
    `load_language_model` raises it."""
    return FullWeights(load_language_model(folder, settings))
