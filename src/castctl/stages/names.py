"""What models are called: the names that people gave them, where metadata has fingerprints."""

from __future__ import annotations

from collections.abc import Mapping

from castctl.models.loading import find_model, fingerprint
from castctl.recipe.reader import load_recipe
from castctl.runs.run import Run


def model_names(run: Run | None) -> dict[str, str]:
    """The names of a run's models by their fingerprints: the initial one, one that a command was
    given in its place, and a teacher of its own.

    A model that is not on this machine is left out; nothing is fetched or made.
    """
    if run is None:
        return {}
    own = run.path / "recipe.yaml"
    recipes = [*([load_recipe(own)] if own.is_file() else []), run.recipe]
    models = [model for each in recipes for model in (each.model, each.method.teacher)]
    named = dict.fromkeys((each.path, each.revision) for each in models if each.path is not None)
    names: dict[str, str] = {}
    for path, revision in named:
        folder = find_model(path, revision)
        if folder is not None:
            names.setdefault(fingerprint(folder), f"{path}@{revision}" if revision else path)
    return names


def called(model: object, names: Mapping[str, str]) -> str:
    """What a model goes by in metadata, with a name in place of a fingerprint that has one.

    Of `FINGERPRINT snapshot teacher` the first word is replaced; `RUN@step-00012` is a name.
    """
    first, space, rest = str(model).partition(" ")
    return f"{names.get(first, first)}{space}{rest}"
