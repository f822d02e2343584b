"""The stop-gradient copy of the policy that scores completions a second time."""

from __future__ import annotations

from pathlib import Path

import torch

from castctl.errors import UserError
from castctl.methods.method import Teacher
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_weights


class TeacherCopy:
    """A teacher that follows the policy as its settings say.

    `refresh(step)` belongs at the start of a step, before scoring; `follow()` after the
    step's update. What a checkpoint saves is the copy between the two.
    """

    def __init__(self, settings: Teacher, policy: LanguageModel, step: int = 0) -> None:
        self.settings = settings
        self.policy = policy
        self.refreshed_at = step
        self._copy = policy.frozen_copy() if settings.is_copy else None

    @property
    def model(self) -> LanguageModel:
        """The model that scores; the policy itself for `current`."""
        return self.policy if self._copy is None else self._copy

    @property
    def is_copy(self) -> bool:
        return self._copy is not None

    def refresh(self, step: int) -> None:
        """Renew a snapshot whose turn it is: at steps 0, every, 2 every, ..."""
        if self.settings.kind == "snapshot" and step % self.settings.every == 0:
            self._blend(keep=0.0)
            self.refreshed_at = step

    def follow(self) -> None:
        """Move an exponential average towards the policy after an update."""
        if self.settings.kind == "ema":
            self._blend(keep=self.settings.decay)

    def save(self, folder: Path) -> None:
        """Write the copy as a Hugging Face folder; nothing for `current`."""
        if self._copy is not None:
            self._copy.model.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Restore the copy that `save` wrote; `UserError` where there is none."""
        if self._copy is None:
            return
        if not folder.is_dir():
            raise UserError(
                f"{folder.parent} has no {self.settings.kind} teacher: its run trained without "
                "one; use method.teacher.kind=current, or a run of this method"
            )
        load_weights(self._copy.model, folder)

    @torch.no_grad()
    def _blend(self, keep: float) -> None:
        assert self._copy is not None
        for mine, theirs in zip(
            self._copy.model.parameters(), self.policy.model.parameters(), strict=True
        ):
            mine.copy_(theirs) if keep == 0 else mine.lerp_(theirs, 1 - keep)
