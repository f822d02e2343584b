"""From what was typed to a recipe and a run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from castctl.errors import UserError
from castctl.methods.presets import ALIASES, PRESETS
from castctl.recipe.files import Tree, look_up
from castctl.recipe.reader import Origins, chosen_recipe, read_recipe, with_overrides
from castctl.recipe.recipe import Recipe
from castctl.recipe.split import names_data
from castctl.recipe.trust import FLAGS, VERIFIERS, runs_code, trusted_code
from castctl.report.console import say, tell
from castctl.runs.kind import WORKED, newest_run
from castctl.runs.run import Run, adopt_run, create_run, is_run, open_run, split_step
from castctl.shards.stage import WHOLE, Shard, StepFolder, parse_shard


class Asked:
    """The options of one command that speak of settings, by the section they belong to."""

    def __init__(
        self,
        recipe: Path | None = None,
        overrides: Iterable[str] | None = None,
        seed: int | None = None,
        method: str | None = None,
        tiny: bool = False,
        *,
        trust_remote_code: bool = False,
        trust_verifier: bool = False,
        **sections: dict[str, Any],
    ) -> None:
        if recipe is not None and method is None and _is_method(str(recipe)):
            recipe, method = None, str(recipe)
        self.recipe = recipe
        self.tiny = tiny
        self.overrides = list(overrides or [])
        self.trusted = VERIFIERS if trust_verifier else set[str]()
        self.trust_remote_code = trust_remote_code
        self.sections: dict[str, Any] = {
            name: {key: value for key, value in section.items() if value is not None}
            for name, section in sections.items()
        }
        self.sections["seed"] = seed
        self.sections["method"] = {} if method is None else {"name": method}
        for section in ("model", "data"):
            if tiny and "path" in self.sections.get(section, {}):
                raise UserError(f"--tiny is the embedded model and data; leave --{section} out")

    @property
    def changes(self) -> bool:
        """Whether anything was asked for at all; to trust code is to ask for nothing else."""
        given = any(value not in (None, {}) for value in self.sections.values())
        return given or bool(self.overrides) or self.recipe is not None or self.tiny

    def new_recipe(self) -> tuple[Recipe, Origins]:
        """The recipe named, or the embedded default's where no other model is named either, and
        where its settings come from."""
        path = self.recipe if self.tiny else chosen_recipe(self.recipe, self.sections)
        if path != self.recipe:
            say(
                "No recipe and no other model named: using the embedded default, a tiny model and "
                "arithmetic that castctl makes itself."
            )
        return self.read(path)

    def read(self, path: str | Path | None) -> tuple[Recipe, Origins]:
        """The recipe at `path`, changed as asked, and where its settings come from."""
        return read_recipe(
            path, self.overrides, tiny=self.tiny, trusted=self.trusted, **self._typed
        )

    @property
    def typed(self) -> Tree:
        """What was typed, by section: options, and what --set sets over them."""
        given = {key: value for key, value in self._typed.items() if isinstance(value, dict)}
        return with_overrides(given, self.overrides)

    @property
    def trusts(self) -> bool:
        """Whether code is trusted that a file asks for."""
        return self.trust_remote_code or bool(self.trusted)

    @property
    def _typed(self) -> dict[str, Any]:
        """The sections, with what --trust-remote-code sets."""
        model = {"trust_remote_code": True} if self.trust_remote_code else {}
        return {**self.sections, "model": {**self.sections.get("model", {}), **model}}

    def changed(self, run: Run) -> Run:
        """A run with its recipe changed as asked, for this command alone."""
        if self.recipe is not None or self.tiny:
            raise UserError(f"run {run.path} has its recipe already; change it with --set")
        return run.changed(self.overrides, trusted=self.trusted, **self._typed)


def _is_method(name: str) -> bool:
    """Whether a method has the name that stands where a recipe does, and no recipe has it."""
    return name in (*PRESETS, *ALIASES) and look_up(name) is None


def run_and_step(name: str | None) -> tuple[str | None, int | None]:
    """What --run names: a run and, in RUN/step-00012, a step."""
    return (None, None) if name is None else split_step(name)


def one_step(option: int | None, in_name: int | None) -> int | None:
    """The step asked for by --step or in --run; `UserError` where the two differ."""
    if None not in (option, in_name) and option != in_name:
        raise UserError(f"--step {option} contradicts step {in_name} in --run")
    return in_name if option is None else option


def start_run(asked: Asked, name: str | None, kind: str | None = None) -> Run:
    """The run of that name where it is there, else a new one: what --run means to the commands that
    begin runs. To all others `open_run` says that it is not there."""
    if name is not None and is_run(name):
        return asked.changed(open_run(name))
    recipe, origins = asked.new_recipe()
    try:
        return create_run(recipe, name, kind or recipe.method.name, origins)
    except UserError:
        if name is None or not is_run(name):
            raise
        return asked.changed(open_run(name))  # another shard was quicker


def find_run(name: str | None, asked: Asked) -> tuple[Run, int | None]:
    """The run named, or the newest one, and the step that the name holds.

    A folder with step folders but without a manifest, parts made elsewhere, becomes a run.
    """
    if name is None:
        run = newest_run(*WORKED)
        if run is None:
            raise UserError("there is no run here yet; start with `castctl rollout`")
        return asked.changed(run), None
    name, step = split_step(name)
    folder = Path(name)
    if not is_run(name) and os.path.isdir(folder) and any(folder.glob("step-*")):
        return adopt_run(folder, *asked.new_recipe()), step
    return asked.changed(open_run(name)), step


MAKERS = {"rollouts": "castctl rollout", "rewards": "castctl score"}
"""The command that makes what a stage reads."""


def latest_step(
    run: Run, stage: str, asked: int | None, in_name: int | None, shard: Shard = WHOLE
) -> int:
    """The step asked for, or the last one that has the stage to read. A shard that owns no part of
    a step waits for none."""
    step = one_step(asked, in_name)
    having = [k for k in run.steps if run.step(k).parts(stage)]
    if step in having:
        return step
    if step is None and having:
        return having[-1]
    if run.parts_of_step and not shard.of(run.parts_of_step):
        return step or 0
    if step is None:
        raise UserError(f"{run.path} has no {stage} at any step; run `{MAKERS[stage]}` first")
    steps = ", ".join(map(str, having)) or "none"
    raise UserError(f"{run.path} has no {stage} at step {step}; steps that have: {steps}")


def lacking_parts(run: Run, step: int, stage: str, shard: Shard) -> list[int]:
    """Parts of one shard of several that have still to be made for it to read; `UserError` where
    none of them has been."""
    if shard.count == 1:
        return []
    folder = run.step(step)
    own = shard.of(run.parts_of_step)
    lacking = [part for part in own if not folder.has(stage, part)]
    if own and lacking == own:
        raise _lacks(lacking, stage, shard)
    return lacking


def _lacks(parts: list[int], stage: str, shard: Shard) -> UserError:
    share = f"{shard.index}/{shard.count}"
    numbers = ", ".join(map(str, parts[:5])) + ", ..." * (len(parts) > 5)
    return UserError(
        f"shard {share} finds no {stage} of its part{'s' * (len(parts) > 1)} {numbers}; finish "
        f"`{MAKERS[stage]} --shard {share}` of this step, and give this command again"
    )


def shard_of(text: str | None) -> Shard:
    """The share of the parts that the option or the launcher's environment names."""
    return parse_shard(text, dict(os.environ))


def refuse_scattered_shards(shard: Shard, name: str | None) -> None:
    """Shards that each make a run of their own would never meet."""
    if shard.count > 1 and name is None:
        raise UserError(
            f"shard {shard.index}/{shard.count} needs --run, so that all shards write into one run"
        )


def shard_done(shard: Shard, stage: str = "", lacking: Sequence[int] = ()) -> None:
    """Say that this share is done and others may not be; `UserError` where it was `lacking` some
    of the `stage` that it read."""
    if lacking:
        raise _lacks(list(lacking), stage, shard)
    say(f"Shard {shard.index}/{shard.count} is done; go on when all {shard.count} are.")


def announce(run: Run, step: int | None = None) -> None:
    """Say what is worked on, and what code its recipe names."""
    where = "" if step is None else f", step {step}"
    recipe = run.recipe
    data = f", data {recipe.data.path}" if names_data(recipe) else ""
    say(f"run {run.path}{where}: {recipe.method.name}, model {recipe.model.path}{data}")
    trusted = trusted_code(recipe)
    for setting, code in runs_code(recipe).items():
        said = "trusted" if setting in trusted else "not trusted"
        say(f"its recipe names code, {said}: {setting}, {code}")


def show_step(folder: StepFolder) -> None:
    """A step's path and its measures: what a stage has to show."""
    from castctl.report.tables import show, step_table
    from castctl.stages.measures import measure_step

    tell(str(folder.path))
    show(step_table(measure_step(folder)))


def typed_again(method: str | None, overrides: Iterable[str] | None) -> str:
    """The options that the next stage must be told too, as they were typed."""
    words = [] if method is None else ["--method", method]
    for override in overrides or ():
        words += ["--set", override]
    return "".join(f" {shlex.quote(word)}" for word in words)


def trusted_again(recipe: Recipe) -> str:
    """The options that trust the recipe's code, which the next command must be told too."""
    trusted = trusted_code(recipe)
    flags = dict.fromkeys(flag for key, flag in FLAGS.items() if key in trusted)
    return "".join(f" {flag}" for flag in flags)


def next_command(command: str) -> None:
    """The natural next thing to type."""
    say(f"Next: {command}")
