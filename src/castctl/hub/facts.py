"""What a card says of a run: plain values in which no place on this machine stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castctl.inspection.run import read_evaluations, read_metrics
from castctl.methods.presets import preset
from castctl.models.loading import find_model
from castctl.recipe.model import ModelSettings
from castctl.recipe.plain_yaml import write_yaml
from castctl.recipe.public import PLACES, hub_id, public_name, public_recipe
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import names_data, task_of
from castctl.recipe.trust import FLAGS, runs_code
from castctl.report.document import Picture
from castctl.report.html.curves import curve_pictures
from castctl.runs.run import Run
from castctl.runs.weights import began_with
from castctl.settings import settings_in
from castctl.stages.evaluate.results import Result, task_name

CURVES = ("curve-reward", "curve-accuracy")
"""The pictures of a run's course that a card shows."""


@dataclass(frozen=True)
class Facts:
    """`base` is the model that training began with, by its hub id or its own name, and `base_id`
    its hub id, None where it has none that is known."""

    name: str
    method: str
    summary: str
    paper: str
    steps: int
    base: str
    base_id: str | None
    data_id: str | None
    """Hub id of the data; None of a file."""
    license: str | None
    evaluations: list[tuple[int, Result]]
    """By the steps done before each; no lists of problems."""
    pictures: list[Picture]
    recipe: str
    """All of it, as YAML."""
    changed: str
    """What of it is no default."""
    left_out: list[str]
    """Files and folders that it names."""
    command: str
    made: dict[str, str]
    """Software by name, with its version."""


def facts_of(run: Run, base: str | None) -> Facts:
    """What there is to say of a run; `base` is the hub id of its base model, where the recipe names
    a folder."""
    recipe, manifest = run.recipe, run.manifest
    began = began_with(run)
    name, found = preset(recipe.method.name)
    tree = public_recipe(recipe)
    notes: list[str] = []
    evaluations = [(r["step"], r) for r in read_evaluations(run, notes)]
    own = [r for _, r in evaluations if r.get("name") == task_name(task_of(recipe))]
    metrics = read_metrics(run)
    curves = [each for each in curve_pictures(metrics, own) if each.name in CURVES]
    if not names_data(recipe):
        del tree["data"]["path"]
    flags = "".join(f" {flag}" for flag in dict.fromkeys(FLAGS[key] for key in runs_code(recipe)))
    libraries = manifest.get("libraries")
    versions = {"castctl": manifest.get("castctl"), "Python": manifest.get("python"),
                **(libraries if isinstance(libraries, dict) else {})}  # fmt: skip
    return Facts(
        name=run.name,
        method=name,
        summary=found.summary,
        paper=found.paper,
        steps=recipe.train.steps,
        base=base or public_name(began.path),
        base_id=base or hub_id(began.path),
        data_id=hub_id(recipe.data.path),
        license=_license(began),
        evaluations=evaluations,
        pictures=curves,
        recipe=write_yaml(tree),
        changed=write_yaml(_changed(recipe, tree)),
        left_out=_left_out(recipe),
        command=f"castctl train recipe.yaml{flags}",
        made={name: str(version) for name, version in versions.items() if version},
    )


def _changed(recipe: Recipe, tree: dict[str, Any]) -> dict[str, Any]:
    """The part of a recipe's tree that differs from the defaults."""
    changed: dict[str, Any] = {}
    for setting in settings_in(recipe, Recipe()):
        *sections, name = setting.key.split(".")
        inner, into = tree, changed
        for section in sections if setting.changed else ():
            inner, into = inner[section], into.setdefault(section, {})
        if setting.changed and name in inner:
            into[name] = inner[name]
    return changed


def _left_out(recipe: Recipe) -> list[str]:
    """Settings that name a file or a folder, with its own name."""
    tree, found = recipe.model_dump(mode="json"), []
    for key in PLACES:
        value: Any = tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and ("/" in value or Path(value).suffix) and not hub_id(value):
            found.append(f"{key}: {public_name(value)}")
    return found


def _license(base: ModelSettings) -> str | None:
    """The licence in the card of the base model's folder; None where none is known."""
    folder = find_model(base.path, base.revision)
    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except Exception:  # a card is anybody's text
        return None
    return license if isinstance(license, str) else None
