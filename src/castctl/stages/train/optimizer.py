"""AdamW with its schedule, and its state as safetensors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from castctl.errors import UserError, one_line
from castctl.files import regular
from castctl.models.policy import NamedParameters
from castctl.models.shares import share_like
from castctl.recipe.optimizer import OptimizerSettings
from castctl.shards.part import read_json

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW over a policy's trained parameters; `total_steps` optimizer steps in all."""

    def __init__(
        self, trained: NamedParameters, settings: OptimizerSettings, total_steps: int
    ) -> None:
        from transformers import get_scheduler

        self._named = trained
        matrices = [p for _, p in self._named if p.ndim > 1]
        vectors = [p for _, p in self._named if p.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},  # norms and biases are not decayed
            ],
            lr=settings.lr,
            betas=settings.betas,
        )
        name, options = {
            "constant": ("constant_with_warmup", {}),
            "cosine": ("cosine", {}),
            "linear": ("polynomial", {"lr_end": settings.end_lr, "power": 1.0}),
        }[settings.schedule]
        warmup = settings.warmup_of(total_steps)
        self._schedule = get_scheduler(name, self._adamw, warmup, total_steps, options)
        self._total_steps = total_steps
        self.steps = 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def zero_grad(self) -> None:
        """Zero gradients, not absent ones: a step without a signal still decays the moments."""
        for _, parameter in self._named:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients, in the order of the parameters."""
        return [p.grad for _, p in self._named if p.grad is not None]

    def clip(self, max_norm: float) -> float:
        """Scale the gradient down to `max_norm`; its norm before, over all ranks' shares."""
        parameters = [parameter for _, parameter in self._named]
        norm = torch.nn.utils.get_total_norm(self.gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def step(self) -> None:
        self._adamw.step()
        self._schedule.step()
        self.steps += 1

    def state(self) -> dict[str, Tensor]:
        """Both moments of each parameter, by name."""
        return {
            f"{name}.{moment}": self._adamw.state[parameter][moment].contiguous()
            for name, parameter in self._named
            if parameter in self._adamw.state
            for moment in MOMENTS
        }

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write such moments, whole, or these, as safetensors and the step count as JSON."""
        from safetensors.torch import save_file

        save_file(dict(state or self.state()), folder / "optimizer.safetensors")
        (folder / "optimizer.json").write_text(json.dumps({"steps": self.steps}) + "\n")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; `UserError` where it is of another model."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            steps = read_json(folder / "optimizer.json")["steps"]
            tensors = load_file(regular(folder / "optimizer.safetensors"))
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder} has no optimizer state that loads: {error}") from None
        if type(steps) is not int or not 0 <= steps <= self._total_steps:
            raise UserError(
                f"{folder}: the optimizer state says {one_line(repr(steps), 40)} steps, and the "
                f"recipe plans {self._total_steps}; start from another checkpoint, or raise "
                "train.steps"
            )
        known = {f"{name}.{moment}" for name, _ in self._named for moment in MOMENTS}
        if foreign := tensors.keys() - known:
            raise UserError(f"{folder}: the optimizer state is of another model ({min(foreign)})")
        for name, parameter in self._named:
            moments = {moment: tensors.get(f"{name}.{moment}") for moment in MOMENTS}
            if steps and any(m is None or m.shape != parameter.shape for m in moments.values()):
                raise UserError(f"{folder}: the optimizer state is of another model ({name})")
            if steps:
                self._adamw.state[parameter] = {
                    "step": torch.tensor(float(steps)),
                    **{n: share_like(m, parameter) for n, m in moments.items() if m is not None},
                }
        if steps:  # the schedule alone catches up; torch warns of the order
            self._schedule.last_epoch = steps - 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._schedule.step()
        self.steps = steps
