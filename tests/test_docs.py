"""The README and the pages: their length, links, commands, recipes and settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from castctl.cli.main import app
from castctl.errors import UserError
from castctl.methods import PRESETS
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from test_house import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
LINKING = [*TEXTS, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]

PLACEHOLDER = re.compile(r"[A-Z]{2,}|\.\.\.")
"""What a reader puts a name of their own in place of."""
RECIPE = re.compile(r"(?<![\w.+-])[a-z][a-z+-]*-qwen3-[\d.]+b(?::[a-z-]*[a-z])?")
SETTING = re.compile(r"\| `([a-z_.0-9]+)` \| `([^`]+)` \|")
"""A row of a table that begins with a setting and its value."""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def titles(values: list[Path]) -> list[str]:
    return [str(each.relative_to(ROOT)) for each in values]


def blocks(text: str) -> list[str]:
    """The blocks of code, fenced or indented."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)]


def prose(text: str) -> str:
    """The text without its blocks."""
    text = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*\n", "", text, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each castctl command, in blocks and between backticks."""
    lines = [line for block in blocks(text) for line in re.sub(r"\\\n", " ", block).splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(text))]
    for line in lines:
        found = re.match(r"\s*(?:\S*python -m |\S*bin/)?castctl (.+)", line)
        if found:
            yield shlex.split(re.split(r"\\?\| |&& ", found[1])[0], comments=True)


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command; raises where it does not know an option."""
    group = command_line()
    name, *rest = words
    if name.startswith("-"):
        assert name in {option for param in group.params for option in param.opts}
        return {}
    assert name in group.commands, f"no command {name}"
    try:
        return group.commands[name].make_context(name, rest).params
    except typer.Exit:  # --help
        return {}


def require_settings(params: dict[str, Any]) -> None:
    """Raises where the method named has not the settings, nor any method where none is named."""
    wanted = [each for each in params.get("set_") or () if not PLACEHOLDER.search(each)]
    method = params.get("method")
    for name in PRESETS if method is None else [method]:
        try:
            load_recipe(None, wanted, method={"name": name})
            return
        except UserError as error:
            refused = error
    raise refused


# The README


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").split()) <= 1200


def test_the_readme_leads_to_every_page() -> None:
    for page in PAGES:
        assert f"](docs/{page.name})" in read(ROOT / "README.md"), page.name


@pytest.mark.parametrize("page", PAGES, ids=titles(PAGES))
def test_a_page_begins_with_what_its_reader_can_do_after_it(page: Path) -> None:
    title, rest = read(page).split("\n\n", 1)
    assert title.startswith("# ") and "\n" not in title
    assert rest.startswith("After this page you ")


# Links


def anchors(text: str) -> set[str]:
    """The headings of a page, as its links write them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", LINKING, ids=titles(LINKING))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.is_file(), target
        assert not heading or heading in anchors(read(there)), target


# Commands, recipes and settings


@pytest.mark.parametrize("page", TEXTS, ids=titles(TEXTS))
def test_every_command_is_understood(page: Path) -> None:
    wrong = []
    for words in commands(read(page)):
        if PLACEHOLDER.fullmatch(words[0]):
            continue
        try:
            require_settings(parsed(words))
        except Exception as error:
            wrong.append(f"castctl {shlex.join(words)}: {error}")
    assert not wrong


@pytest.mark.parametrize("page", TEXTS, ids=titles(TEXTS))
def test_every_recipe_is_there(page: Path) -> None:
    for name in set(RECIPE.findall(read(page))):
        load_recipe(name)


def settings_by_recipe() -> Iterator[tuple[str, str, str]]:
    """Each recipe of the page on methods, with the settings and values of its table."""
    for section in read(ROOT / "docs" / "methods.md").split("\n## "):
        named = re.search(r"^Recipes?: ([^.]+(?:\.\d[^.]*)*)", section, re.MULTILINE)
        for recipe in RECIPE.findall(named[1]) if named else ():
            for key, value in SETTING.findall(section):
                yield recipe, key, value


def test_the_settings_of_the_papers_are_those_of_the_recipes() -> None:
    rows = list(settings_by_recipe())
    assert len({recipe for recipe, _, _ in rows}) >= 14 and len(rows) > 100
    for recipe, key, value in rows:
        found: Any = cached_recipe(recipe).model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        assert found == yaml.safe_load(value), f"{recipe}: {key}"


@cache
def cached_recipe(name: str) -> Recipe:
    return load_recipe(name)


# The house


def test_the_architecture_names_every_room_on_its_floor() -> None:
    text = read(ROOT / "docs" / "architecture.md")
    house = next(block for block in blocks(text) if "report" in block)
    floors = [set(re.split(r" {2,}", line.strip())[0].split()) for line in house.splitlines()]
    assert floors[::-1] == FLOORS
