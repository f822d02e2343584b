"""Compute what a step lacks for a diagnostic, under `diagnose/` and never over the run's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from castctl.diagnosis.needs import Need
from castctl.errors import UserError
from castctl.inspection.tokens import run_tokenizer
from castctl.methods import MethodSettings
from castctl.models.loading import load_tokenizer, locate_model
from castctl.models.policy import Policy
from castctl.progress import Progress
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run
from castctl.shards.part import read_json, read_metadata, write_json
from castctl.shards.stage import StepFolder, agreed
from castctl.stages.one_step import teacher_at
from castctl.stages.policies import PolicySource, budget_of, make_scorers, policy_at, reference_of
from castctl.stages.score.others import others_answers
from castctl.stages.score.rewards import score_rewards
from castctl.stages.score.scorers import Scorer
from castctl.stages.score.signals import score_signals
from castctl.stages.shape import shape_step
from castctl.verify.judge import judging_pool


@dataclass(frozen=True)
class Computed:
    """A step whose missing stages lie under `diagnose/`, and the seconds of its scoring passes,
    where one call made them whole."""

    folder: StepFolder
    seconds: dict[str, float]


def compute_missing(
    run: Run,
    folder: StepFolder,
    need: Need,
    out: Path,
    *,
    method: MethodSettings,
    source: PolicySource | None,
    rescore: bool,
    others: bool = False,
    progress: Progress,
    overwrite: bool = False,
) -> Computed:
    """Judge, score and shape a step for `method` into `out`, where the run's own do not serve;
    `rescore` says that its signals do not, whatever they are, and `others` that the teacher is told
    what another problem of the step tells.

    Policy and teacher are both scored with the same weights: `source`, or the checkpoint at the
    step's start. Old log-probs of the policy beside newer weights of its teacher would put the
    policy's drift into the gap. Raises `UserError` where there are no such weights.
    """
    recipe = run.recipe.model_copy(update={"method": method})
    own = Run(run.path, recipe)
    view = replace(folder, elsewhere=_elsewhere(folder, need, out, rescore))
    if "rewards" in view.elsewhere:
        _judge(own, view, progress, overwrite)
    seconds: dict[str, float] = {}
    if "signals" in view.elsewhere:
        source = source or policy_at(own, folder.step)
        policy = source.load(recipe.model)
        signals = need.signals | need.welcome
        taught, anchored = "teacher_logprobs" in signals, "ref_logprobs" in signals
        scorers = make_scorers(
            recipe, source.fingerprint, policy,
            teacher_at(own, folder.step, source, policy) if taught else None,
            _reference(own, policy) if anchored else None,
        )  # fmt: skip
        if others and scorers.teacher_template is not None:
            scorers = replace(scorers, others=others_answers(
                folder.table("rollouts"), scorers.teacher_template, recipe.seed, folder.step
            ))  # fmt: skip
        whole = overwrite or not view.parts("signals")
        spent = score_signals(
            view, signals, scorers, temperature=_temperature(folder, recipe),
            budget=budget_of(recipe), progress=progress, overwrite=overwrite,
        )  # fmt: skip
        if whole:
            write_json(out / "seconds.json", spent)
        seconds = read_json(out / "seconds.json") if (out / "seconds.json").is_file() else {}
    if "advantages" in view.elsewhere:
        shape_step(view, method, seed=recipe.seed, progress=progress, overwrite=overwrite)
    return Computed(view, seconds)


def _judge(run: Run, view: StepFolder, progress: Progress, overwrite: bool) -> None:
    settings = run.recipe.model
    tokenizer = run_tokenizer(run) or load_tokenizer(
        locate_model(settings.path, settings.revision), settings
    )
    with judging_pool(run.recipe.verifier) as pool:
        score_rewards(
            view, run.recipe.verifier, pool, tokenizer, progress=progress, overwrite=overwrite
        )


def _reference(run: Run, policy: Policy) -> Scorer:
    if not (run.path / "recipe.yaml").is_file():
        raise UserError(
            f"{run.path} is no run, so nothing says which model is the reference; score the step "
            f"with castctl score --run {run.path} --signals ref_logprobs --model MODEL"
        )
    return reference_of(run, policy)


def _temperature(folder: StepFolder, recipe: Recipe) -> float:
    """The temperature that the rollouts were sampled at; the recipe's where they do not say."""
    paths = [folder.part_path("rollouts", part) for part in folder.parts("rollouts")]
    made = (read_metadata(path, "rollouts") for path in paths)
    found = float(agreed(made, "temperature", recipe.sampling.temperature))
    if found == 0:
        raise UserError(
            f"{folder.path} was decoded greedily; there is no distribution to score it by"
        )
    return found


def _elsewhere(folder: StepFolder, need: Need, out: Path, rescore: bool) -> dict[str, Path]:
    """Where the stages lie that the run's own step does not have whole for this diagnostic."""
    rollouts = folder.require_parts("rollouts", "run `castctl rollout` first")
    missing = {}
    if folder.parts("rewards") != rollouts:
        missing["rewards"] = out
    scored = replace(need, flips=False)
    if need.signals and (rescore or missing or scored.parts_of(folder) != rollouts):
        missing["signals"] = out
    if need.flips:
        missing["advantages"] = out
    return missing
