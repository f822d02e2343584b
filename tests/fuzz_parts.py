"""Damage files of a small run, one at a time, and do with each what castctl can do with a run.

Whatever is in a file, a command succeeds or ends in one `UserError` of one line; anything else is
a bug, printed with the number that makes it again.

    python tests/fuzz_parts.py --mutants 3000 --seed 1
    python tests/fuzz_parts.py --only 1234 --seed 1
    python tests/fuzz_parts.py --flips 700
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import castctl
from castctl.errors import UserError
from castctl.inspection.target import Target, find_target
from castctl.inspection.verify import Verification, verify
from castctl.progress import Silent
from mutants import mutate

STEP = "runs/a/step-00000"
SMALL = (
    "train.steps=1", "data.limit=16", "sampling.max_tokens=24", "sampling.n=3", "eval.limit=2",
    "eval.max_tokens=16", "method.teacher.every=1",
)  # fmt: skip

DIAGNOSTICS = ("opsd-gaps", "self-gaps", "groups", "flips", "credit", "confidence", "engine")

QUICK = (
    ("inspect", "a"),
    ("inspect", STEP),
    ("inspect", "PART"),
    ("inspect", STEP, "--verify"),
    ("inspect", STEP, "--prompts"),
    ("inspect", STEP, "--sample", "SAMPLE"),
    ("shape", "--run", STEP, "--overwrite"),
    ("shape", "--run", STEP),
    ("shape", "--run", STEP, "--overwrite", "--method", "rlsd"),
    ("report", STEP),
    ("runs",),
    *(("measure", name, STEP) for name in DIAGNOSTICS),
)
"""Commands of some hundredths of a second; `measure` is a diagnosis without its pictures."""

MODELS = (
    ("score", "--run", STEP),
    ("score", "--run", STEP, "--overwrite"),
    ("train", "--from", STEP, "--overwrite"),
    ("eval", "--rescore", STEP),
    ("eval", "--rescore", "runs/a", "--overwrite"),
)
"""Commands that load a model or start verifiers."""

DRAWN = (
    *(("diagnose", name, STEP) for name in DIAGNOSTICS),
    ("report", "a"),
    ("compare", "a", "b"),
)
"""Commands that draw, some seconds each."""

SECONDS = 300
"""After which a command counts as hanging."""


@dataclass(frozen=True)
class Failure:
    number: int
    command: Sequence[str]
    damage: str
    said: str


def make_base(folder: Path, trained: bool = True) -> None:
    """Make a run `a` of one step, its shards alone unless `trained`, and `b`, a copy."""
    from runs import small_recipe, train_small

    path, recipe = folder / "runs/a", small_recipe("cast", *SMALL)
    if trained:
        train_small(path, recipe)
    else:
        run = castctl.create_run(recipe, path)
        for stage in (castctl.rollout, castctl.score, castctl.shape):
            stage(run, quiet=True)
    shutil.copytree(path, folder / "runs/b")


def files_of(folder: Path) -> list[Path]:
    """What is damaged: parts of the step, of the evaluations, the prompts and the metrics."""
    run = folder / "runs/a"
    step = sorted((folder / STEP).rglob("part-*.parquet"))
    rest = [*sorted(run.glob("eval/*/*/*/part-*.parquet")), *run.glob("prompts/*.parquet"),
            *run.glob("metrics.parquet")]  # fmt: skip
    return [*step, *step, *rest]


def one_mutant(
    base: Path, number: int, seed: int, commands: Sequence[Sequence[str]], count: int
) -> Iterator[Failure]:
    """Damage a copy of the run and try `count` of the commands on it."""
    rng = np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(base / "runs", folder / "runs", copy_function=os.link)
        files = files_of(folder)
        victim = files[int(rng.integers(len(files)))]
        damage = f"{victim.relative_to(folder)}: {mutate(victim, files, rng)}"
        for choice in rng.permutation(len(commands))[:count]:
            words = [str(victim.relative_to(folder)) if w == "PART" else w
                     for w in commands[choice]]  # fmt: skip
            said = attempt(folder, words)
            if said is not None:
                yield Failure(number, words, damage, said)


def attempt(folder: Path, command: Sequence[str]) -> str | None:
    """Run a command in this process; what it did that it must not, or None."""
    from castctl.cli.main import app

    words = [_sample(folder) if word == "SAMPLE" else word for word in command]
    before, out = Path.cwd(), io.StringIO()
    os.chdir(folder)
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(out),
            warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            if words[0] == "measure":
                castctl.diagnose(*words[1:], quiet=True)
            else:
                app(words, standalone_mode=False)
    except UserError as error:
        line = str(error)
        if "\n" in line or len(line) > 1500:
            return f"a line of {len(line)} characters: {line[:300]!r}"
        if "memory" in line:
            return f"blames memory: {line}"
    except (Exception, SystemExit):
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        os.chdir(before)
    return None


def _hangs(number: int, frame: Any) -> None:
    raise TimeoutError("the command hangs")


def _sample(folder: Path) -> str:
    import pyarrow.parquet as pq

    part = folder.parent / "x"
    with contextlib.suppress(Exception):
        part = next((folder / STEP / "rollouts").glob("*.parquet"))
        return f"{pq.read_table(part, columns=['prompt_id'])['prompt_id'][0].as_py()}/0"
    return "a/0"


def verified(folder: Path) -> Verification:
    """What `inspect --verify` finds in a folder with one part, or with metrics alone."""
    files = list(folder.rglob("part-*.parquet"))
    return verify(find_target(str(files[0])) if files else Target(folder, None), Silent())


def missed_flips(folder: Path, count: int, seed: int) -> list[int]:
    """The bits of the one file in a folder, of `count` turned one at a time, that nobody missed."""
    [file] = folder.rglob("*.parquet")
    whole = file.read_bytes()
    chosen = np.random.default_rng(seed).choice(8 * len(whole), count, replace=False)
    missed = []
    for bit in chosen.tolist():
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        if not verified(folder).problems:
            missed.append(bit)
    file.write_bytes(whole)
    return missed


def flip(base: Path, count: int, seed: int) -> int:
    """Turn bits of a file of each kind; how many were missed."""
    total = 0
    for file in dict.fromkeys(sorted(files_of(base), key=lambda f: f.parent.name)):
        with tempfile.TemporaryDirectory() as place:
            part = file.name.startswith("part-")
            copy = Path(place, "step-00000", file.parent.name) if part else Path(place)
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy / file.name)
            missed = missed_flips(Path(place), count, seed)
        print(f"{file.relative_to(base)}: {len(missed)} of {count} bits missed {missed[:5]}")
        total += len(missed)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--only", type=int, help="this mutant alone")
    parser.add_argument("--commands", type=int, default=99, help="of each mutant, at most")
    parser.add_argument("--quick", action="store_true", help="only commands without a model")
    parser.add_argument("--draw", action="store_true", help="commands that draw too, 5 s each")
    parser.add_argument("--flips", type=int, help="turn so many bits of each file, and no more")
    parser.add_argument("--base", type=Path, help="where a base run lies already, or is to")
    given = parser.parse_args()
    castctl.before_torch()
    import torch

    torch.set_num_threads(1)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, hard))
    os.environ["CASTCTL_RUNS"] = "runs"
    commands = QUICK + (() if given.quick else MODELS) + (DRAWN if given.draw else ())
    base = given.base or Path(tempfile.mkdtemp())
    if not (base / "runs/b").is_dir():
        make_base(base)
    if given.flips:
        sys.exit(1 if flip(base, given.flips, given.seed) else 0)
    numbers = range(given.first, given.first + given.mutants)
    kinds: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    for done, number in enumerate([given.only] if given.only is not None else numbers, 1):
        for failure in one_mutant(base, number, given.seed, commands, given.commands):
            kinds[failure.said.rstrip().splitlines()[-1][:160]] += 1
            print(f"mutant {number}, {failure.damage}\n  {' '.join(failure.command)}\n"
                  f"{failure.said}", flush=True)  # fmt: skip
        if done % 50 == 0:
            print(f"{done} mutants, {time.monotonic() - began:.0f} s, {kinds.total()} failures",
                  file=sys.stderr, flush=True)  # fmt: skip
    for said, count in kinds.most_common():
        print(count, said)
    sys.exit(1 if kinds else 0)


if __name__ == "__main__":
    main()
