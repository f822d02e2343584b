"""All that moves while training."""

from __future__ import annotations

from dataclasses import dataclass

from castctl.models.policy import Policy
from castctl.models.teacher import TeacherCopy
from castctl.runs.run import Run
from castctl.stages.policies import make_teacher
from castctl.stages.train.optimizer import Optimizer


@dataclass(frozen=True)
class TrainState:
    """What an update moves, and a checkpoint holds."""

    policy: Policy
    teacher: TeacherCopy
    optimizer: Optimizer


def new_state(run: Run, policy: Policy, step: int) -> TrainState:
    """Fresh teacher and optimizer around a policy."""
    settings = run.recipe.train
    updates = settings.steps * settings.epochs * settings.minibatches
    if settings.gradient_checkpointing:
        policy.learner.recompute_activations()
    return TrainState(
        policy,
        make_teacher(run.recipe, policy, step),
        Optimizer(policy.trained(), run.recipe.optimizer, updates),
    )
