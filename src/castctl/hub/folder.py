"""The files of a repository: a model or its adapter, or rollouts, with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from castctl.hub.card import model_card, rollouts_card
from castctl.hub.facts import facts_of
from castctl.hub.private import refuse_private
from castctl.models.adapter import CONFIG_FILE
from castctl.recipe.public import public_name
from castctl.report.diagnostics import write_pictures
from castctl.report.document import Section
from castctl.runs.run import Run
from castctl.shards.part import read_json
from castctl.stages.export import write_policy
from castctl.writers.rollouts import step_tables

SHOWN = (
    "step", "prompt_id", "sample", "problem", "answer", "completion", "verdict", "reward",
    "extracted", "finish_reason", "group_kind", "kept", "base", "solution", "earlier",
    "advantages", "prompt_token_ids", "completion_token_ids", "sampler_logprobs",
)  # fmt: skip
"""Columns of rollouts on the hub, those that a person reads first."""


def fill_model(
    run: Run, step: int, repository: str, folder: Path, *, merged: bool, base: str | None
) -> None:
    """Fill an empty folder with the policy at the start of `step` and its card.

    Weights are safetensors. `base` is the hub id of the base model, where the run began with a
    folder. Raises `UserError` where there is no such checkpoint, and where a file would hold a
    place of this machine or a secret.
    """
    facts = facts_of(run, base)
    write_policy(run, step, folder, merged=merged)
    adapter = (folder / CONFIG_FILE).is_file()
    for file in folder.glob("*config.json"):
        _name_base(file, facts.base)
    pictures = write_pictures(Section("course", "", list(facts.pictures)), folder)
    card = model_card(repository, facts, step, adapter=adapter, pictures=pictures)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "recipe.yaml").write_text(facts.recipe, encoding="utf-8")
    refuse_private(folder, run)


def _name_base(file: Path, base: str) -> None:
    """Write the base model's name where a configuration has its place."""
    config: dict[str, Any] = read_json(file)
    named = {"base_model_name_or_path": base}
    if isinstance(path := config.get("_name_or_path"), str):
        named["_name_or_path"] = public_name(path)
    if there := {key: name for key, name in named.items() if config.get(key)}:
        file.write_text(json.dumps(config | there, indent=2, sort_keys=True) + "\n")


def fill_rollouts(run: Run, repository: str, folder: Path) -> None:
    """Fill an empty folder with every step's judged rollouts, a Parquet file a step, and its card.

    Advantages are there where every step is shaped. Raises `UserError` where there are no rollouts
    or not all are judged, and as `fill_model` does.
    """
    steps = [run.step(number) for number in run.steps if run.step(number).parts("rollouts")]
    shaped = all(step.parts("advantages") == step.parts("rollouts") for step in steps)
    stages = ("rewards", "advantages") if shaped else ("rewards",)
    (folder / "data").mkdir()
    rows, columns = 0, []
    for at, table in step_tables(run, None, stages):
        table = table.append_column("step", pa.array([at.step] * table.num_rows, pa.int64()))
        columns = [name for name in SHOWN if name in table.column_names]
        pq.write_table(table.select(columns), folder / "data" / f"step-{at.step:05d}.parquet")
        rows += table.num_rows
    facts = facts_of(run, None)
    card = rollouts_card(repository, facts, rows, columns)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "recipe.yaml").write_text(facts.recipe, encoding="utf-8")
    refuse_private(folder, run)
