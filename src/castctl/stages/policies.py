"""Which weights a run has at the start of a step, and the models that score for it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from castctl.data.bilateral import BilateralTemplate
from castctl.data.teacher_template import TeacherTemplate, endings_warning
from castctl.engines import Site
from castctl.errors import UserError
from castctl.methods.conditioning import Bilateral
from castctl.methods.oar import OarGradient, OarPerturbation
from castctl.models.policy import Policy, load_policy, load_shared
from castctl.models.teacher import TeacherCopy, load_other_teacher
from castctl.models.weights import Weights
from castctl.ranks import Ranks
from castctl.recipe.model import ModelSettings
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run
from castctl.runs.weights import began_with, initial_weights, weights_of
from castctl.shards.stage import WHOLE, Shard
from castctl.stages.score.part import Budget
from castctl.stages.score.scorers import Scorer, Scorers
from castctl.stages.train.provenance import provenance_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from, and the name its numbers go by in the metadata.

    `folder` is a model's or a checkpoint's, with the optimizer and the teacher; `seed` decides the
    factors of an adapter that begins.
    """

    folder: Path
    fingerprint: str
    weights: Weights
    seed: int = 0

    def load(self, settings: ModelSettings) -> Policy:
        """The policy on its device."""
        return load_policy(self.weights, settings, self.seed)


def policy_at(run: Run, step: int) -> PolicySource:
    """The policy at the start of `step`: its checkpoint, or at step 0 the initial model.

    The initial model goes by its content, a trained one by run and step, and one that
    `train --from` made by what it was made from too.
    """
    if step == 0:
        return named_policy(run.recipe)
    folder = run.checkpoint(step)
    if not folder.is_dir():
        there = ", ".join(str(k) for k in [0, *run.checkpoints()])
        raise UserError(
            f"{run.path} has no checkpoint at the start of step {step}; there are steps {there}. "
            "Train with train.keep=all and train.checkpoint_every=1 to keep every one, or name the "
            "weights with --model"
        )
    name = policy_name(run, step)
    made = provenance_of(folder)
    if made is not None:  # by an update of its own, which another one may replace
        name += f"-{hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]}"
    return PolicySource(folder, name, weights_of(run, step))


def named_policy(recipe: Recipe) -> PolicySource:
    """The policy that a recipe names."""
    weights = initial_weights(recipe.model)
    return PolicySource(weights.model, weights.fingerprint, weights, recipe.seed)


def chosen_policy(run: Run) -> PolicySource:
    """The model of the run's recipe, which was named by hand; a checkpoint of the run by the name
    it has there."""
    named = Path(run.recipe.model.path).absolute()
    for step in run.checkpoints():
        if run.checkpoint(step).absolute() == named:
            return policy_at(run, step)
    return named_policy(run.recipe)


def policy_name(run: Run, step: int) -> str:
    """What the policy in training goes by at `step`, saved or not."""
    return policy_at(run, 0).fingerprint if step == 0 else f"{run.name}@step-{step:05d}"


def reference_of(run: Run, policy: Policy) -> Scorer:
    """The frozen initial policy of the run, whatever model a command names for its own work."""
    began = began_with(run)
    initial = initial_weights(began)
    return Scorer(policy.reference(initial, began), initial.fingerprint)


def site_of(run: Run, source: PolicySource, shard: Shard = WHOLE) -> Site:
    """Where an engine of a run works; each shard has logs of its own."""
    name = f"engine-shard-{shard.index}" if shard.count > 1 else "engine"
    return Site(source.weights.model, run.path, name)


def load_trained(source: PolicySource, recipe: Recipe, ranks: Ranks) -> Policy:
    """The policy that trains, in shares where several `ranks` are to hold it so."""
    if recipe.train.sharding == "full" and ranks.rank.several:
        return load_shared(source.weights, recipe.model, ranks)
    return source.load(recipe.model)


def load_sampled(run: Run, source: PolicySource) -> Policy:
    """The policy of a stage that samples and does no more.

    An engine with weights of its own needs it to be proved by alone, so it stays off the GPU.
    """
    settings = run.recipe.model
    if run.recipe.engine.brings_weights:
        settings = settings.model_copy(update={"device": "cpu", "weights": "auto"})
    return source.load(settings)


def budget_of(recipe: Recipe) -> Budget:
    """How a recipe's passes are cut up."""
    return Budget(recipe.train.microbatch_tokens, recipe.train.head_chunk_tokens)


def make_teacher(recipe: Recipe, policy: Policy, step: int) -> TeacherCopy:
    """The recipe's teacher around a policy at `step`; its copy is the policy as it is."""
    settings, tokenizer = recipe.method.teacher, policy.model.tokenizer
    if settings.own_prompt:
        endings = TeacherTemplate(tokenizer, recipe.data, settings).endings
        if endings is not None and not settings.skip_tokens:
            log.warning("%s", endings_warning(endings))
        known = tokenizer.chat_template or ""
        for name in settings.chat_template_options:
            if name not in known:
                log.warning(
                    "the tokenizer's chat template does not use %s, which "
                    "method.teacher.chat_template_options sets", name,
                )  # fmt: skip
    other = load_other_teacher(settings, recipe.model, policy.model)
    return TeacherCopy(settings, policy, step, other)


def make_scorers(
    recipe: Recipe,
    name: str,
    policy: Policy,
    teacher: TeacherCopy | None = None,
    reference: Scorer | None = None,
) -> Scorers:
    """Who scores for a recipe's method; the policy's numbers go by `name`."""
    method, tokenizer = recipe.method, policy.model.tokenizer
    own_prompt = method.teacher.own_prompt
    bilateral = method.conditioning if isinstance(method.conditioning, Bilateral) else None
    shaping = method.shaping
    return Scorers(
        policy=Scorer(policy.model, name),
        teacher=None if teacher is None else Scorer(teacher.model, teacher.name(name)),
        reference=reference,
        told=method.teacher,
        teacher_template=TeacherTemplate(tokenizer, recipe.data, method.teacher)
        if own_prompt
        else None,
        bilateral=BilateralTemplate(
            tokenizer, recipe.data, bilateral or Bilateral(), policy.model.context_tokens
        ),
        perturbation=shaping if isinstance(shaping, OarPerturbation) else OarPerturbation(),
        gradient=shaping if isinstance(shaping, OarGradient) else OarGradient(),
        seed=recipe.seed,
    )
