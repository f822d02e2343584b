"""What training by a recipe will do, in numbers, before anything starts."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from castctl.errors import UserError
from castctl.evaluate.runner import eval_sampling
from castctl.methods import PRESETS, MethodSettings
from castctl.recipe import Recipe
from castctl.recipe_reader import Origins
from castctl.settings import Setting, settings_in
from castctl.train.estimate import Memory, estimate_memory, prompts_per_step
from castctl.train.schedule import evaluates_after, saves_after

PAPER, OURS = "paper", "ours"
_CHOICE = re.compile(rf"\(({PAPER}|{OURS})\b")


@dataclass(frozen=True)
class Work:
    """Counts of a step and of the run. Tokens are at most, and count completions alone.

    `scoring_passes` names the models that read every completion forward, `training_passes`
    counts how often the policy reads them forward and backward. Evaluations and checkpoints are
    listed by the steps that are done by then.
    """

    steps: int
    prompts: int
    samples: int
    completions: int
    tokens: int
    scoring_passes: tuple[str, ...]
    training_passes: int
    optimizer_steps: int
    total_completions: int
    total_tokens: int
    total_optimizer_steps: int
    evaluations: tuple[int, ...]
    eval_samples: int
    checkpoints: tuple[int, ...]


@dataclass(frozen=True)
class ExplainedSetting:
    """A setting, where it comes from, and whose choice its value is: `paper`, `ours`, or None.

    `origin` is None for a default; `choice` is None for what the user set, and where there was
    nothing to choose.
    """

    key: str
    value: Any
    default: Any
    origin: str | None
    choice: str | None
    meaning: str


@dataclass(frozen=True)
class Explanation:
    """The sections of `castctl explain`. Without `memory`, `memory_missing` says why."""

    recipe: Recipe
    work: Work
    memory: Memory | None
    memory_missing: str | None
    settings: list[ExplainedSetting]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        """All of it but the recipe, whose settings are in it; memory in bytes."""
        memory = None
        if self.memory is not None:
            extra = {"peak_phase": self.memory.peak_phase, "together": self.memory.together}
            memory = asdict(self.memory) | extra
        return {
            "method": self.recipe.method.name,
            "work": asdict(self.work),
            "memory": memory,
            "memory_missing": self.memory_missing,
            "settings": [to_jsonable_python(asdict(setting)) for setting in self.settings],
            "warnings": self.warnings,
        }


def explain_recipe(recipe: Recipe, origins: Origins) -> Explanation:
    """What training by the recipe will do; `UserError` where it cannot train."""
    warnings = recipe.check_training()
    memory, missing = None, None
    try:
        memory = estimate_memory(recipe)
    except UserError as error:
        missing = str(error)
    settings = [_explained(setting, origins) for setting in settings_in(recipe, Recipe())]
    return Explanation(recipe, work_of(recipe), memory, missing, settings, warnings)


def work_of(recipe: Recipe) -> Work:
    """How much of what a recipe does, where the data has all the prompts that a step asks for."""
    settings, sampling, method = recipe.train, recipe.sampling, recipe.method
    prompts = prompts_per_step(recipe)
    completions = prompts * sampling.n
    tokens = completions * sampling.max_tokens
    passes = scoring_passes(method)
    updates = settings.epochs * min(settings.minibatches, prompts)
    done = range(1, settings.steps + 1)
    return Work(
        steps=settings.steps,
        prompts=prompts,
        samples=sampling.n,
        completions=completions,
        tokens=tokens,
        scoring_passes=passes,
        training_passes=settings.epochs,
        optimizer_steps=updates,
        total_completions=settings.steps * completions,
        total_tokens=settings.steps * tokens,
        total_optimizer_steps=settings.steps * updates,
        evaluations=(0, *(step for step in done if evaluates_after(recipe, step))),
        eval_samples=eval_sampling(recipe).n,
        checkpoints=tuple(step for step in done if saves_after(recipe, step)),
    )


def scoring_passes(method: MethodSettings) -> tuple[str, ...]:
    """Who reads every completion in the score stage, once each."""
    teacher = method.teacher
    own = teacher.kind != "current" or teacher.own_prompt
    passes = {
        "policy": True,
        "teacher": "teacher_logprobs" in method.needs and own,
        "reference": "ref_logprobs" in method.needs,
        "bilateral": "bilateral_logprobs" in method.needs,
        "perturbation": "importance_perturb" in method.needs,
        "gradient": "importance_grad" in method.needs,
    }
    return tuple(name for name, read in passes.items() if read)


def choice_of(setting: Setting, origin: str | None) -> str | None:
    """Whose choice a value is.

    A default's docstring says it in parentheses that begin with `paper` or `ours`. A preset's
    values are its paper's, but for what it says the paper leaves open. All else is the user's.
    """
    if origin is None:
        found = _CHOICE.search(setting.meaning)
        return found[1] if found else None
    if not origin.startswith("preset "):
        return None
    within = setting.key.removeprefix("method.")
    left_open = PRESETS[origin.removeprefix("preset ")].open
    return OURS if any(f"{within}.".startswith(f"{each}.") for each in left_open) else PAPER


def _explained(setting: Setting, origins: Origins) -> ExplainedSetting:
    origin = origins.get(setting.key)
    meaning = re.sub(rf" \(({PAPER}|{OURS})\)", "", setting.meaning)  # `choice` says it
    choice = choice_of(setting, origin)
    return ExplainedSetting(setting.key, setting.value, setting.default, origin, choice, meaning)
