"""Pages at 80 columns: lines fold between words, and no word is broken."""

from __future__ import annotations

import re

import pytest

from castctl.runs.run import Run
from conftest import Cli
from runs import small_recipe, train_small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_small(tmp_path_factory.mktemp("narrow") / "run", small_recipe("cast"))[0]


def words(page: str) -> set[str]:
    return set(re.findall(r"[^\s│┃╇┡┩━─┏┓┳└┘┴┼╋]+", page))


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "RUN"],
        ["inspect", "RUN/step-00002"],
        ["inspect", "RUN/step-00002/signals/part-00001.parquet"],
        ["inspect", "RUN/step-00002", "--prompts"],
        ["inspect", "RUN/step-00002", "--sample"],
        ["inspect", "RUN", "--verify"],
        ["recipes"],
        ["runs"],
    ],
    ids=" ".join,
)
def test_no_word_is_broken(
    castctl: Cli, run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTCTL_RUNS", str(run.path.parent))
    monkeypatch.chdir(run.path.parent)
    named = [argument.replace("RUN", str(run.path)) for argument in arguments]
    if named[-1] == "--sample":
        first = run.step(2).table("rollouts")["prompt_id"][0].as_py()
        named.append(f"{first}/0")
    pages = {}
    for width in ("80", "400"):
        monkeypatch.setenv("COLUMNS", width)
        pages[width] = castctl(*named).stdout
    assert max(map(len, pages["80"].splitlines())) <= 80
    # What is longer than a line has to be broken: paths, rows of a plot, text without spaces.
    whole = {word for word in words(pages["400"]) if len(word) <= 60}
    assert not {word for word in whole if word not in words(pages["80"]) and word.isascii()}
