"""What a run needs a person's word for, before it goes on."""

from __future__ import annotations

from castctl.models.own_code import CONFIGURATIONS, runs_own_code
from castctl.recipe.split import task_of
from castctl.recipe.task import about
from castctl.recipe.trust import require_trust
from castctl.runs.run import Run


def refuse_untrusted(run: Run) -> None:
    """Raise `UserError`, before anything is written, where to go on with a run would run code that
    its files alone ask for: its verifiers, or what came with its last checkpoint."""
    require_trust(run.recipe.verifier)
    require_trust(about(run.recipe, task_of(run.recipe)).verifier)
    if saved := run.checkpoints():
        runs_own_code(run.checkpoint(saved[-1]), run.recipe.model, *CONFIGURATIONS)
