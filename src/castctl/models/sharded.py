"""A policy that the ranks hold in shares, by FSDP2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.models.loading import read_weights
from castctl.models.policy import Loss, NamedParameters, Policy, PolicyCopy, save_model
from castctl.models.shares import share_like
from castctl.models.weights import Weights
from castctl.ranks import Ranks
from castctl.recipe.model import ModelSettings


class ShardedWeights:
    """A policy of which every weight trains, in shares of the ranks.

    Weights in float32, gradients and moments are in shares. Beside them each rank holds the whole
    model, frozen, which samples and scores without the others.
    """

    in_shares = True
    adapter_rank = None

    def __init__(self, policy: Policy, whole: Policy, ranks: Ranks) -> None:
        self.model = whole.model
        self.learner = policy.model
        self.trained = policy.trained
        self.ranks = ranks
        self._whole = whole
        _share_out(self.learner.model, ranks.rank.count)

    def moved(self) -> NamedParameters:
        return list(self.model.model.named_parameters())

    def differentiate(self, loss: Loss) -> tuple[Tensor, ...]:
        """One pass forward and backward, all of it within what FSDP takes for the model's forward
        call, so that every weight that it reads is whole."""
        with self.ranks.exchange("a pass"):
            numbers = self.learner.model.within(lambda: loss(self.learner))
            numbers[0].backward()
        return tuple(number.detach() for number in numbers)

    @torch.no_grad()
    def gather(self) -> None:
        with self.ranks.exchange("the weights"):
            _fill(self.model, self.trained())

    @torch.no_grad()
    def whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One tensor at a time."""
        gathered = {}
        with self.ranks.exchange("a checkpoint's weights"):
            for name, tensor in state.items():
                full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if self.ranks.first:
                    gathered[name] = full.cpu()
        return gathered

    def copy(self) -> PolicyCopy:
        return ShardedCopy(self)

    def reference(self, initial: Weights, settings: ModelSettings) -> LanguageModel:
        return self._whole.reference(initial, settings)

    def state(self) -> dict[str, Tensor]:
        """Weights that are tied go by one name, as in a checkpoint."""
        model = self.learner.model
        named = dict(model.named_parameters(remove_duplicate=False))
        tied = named.keys() - dict(model.named_parameters()).keys()
        return {name: t for name, t in model.state_dict().items() if name not in tied}

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        self._whole.save(folder, state)

    def save_whole(self, folder: Path) -> None:
        self.save(folder)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        self._whole.export(folder, dtype)


class ShardedCopy:
    """Shares of a policy's weights at some step, and the whole model of them, which scores."""

    def __init__(self, policy: ShardedWeights) -> None:
        self._policy = policy
        self._shares = {name: share.detach().clone() for name, share in policy.trained()}
        self.model = policy.model.frozen_copy()

    @torch.no_grad()
    def blend(self, keep: float) -> None:
        for name, theirs in self._policy.trained():
            mine, now = _local(self._shares[name]), _local(theirs)
            mine.copy_(now) if keep == 0 else mine.lerp_(now, 1 - keep)
        self._gather()

    def state(self) -> dict[str, Tensor]:
        return dict(self._shares)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        save_model(self.model.model, folder, state_dict=dict(state))

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        state = read_weights(self.model.model, folder)
        for name, share in self._shares.items():
            share.copy_(share_like(state[name], share))
        self._gather()

    def _gather(self) -> None:
        with self._policy.ranks.exchange("the teacher's weights"):
            _fill(self.model, self._shares.items())


def _share_out(model: Any, count: int) -> None:
    """Leave each rank a share of every weight: a layer's together, and those of embeddings, last
    norm and head. Gradients are summed, where FSDP by itself would average.

    Raises `UserError` where this torch cannot.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"train.sharding=full needs torch 2.8 or newer; this is {torch.__version__}"
        )
    mesh = init_device_mesh(model.device.type, (count,))
    layers = set(model._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if hasattr(module, "set_reduce_scatter_unused_params"):  # of experts nobody asked
                module.set_reduce_scatter_unused_params(True)
    model.within = lambda work: work()
    register_fsdp_forward_method(model, "within")


def _fill(model: LanguageModel, shares: Iterable[tuple[str, Tensor]]) -> None:
    """Give a whole model the weights that the ranks hold in shares, rounded before they travel
    where it rests in less."""
    into = dict(model.model.named_parameters())
    for name, share in shares:
        weight = into.pop(name)
        rounded = share.detach().to(weight.dtype)
        assert isinstance(rounded, DTensor), f"{name} is in shares"
        weight.copy_(rounded.full_tensor())
    assert not into, f"no share of {min(into)}"


def _local(share: Tensor) -> Tensor:
    """What this rank has of it, in place."""
    detached = share.detach()
    assert isinstance(detached, DTensor), "weights are in shares"
    return detached.to_local()
