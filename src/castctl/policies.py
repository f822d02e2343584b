"""Which weights a run has at the start of a step, and the models that score for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from castctl.errors import UserError
from castctl.models.language_model import LanguageModel
from castctl.models.loading import fingerprint, load_language_model, locate_model
from castctl.models.teacher import TeacherCopy
from castctl.recipe import ModelSettings
from castctl.runs import Run
from castctl.score import Scorer


@dataclass(frozen=True)
class PolicySource:
    """A folder of weights, and the name its numbers go by in the metadata."""

    folder: Path
    fingerprint: str

    def load(self, settings: ModelSettings) -> LanguageModel:
        """The model on its device."""
        return load_language_model(self.folder, settings)


def policy_at(run: Run, step: int) -> PolicySource:
    """The policy at the start of `step`: its checkpoint, or at step 0 the initial model.

    The initial model goes by its content, a trained one by run and step.
    """
    if step == 0:
        return named_policy(run.recipe.model)
    folder = run.checkpoint(step)
    if not folder.is_dir():
        there = ", ".join(str(k) for k in [0, *run.checkpoints()])
        raise UserError(
            f"{run.path} has no checkpoint at the start of step {step}; there are steps {there}. "
            "Train with train.keep=all and train.checkpoint_every=1 to keep every one, or name the "
            "weights with --model"
        )
    return PolicySource(folder, policy_name(run, step))


def named_policy(settings: ModelSettings) -> PolicySource:
    """The model that the settings name."""
    folder = locate_model(settings.path, settings.revision)
    return PolicySource(folder, fingerprint(folder))


def policy_name(run: Run, step: int) -> str:
    """What the policy in training goes by at `step`, saved or not."""
    return policy_at(run, 0).fingerprint if step == 0 else f"{run.name}@step-{step:05d}"


def load_reference(run: Run) -> Scorer:
    """The frozen initial policy."""
    source = policy_at(run, 0)
    reference = source.load(run.recipe.model)
    reference.model.requires_grad_(False)
    return Scorer(reference, source.fingerprint)


def make_scorers(
    name: str,
    policy: LanguageModel,
    teacher: TeacherCopy | None = None,
    reference: Scorer | None = None,
) -> dict[str, Scorer]:
    """For each log-prob signal that the models at hand can compute, its scorer."""
    scorers = {"policy_logprobs": Scorer(policy, name)}
    if teacher is not None:
        label = f"{name} {teacher.settings.kind} teacher" if teacher.is_copy else name
        scorers["teacher_logprobs"] = Scorer(teacher.model, label)
    if reference is not None:
        scorers["ref_logprobs"] = reference
    return scorers
