"""Compute what a step lacks for a diagnostic, under `diagnose/` and never over the run's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from castctl.diagnose.needs import Need
from castctl.methods import MethodSettings
from castctl.policies import PolicySource, budget_of, load_reference, make_scorers, policy_at
from castctl.progress import Progress
from castctl.runs import Run
from castctl.score.rewards import score_rewards
from castctl.score.signals import score_signals
from castctl.shape import shape_step
from castctl.shards.part import read_json, write_json
from castctl.shards.stage import StepFolder
from castctl.stages import sampled_temperature, teacher_at
from castctl.verify.judge import judging_pool


@dataclass(frozen=True)
class Computed:
    """A step whose missing stages lie under `diagnose/`; the weights that scored them, and the
    seconds of each pass."""

    folder: StepFolder
    source: PolicySource
    seconds: dict[str, float]


def compute_missing(
    run: Run,
    folder: StepFolder,
    need: Need,
    out: Path,
    *,
    method: MethodSettings,
    source: PolicySource | None,
    progress: Progress,
    overwrite: bool = False,
) -> Computed:
    """Judge, score and shape a step for `method` into `out`, where the run's own do not serve.

    Policy and teacher are both scored with the same weights: `source`, or the checkpoint at the
    step's start. Old log-probs of the policy beside newer weights of its teacher would put the
    policy's drift into the gap. Raises `UserError` where there are no such weights.
    """
    recipe = run.recipe.model_copy(update={"method": method})
    own = Run(run.path, recipe)
    view = replace(folder, elsewhere=_elsewhere(folder, need, out, rescore=source is not None))
    source = source or policy_at(own, folder.step)
    policy = source.load(recipe.model)
    if "rewards" in view.elsewhere:
        with judging_pool(recipe.verifier) as pool:
            score_rewards(
                view, recipe.verifier, pool, policy.tokenizer,
                progress=progress, overwrite=overwrite,
            )  # fmt: skip
    seconds: dict[str, float] = {}
    if "signals" in view.elsewhere:
        signals = need.signals | need.welcome
        teacher = (
            teacher_at(own, folder.step, source, policy) if "teacher_logprobs" in signals else None
        )
        reference = load_reference(own) if "ref_logprobs" in signals else None
        seconds = score_signals(
            view, signals, make_scorers(recipe, source.fingerprint, policy, teacher, reference),
            temperature=sampled_temperature(own, folder.step), budget=budget_of(recipe),
            progress=progress, overwrite=overwrite,
        )  # fmt: skip
        seconds = _remembered(out / "seconds.json", seconds)
    if "advantages" in view.elsewhere:
        shape_step(view, method, progress=progress, overwrite=overwrite)
    return Computed(view, source, seconds)


def _elsewhere(folder: StepFolder, need: Need, out: Path, rescore: bool) -> dict[str, Path]:
    """Where the stages lie that the run's own step does not have whole for this diagnostic;
    `rescore` asks for signals of other weights than the run's."""
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


def _remembered(file: Path, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of passes, with those of an earlier call whose numbers were kept."""
    known = {**(read_json(file) if file.is_file() else {}), **seconds}
    if seconds:
        write_json(file, known)
    return known
