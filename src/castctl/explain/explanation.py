"""What training by a recipe will do, in numbers, before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from castctl.errors import UserError
from castctl.explain.estimate import Memory, estimate_memory, prompts_per_step
from castctl.recipe.choices import ExplainedSetting, explained
from castctl.recipe.reader import Origins
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import task_of
from castctl.recipe.task import about
from castctl.recipe.trust import runs_code
from castctl.settings import settings_in
from castctl.stages.evaluate.runner import eval_sampling
from castctl.stages.train.schedule import evaluates_after, saves_after


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
            "runs_code": runs_code(self.recipe),
            "settings": [to_jsonable_python(asdict(setting)) for setting in self.settings],
            "warnings": self.warnings,
        }


def explain_recipe(
    recipe: Recipe, origins: Origins, gpu_memory: float | None = None, ranks: int = 1
) -> Explanation:
    """What training by the recipe will do, and whether it fits a GPU of so many GiB, on each of
    `ranks`; `UserError` where it cannot train."""
    warnings = recipe.check_training()
    recipe.require_parts_for(ranks)
    memory, missing = None, None
    try:
        memory = estimate_memory(recipe, gpu_memory, ranks)
    except UserError as error:
        missing = str(error)
    settings = [
        explained(setting, origins.get(setting.key)) for setting in settings_in(recipe, Recipe())
    ]
    return Explanation(recipe, work_of(recipe), memory, missing, settings, warnings)


def work_of(recipe: Recipe) -> Work:
    """How much of what a recipe does, where the data has all the prompts that a step asks for."""
    settings, sampling = recipe.train, recipe.sampling
    prompts = prompts_per_step(recipe)
    completions = prompts * sampling.n
    tokens = completions * sampling.max_tokens
    updates = settings.epochs * min(settings.minibatches, prompts)
    done = range(1, settings.steps + 1)
    return Work(
        steps=settings.steps,
        prompts=prompts,
        samples=sampling.n,
        completions=completions,
        tokens=tokens,
        scoring_passes=recipe.scoring_passes,
        training_passes=settings.epochs,
        optimizer_steps=updates,
        total_completions=settings.steps * completions,
        total_tokens=settings.steps * tokens,
        total_optimizer_steps=settings.steps * updates,
        evaluations=(0, *(step for step in done if evaluates_after(recipe, step))),
        eval_samples=eval_sampling(about(recipe, task_of(recipe))).n,
        checkpoints=tuple(step for step in done if saves_after(recipe, step)),
    )
