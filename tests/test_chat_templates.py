"""Chat templates of every kind, through the command line: what is asked and how it is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from castctl import embedded
from castctl.embedded.model import CHAT_TEMPLATE
from castctl.runs.run import open_run
from conftest import Cli

THINK = "{%- if add_generation_prompt -%}{{ '<think>\\n' }}{%- endif -%}"


def model(template: str) -> str:
    """A folder `model` of the embedded model with another chat template."""
    folder = Path(shutil.copytree(embedded.ensure().model, "model"))
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_box_in_thoughts_that_the_template_opened_earns_nothing(castctl: Cli) -> None:
    name = model(CHAT_TEMPLATE + THINK)
    castctl("eval", "--model", name, "--limit", "4", "-k", "2", "--run", "thinking")
    folder = next(Path("runs/thinking/eval").glob("*/step-00000"))
    completions = pq.read_table(folder / "rollouts")["completion"].to_pylist()
    assert any(r"\boxed{" in text for text in completions), "no box, so nothing is tested"
    assert not any("</think>" in text for text in completions)
    verdicts = set(pq.read_table(folder / "rewards")["verdict"].to_pylist())
    assert verdicts <= {"no_answer", "truncated"}
    [again] = json.loads(castctl("eval", "--rescore", str(folder), "--json").stdout)["parts"]
    assert {move["new"] for move in again["moves"]} <= {"no_answer", "truncated"}

    few = ("--set", "train.steps=1", "--set", "train.prompts_per_step=2", "--set", "data.limit=4")
    castctl("rollout", "--model", name, "--run", "trained", *few)
    castctl("score", "--run", "trained", "--model", name)
    rewards = open_run("trained").step(0).table("rewards")
    assert set(rewards["verdict"].to_pylist()) <= {"no_answer", "truncated"}
