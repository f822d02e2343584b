"""Where a run's weights lie at each of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from castctl.models.loading import locate_model
from castctl.models.weights import ADAPTER, Weights
from castctl.recipe.model import ModelSettings
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run


def weights_of(run: Run, step: int) -> Weights:
    """The weights of a run's checkpoint at `step`."""
    folder = run.checkpoint(step)
    if not (folder / ADAPTER).is_dir():
        return Weights(folder)
    return Weights(initial_weights(began_with(run)).model, folder / ADAPTER)


def initial_weights(settings: ModelSettings) -> Weights:
    """The weights that the settings name; `UserError` where they are not there."""
    adapter = None if settings.adapter is None else Path(settings.adapter).expanduser()
    return Weights(locate_model(settings.path, settings.revision), adapter)


def began_with(run: Run) -> ModelSettings:
    """The model that the run began with, on the device that is asked for."""
    began, asked = load_recipe(run.path / "recipe.yaml").model, run.recipe.model
    named = {"path": began.path, "revision": began.revision, "adapter": began.adapter}
    return asked.model_copy(update=named | {"lora": began.lora})
