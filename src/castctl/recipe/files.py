"""Recipes as files: found by name, each with what it extends and its variants.

Beside settings, a file may say `about`, what it is in a line; `extends`, the recipe that it rests
on; `tiny`, what differs on the embedded default; and `variants`, each of them a name with `about`,
settings and `tiny` of its own. `NAME:VARIANT` names one. Who extends a recipe has its variants too.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from castctl.errors import UserError, one_line
from castctl.files import read_text
from castctl.recipe.former_names import new_name
from castctl.recipe.former_settings import of_today
from castctl.recipe.plain_yaml import read_yaml

Tree = dict[str, Any]

VARIANT_NAME = r"[\w.+-]+"


@dataclass(frozen=True)
class Named:
    """What a recipe's name leads to: a file, or a variant of it."""

    file: Path
    variant: str | None = None

    def __str__(self) -> str:
        return self._with_variant(str(self.file))

    @property
    def name(self) -> str:
        """The name without the folder, as in a list of recipes."""
        return self._with_variant(self.file.stem)

    @property
    def origin(self) -> str:
        """Where its settings come from, without the folder of castctl's own recipes."""
        own = self.file.parent == recipes_folder()
        return self._with_variant(self.file.name if own else str(self.file))

    def _with_variant(self, text: str) -> str:
        return text if self.variant is None else f"{text}:{self.variant}"


@dataclass(frozen=True)
class Part:
    """What one file, or one variant in it, says itself."""

    of: Named
    about: str
    settings: Tree
    tiny: Tree


@dataclass(frozen=True)
class Source:
    """A recipe's parts, the one it rests on first, and the variants there are of it."""

    parts: list[Part]
    variants: dict[str, Part]


def read_source(name: str | Path) -> Source:
    """The parts that `name` (a file, or a recipe of castctl's, or NAME:VARIANT) is made of.

    Raises `UserError` for what is not there, does not read, or rests on itself.
    """
    return _read(find_recipe(name), ())


def _read(asked: Named, above: tuple[Path, ...]) -> Source:
    """`above`: the files that extend this one, the nearest one last."""
    file = asked.file
    if any(file.resolve() == each.resolve() for each in above):
        raise UserError(f"{above[-1]} extends {file}, which rests on it in turn; end the circle")
    tree = _read_yaml(file)
    base = tree.pop("extends", None)
    below = Source([], {}) if base is None else _read(_base(file, base), (*above, file))
    own = _variants(file, tree.pop("variants", None))
    variants = {**own, **below.variants, **own}
    parts = [*below.parts, _part(Named(file), tree)]
    if asked.variant is not None:
        if asked.variant not in variants:
            raise UserError(_no_variant(asked, variants))
        parts.append(variants[asked.variant])
    return Source(parts, variants)


def _part(of: Named, tree: Any) -> Part:
    tree = _mapping(f"{of}: a {'recipe' if of.variant is None else 'variant'}", tree)
    about = tree.pop("about", None) or ""
    if not isinstance(about, str):
        raise UserError(f"{of}: about is a line of text that says what the recipe is")
    tiny = _mapping(f"{of}: tiny", tree.pop("tiny", None))
    return Part(of, " ".join(about.split()), tree, tiny)


def _variants(file: Path, given: Any) -> dict[str, Part]:
    variants = _mapping(
        f"{file}: variants", given, "names and settings, such as `short: {train: {steps: 20}}`"
    )
    for name in variants:
        if not isinstance(name, str) or not re.fullmatch(VARIANT_NAME, name):
            raise UserError(
                f"{file}: a variant cannot be called {name!r}; use letters, digits and . + - _"
            )
    return {name: _part(Named(file, name), tree) for name, tree in variants.items()}


def _mapping(what: str, tree: Any, of: str = "sections, such as `method: ...`") -> Tree:
    """A copy of `tree`, empty where nothing is written."""
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"{what} is a mapping of {of}")
    return dict(tree or {})


def _read_yaml(path: Path) -> Tree:
    try:
        tree = read_yaml(read_text(path))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}; name a YAML file, or --method alone") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read recipe {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # 2026-13-45 is a ValueError
        raise UserError(f"{path} is not YAML for a recipe: {one_line(error)}") from None
    tree = _mapping(f"{path}: a recipe", tree)
    return of_today(tree) if is_written(path) else tree


def is_written(path: Path) -> bool:
    """Whether castctl wrote a recipe itself, in the words of its day, every setting of it: beside
    it lies a manifest."""
    return (path.parent / "manifest.json").is_file()


# Names


def recipes_folder() -> Path:
    """The folder of recipes: inside an installed package, or beside `src/` in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parents[1] / "recipes"


def known_recipes() -> dict[str, Path]:
    """The recipes that come with castctl, by name."""
    found = {path.stem: path for path in recipes_folder().glob("*.yaml")}
    return dict(sorted(found.items()))


def default_recipe_path() -> Path:
    """The recipe of the embedded default, used where neither recipe nor model is named."""
    return recipes_folder() / "tiny.yaml"


def find_recipe(name: str | Path) -> Named:
    """What `name` leads to, as `look_up` finds it; `UserError` with the nearest name, or the one
    that a former name has now, where there is nothing."""
    found = look_up(name)
    if found is None:
        moved = now_called(name)
        raise UserError(moved or f"no recipe at {name}; {_nearest(name)}, or --method alone")
    return found


def now_called(name: str | Path) -> str | None:
    """A line that says what a recipe is called today; None where none ever had that name."""
    now = new_name(_stem(name), _spellings())
    return f"recipe {_stem(name)} is now {now}" if now else None


def look_up(name: str | Path, folder: Path | None = None) -> Named | None:
    """The file that `name` names: one there, with or without `.yaml`, or else the recipe of that
    name that comes with castctl; then the same for NAME:VARIANT. None where there is nothing.

    Paths begin in `folder`, where `.yaml` is not left out, or else in the working directory.
    Whether the variant is there is not asked.
    """
    text = str(name)
    whole = _file(text, folder)
    if whole is not None:
        return Named(whole)
    colons = [at for at, char in enumerate(text) if char == ":" and "/" not in text[at:]]
    for at in reversed(colons):
        file = _file(text[:at], folder)
        if file is not None:
            return Named(file, text[at + 1 :])
    return None


def _file(text: str, folder: Path | None) -> Path | None:
    known = known_recipes().get(text.removesuffix(".yaml"))
    if folder is not None:
        return _there(folder / text) or known
    return _there(Path(text)) or _there(Path(f"{text}.yaml")) or known


def _there(path: Path) -> Path | None:
    """The path where something is that is no folder."""
    try:
        return path if path.exists() and not path.is_dir() else None
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror or error}") from None


def _base(file: Path, name: object) -> Named:
    """The recipe that `file` extends."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{file}: extends names one other recipe, such as `extends: tiny.yaml`")
    found = look_up(name, file.parent)
    if found is None:
        if moved := now_called(name):
            hint = "; extend that and type --tiny" if moved.endswith(" --tiny") else ""
            raise UserError(f"{file}: {moved}{hint}")
        raise UserError(f"{file} extends {name}, and there is no such recipe; {_nearest(name)}")
    return found


def _no_variant(asked: Named, variants: dict[str, Part]) -> str:
    name = Named(asked.file).origin.removesuffix(".yaml")
    if not variants:
        return f"recipe {name} has no variants; name it without :{asked.variant}"
    near = difflib.get_close_matches(asked.variant or "", variants, n=1, cutoff=0.5)
    hint = f"the nearest one is {near[0]}; " if near else ""
    return f"recipe {name} has no variant {asked.variant!r}; {hint}there are {', '.join(variants)}"


def _spellings() -> list[str]:
    """Every recipe of castctl's and every variant of it, as one would type them."""
    return [
        spelled
        for name, path in known_recipes().items()
        for spelled in (name, *(f"{name}:{each}" for each in read_source(path).variants))
    ]


def _nearest(name: str | Path) -> str:
    near = difflib.get_close_matches(_stem(name), _spellings(), n=1, cutoff=0.6)
    hint = f"the nearest one is {near[0]}" if near else "castctl recipes lists those there are"
    return f"{hint}; name that, or a YAML file"


def _stem(name: str | Path) -> str:
    return Path(name).name.removesuffix(".yaml")
