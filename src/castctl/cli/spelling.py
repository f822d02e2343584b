"""Options as people type them: other tools' names, underscores, a setting by its own name."""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from castctl.errors import UserError
from castctl.report.console import printable


class SpelledCommand(TyperCommand):
    """A command that takes its options with underscores too, and a setting as an option: `--lr X`
    where only optimizer.lr can be meant is `--set optimizer.lr=X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse with every option in castctl's spelling; `UserError` says that of one unknown, and
        where a recipe belongs that stands alone."""
        try:
            return super().parse_args(ctx, list(self._respelled(args)))
        except Exception as error:
            said = getattr(error, "format_message", str)()
            extra = re.search(r"unexpected extra argument\S* \((.+)\)", said)
            if extra and any("--recipe" in each.opts for each in self.params):
                raise UserError(
                    f"castctl {self.name} takes no {extra[1]}; name a recipe with --recipe, a run "
                    "with --run"
                ) from None
            raise

    def _respelled(self, args: list[str]) -> Iterator[str]:
        known = {name for each in self.params for name in each.opts if name.startswith("--")}
        known.add("--help")
        rest = iter(args)
        for word in rest:
            name, equals, value = word.partition("=")
            if word == "--":
                yield from (word, *rest)
            elif not name.startswith("--") or name in known:
                yield word
            elif (dashed := name.replace("_", "-")) in known:
                yield dashed + equals + value
            else:
                yield from self._as_setting(name, value if equals else None, word, rest, known)

    def _as_setting(
        self, name: str, value: str | None, word: str, rest: Iterator[str], known: set[str]
    ) -> Iterator[str]:
        from castctl.recipe.names import known_keys, meanings, plain
        from castctl.recipe.problems import choice
        from castctl.recipe.recipe import Recipe

        keys = set(known_keys(Recipe))
        asked = name[2:]
        meant = [asked] if asked in keys else meanings(
            Recipe, asked, evaluation=self.name == "eval"
        )  # fmt: skip
        if not meant:
            yield word  # the parser says that there is no such option
        elif "--set" not in known:
            raise UserError(f"castctl {self.name} has no option {name}; see its --help")
        elif len(meant) > 1 or meant[0] not in keys:
            said = [_typed(each, keys) for each in meant]
            raise UserError(f"castctl {self.name} has no option {name}; write {choice(said)}")
        else:
            value = next(rest, None) if value is None else value
            if value is None or value.startswith("--"):
                raise UserError(f"{name} needs a value, as in --set {meant[0]}=VALUE")
            if plain(asked) != plain(meant[0]):
                line = f"castctl: {name} is {meant[0]} here"
                print(printable(line), file=sys.stderr, flush=True)
            yield from ("--set", f"{meant[0]}={value}")


def _typed(meant: str, keys: Container[str]) -> str:
    """What to type for one of a name's meanings: a setting, one with a word to it, or an option."""
    if meant in keys:
        return f"--set {meant}=VALUE"
    return f"--set {meant}" if re.split("[ =]", meant)[0] in keys else meant


class SpelledApp(typer.Typer):
    """An app whose commands are all `SpelledCommand`."""

    def command(self, name: str | None = None, **options: Any) -> Any:
        """As Typer's."""
        return super().command(name, cls=SpelledCommand, **options)
