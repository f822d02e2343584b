"""The stop-gradient model that scores completions a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from castctl.errors import UserError
from castctl.methods.teacher import PATHLESS, Teacher
from castctl.models.language_model import LanguageModel
from castctl.models.loading import fingerprint, load_frozen, locate_model
from castctl.models.policy import Policy, PolicyCopy
from castctl.recipe.model import ModelSettings


@dataclass(frozen=True)
class OtherTeacher:
    """A frozen model that is no copy of the policy, and the name its numbers go by."""

    model: LanguageModel
    fingerprint: str


def load_other_teacher(
    settings: Teacher, model: ModelSettings, policy: LanguageModel
) -> OtherTeacher | None:
    """The model that `settings` name, None where the teacher is the policy or a copy of it.

    Raises `UserError` where nobody has named it, where it does not load, and where it has another
    vocabulary than the policy.
    """
    if settings.pathless:
        raise UserError(PATHLESS)
    if settings.path is None:
        return None
    folder = locate_model(settings.path, settings.revision)
    teacher = load_frozen(folder, model)
    same_words = teacher.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if not same_words or teacher.vocabulary != policy.vocabulary:
        raise UserError(
            f"method.teacher.path={settings.path} has another vocabulary ({teacher.vocabulary} "
            f"tokens) than the policy ({policy.vocabulary}); a teacher must know the same tokens"
        )
    return OtherTeacher(teacher, fingerprint(folder))


class TeacherCopy:
    """A teacher that follows the policy as its settings say, or `other`, a model of its own.

    `refresh(step)` belongs at the start of a step, before scoring; `follow()` after the
    step's update. What a checkpoint saves is the copy between the two.
    """

    def __init__(
        self,
        settings: Teacher,
        policy: Policy,
        step: int = 0,
        other: OtherTeacher | None = None,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.refreshed_at = step
        self._copy: PolicyCopy | None = policy.copy() if settings.is_copy else None
        self._other = other

    @property
    def model(self) -> LanguageModel:
        """The model that scores; the policy itself for `current`."""
        if self._other is not None:
            return self._other.model
        return (self._copy or self.policy).model

    def name(self, policy_name: str) -> str:
        """What its numbers go by where the policy's go by `policy_name`."""
        if self._other is not None:
            return self._other.fingerprint
        return f"{policy_name} {self.settings.kind} teacher" if self.is_copy else policy_name

    @property
    def is_copy(self) -> bool:
        return self._copy is not None

    def refresh(self, step: int) -> None:
        """Renew a snapshot whose turn it is: at steps 0, every, 2 every, ..."""
        if (
            self._copy is not None
            and self.settings.kind == "snapshot"
            and step % self.settings.every == 0
        ):
            self._copy.blend(keep=0.0)
            self.refreshed_at = step

    def follow(self) -> None:
        """Move an exponential average towards the policy after an update."""
        if self._copy is not None and self.settings.kind == "ema":
            self._copy.blend(keep=self.settings.decay)

    def state(self) -> dict[str, Tensor]:
        """The copy's weights, by name; none for `current`."""
        return {} if self._copy is None else self._copy.state()

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write such weights, whole, or the copy's; nothing for `current`."""
        if self._copy is not None:
            self._copy.save(folder, state or self._copy.state())

    def load(self, folder: Path) -> None:
        """Restore the copy that `save` wrote; `UserError` where there is none."""
        if self._copy is None:
            return
        if not folder.is_dir():
            raise UserError(
                f"{folder.parent} has no {self.settings.kind} teacher: its run trained without "
                "one; use method.teacher.kind=current, or a run of this method"
            )
        self._copy.load(folder)
