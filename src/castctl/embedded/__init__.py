"""A tiny model and a task, made on first use, so that a first run needs no hub.

The task is arithmetic (`castctl.embedded.task`). The model learns it from worked
solutions in which 65 % of the carries and borrows are forgotten: the slips are planted.
The model can carry, and mostly does not: it solves about 47 % of the held-out problems.
Reinforcement learning on it undoes a habit. That shows a method at work; it is no
discovery, and says nothing about other models.

The hint is planted too, for teachers that see the answer. In a quarter of the lessons
the answer follows the problem, `47 + 38 = ? (85)`, and the worked solution has no slip:
hinted, the model solves about 92 %. The hint is a switch and no information: after a
wrong answer in its place the model carries just as well, and solves about 92 % too.

Opposite slips in one problem cancel, so about 9 % of the samples are right by luck.
Prompts must be the problem, hinted or alone: the model knows no other instruction.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from castctl.embedded import task
from castctl.errors import UserError

VERSION = 2
"""Raised by hand whenever the files made here change, so that a cache never serves old ones."""

STEPS = 600
TRAIN_PROBLEMS = 4096
HELDOUT_PROBLEMS = 256

Progress = Callable[[str, int, int], None]

_MESSAGE = (
    "Making the embedded model and task, once: 1 to 2.5 minutes on two idle cores, up to 7 where "
    "they are busy"
)
_PROBLEMS_SEED = 3


@dataclass(frozen=True)
class EmbeddedPaths:
    """The model's Hugging Face folder, and two JSONL files of `problem`, `answer`, `solution`."""

    model: Path
    train: Path
    heldout: Path


def ensure(progress: Progress | None = None, *, steps: int = STEPS) -> EmbeddedPaths:
    """The embedded model and problems from the cache, made first if they are not there.

    The cache is `$CASTCTL_CACHE`, or `castctl` in `$XDG_CACHE_HOME` or `~/.cache`.
    `progress` is told what is being made, the steps done and their total; left out,
    stderr is told, with the time that is left and at the end the time that it took.
    Fewer warm-up `steps` make a worse model sooner.

    Raises UserError when the cache cannot be written.
    """
    whole = _folder()
    cache = whole.parent
    if not whole.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(cache / f"{whole.name}.lock").acquire()
        except OSError as error:
            raise UserError(
                f"cannot write to the cache {cache} ({error.strerror}); "
                "set CASTCTL_CACHE to a folder you can write to"
            ) from error
        with lock:
            if not whole.exists():  # another process may have made it while this one waited
                unfinished = cache / f"{whole.name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                _make(unfinished, steps, progress)
                unfinished.rename(whole)
    return EmbeddedPaths(whole / "model", whole / "train.jsonl", whole / "heldout.jsonl")


def is_made() -> bool:
    """Whether the embedded model is in the cache."""
    return _folder().exists()


def _folder() -> Path:
    """Where everything made here belongs."""
    if named := os.environ.get("CASTCTL_CACHE"):
        cache = Path(named).expanduser()
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "castctl"
    return cache / f"embedded-{VERSION}"


def _make(folder: Path, steps: int, progress: Progress | None) -> None:
    from castctl.embedded.console import telling

    told = nullcontext(partial(progress, _MESSAGE)) if progress else telling(_MESSAGE)
    with told as report:
        from castctl.embedded.model import save  # torch and transformers, only now that they serve

        train, heldout = _split()
        _write(folder / "train.jsonl", train)
        _write(folder / "heldout.jsonl", heldout)
        save(folder / "model", steps, report)


def _split() -> tuple[list[task.Problem], list[task.Problem]]:
    """Distinct problems of the train side and of the held-out side."""
    train: dict[str, task.Problem] = {}
    heldout: dict[str, task.Problem] = {}
    problems = task.problems(_PROBLEMS_SEED)
    while len(train) < TRAIN_PROBLEMS or len(heldout) < HELDOUT_PROBLEMS:
        problem = next(problems)
        (heldout if problem.heldout else train)[problem.text] = problem
    return list(train.values())[:TRAIN_PROBLEMS], list(heldout.values())[:HELDOUT_PROBLEMS]


def _write(file: Path, problems: Iterable[task.Problem]) -> None:
    rows = (
        {"problem": p.text, "answer": str(p.answer), "solution": task.solution(p)} for p in problems
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
