"""Which diagnoses a run will be too late for, said while its settings can still be changed."""

from __future__ import annotations

from castctl.diagnosis.catalog import DIAGNOSTICS
from castctl.diagnosis.needs import TOLD, Need
from castctl.recipe.recipe import Recipe
from castctl.stages.train.schedule import saves_after


def lost_answers(recipe: Recipe) -> str | None:
    """A line on the diagnoses that a finished run answers at its first step and its best checkpoint
    alone, since other weights to compute their signals with are not kept, and what to set; None
    where weights of more steps are kept or every diagnosis reads what the run writes anyway."""
    settings = recipe.train
    saved = any(saves_after(recipe, done) for done in range(1, settings.steps))
    if settings.steps == 1 or (saved and settings.keep == "all"):
        return None
    computed = [name for name, each in DIAGNOSTICS.items() if not _written(each.need, recipe)]
    if not computed:
        return None
    *names, last = computed
    keep = [] if settings.keep == "all" else ["train.keep=all"]
    often = [] if saved else [f"train.checkpoint_every below {settings.steps}"]
    return (
        f"{' and '.join(filter(None, [', '.join(names), last]))} will be answered for step 0 and "
        f"the best checkpoint alone, whose weights stay; set {' and '.join([*keep, *often])} for "
        "more"
    )


def _written(need: Need, recipe: Recipe) -> bool:
    """Whether each step of the loop writes what a diagnostic reads."""
    told = need.teacher in (None, TOLD[recipe.method.teacher.privileged])
    return told and need.signals <= recipe.signals - recipe.selective
