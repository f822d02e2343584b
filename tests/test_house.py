"""The house: data flows one way, and nothing lower imports anything higher."""

from __future__ import annotations

import ast
from pathlib import Path

import castctl

PACKAGE = Path(castctl.__file__).parent

FLOORS = [
    {
        "buckets", "errors", "files", "launcher", "lifeline", "processes", "progress", "ragged",
        "ranks", "settings", "versions",
    },
    {"methods", "shards"},
    {"recipe"},
    {"embedded", "verify"},
    {"data", "models"},
    {"engines", "runs"},
    {"stages"},
    {"comparison", "diagnosis", "explain", "inspection", "writers"},
    {"hub", "report"},
    {"cli"},
]  # fmt: skip
"""From the ground up; what stands on one floor may use one another."""

METHODS = {"cast", "cispo", "dppo", "gspo", "oar", "presets", "rlrt", "rlsd", "sapo"}
"""The mathematics that only one method has, and their names."""

BESIDE = {"", "__main__"}


def _imports(file: Path) -> set[str]:
    """The rooms of castctl that a file imports, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "castctl":
            names |= {f"castctl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("castctl.")}


def _room(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def test_every_room_has_its_floor() -> None:
    rooms = {_room(file) for file in PACKAGE.rglob("*.py")}
    assert rooms == BESIDE.union(*FLOORS)


def test_nothing_lower_imports_anything_higher() -> None:
    floor = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    upward = [
        f"{file.relative_to(PACKAGE)} imports {room}"
        for file in PACKAGE.rglob("*.py")
        if _room(file) not in BESIDE
        for room in _imports(file)
        if floor.get(room, 0) > floor[_room(file)]
    ]
    assert not upward


def test_the_trainer_knows_no_method() -> None:
    """Nothing outside the mathematics speaks of one method's shaping."""
    for file in (PACKAGE / "stages" / "train").glob("*.py"):
        names = {
            node.module
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert not names & {f"castctl.methods.{name}" for name in METHODS}


def test_most_files_are_short() -> None:
    lengths = sorted(len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py"))
    assert lengths[-1] <= 350 and lengths[len(lengths) * 95 // 100] <= 300
