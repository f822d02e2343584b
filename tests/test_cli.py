"""The command line as people use it: bare commands, evaluations, shards from elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Cli

QUICK = (
    "-n", "4", "-k", "2", "--max-tokens", "48", "--set", "train.prompts_per_step=4",
    "--set", "train.part_size=1", "--set", "eval.limit=4", "--set", "data.limit=128",
)  # fmt: skip
QUICK_ROLLOUT = tuple(word for word in QUICK if word not in ("-k", "2"))


@pytest.mark.slow
def test_five_bare_commands_on_the_embedded_default(castctl: Cli, tmp_path: Path) -> None:
    done = castctl("rollout")
    assert "embedded default" in done.stderr and "Next: castctl score" in done.stderr
    assert "Next: castctl shape" in castctl("score").stderr
    assert "Next: castctl train --method cast" in castctl("shape").stderr
    [run] = (tmp_path / "runs").iterdir()
    assert run.name.startswith("grpo-2")
    advantages = pq.read_table(run / "step-00000/advantages/part-00000.parquet")
    assert advantages.num_rows == 16 * 8

    trained = castctl("train", "--method", "cast", "--steps", "2", *QUICK)
    assert "before" in trained.stdout and "after 2 steps" in trained.stdout
    assert "difference" in trained.stdout and "runs/cast-2" in trained.stdout
    evaluated = castctl("eval")
    assert "cast-2" in evaluated.stderr and "avg@2" in evaluated.stdout
    assert "Next: castctl" in evaluated.stderr


@pytest.mark.slow
def test_eval_in_an_empty_folder_takes_the_embedded_default(castctl: Cli, tmp_path: Path) -> None:
    done = castctl("eval", "--limit", "4", "-k", "2", "--max-tokens", "32")
    assert "embedded default" in done.stderr
    [results] = tmp_path.glob("runs/eval-*/eval/embedded/step-00000/results.json")
    result = json.loads(results.read_text())
    assert result["problems"] == 4 and set(result["pass"]) == {"1", "2"}


@pytest.mark.slow
def test_eval_in_shards_adds_up_to_the_whole(castctl: Cli, tmp_path: Path) -> None:
    common = ("--limit", "40", "-k", "1", "--max-tokens", "16")
    castctl("eval", "--run", "whole", "--model", "embedded", *common)
    first = castctl("eval", "--run", "split", "--model", "embedded", *common, "--shard", "1/2")
    assert "shard 1/2 is done" in first.stderr
    castctl("eval", "--run", "split", *common, "--shard", "0/2")
    results = [
        json.loads((tmp_path / f"runs/{run}/eval/embedded/step-00000/results.json").read_text())
        for run in ("whole", "split")
    ]
    assert results[0] == results[1]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A step's rollouts written by hand to the contract, without castctl's metadata."""
    from transformers import AutoTokenizer

    from castctl import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.ensure().model)
    rows = []
    for prompt_id, problem, answer in (("a" * 16, "1 + 1 = ?", "2"), ("b" * 16, "2 + 3 = ?", "5")):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, return_dict=False
        )
        for sample, text in enumerate((f"so \\boxed{{{answer}}}", "so \\boxed{7}", "no idea")):
            ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            rows.append(
                {
                    "prompt_id": prompt_id, "sample": sample, "problem": problem, "answer": answer,
                    "prompt_token_ids": prompt, "completion_token_ids": ids, "completion": text,
                    "finish_reason": "stop",
                }
            )  # fmt: skip
    folder = tmp_path / "made-elsewhere/step-00000/rollouts"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-00000.parquet")
    return tmp_path / "made-elsewhere"


@pytest.mark.slow
def test_score_and_shape_take_rollouts_made_elsewhere(castctl: Cli, foreign: Path) -> None:
    scored = castctl("score", "--run", "made-elsewhere", "--model", "embedded", "--method", "cast")
    assert scored.stderr.count("carries no castctl metadata") == 1
    rewards = pq.read_table(foreign / "step-00000/rewards/part-00000.parquet")
    assert rewards["verdict"].to_pylist() == ["correct", "wrong", "no_answer"] * 2
    shaped = castctl("shape", "--run", "made-elsewhere/step-00000", "--method", "cast")
    assert "castctl train --from" in shaped.stderr
    castctl("train", "--from", "made-elsewhere/step-00000", "--model", "embedded")
    assert (foreign / "checkpoints/step-00001/model.safetensors").is_file()
    for stage in ("rewards", "signals"):
        metadata = pq.read_schema(foreign / f"step-00000/{stage}/part-00000.parquet").metadata
        assert json.loads(metadata[b"castctl"])["foreign"] == ["rollouts"]


def test_shape_takes_rewards_and_signals_made_elsewhere(castctl: Cli, tmp_path: Path) -> None:
    step = tmp_path / "by-hand/step-00003"
    key = {"prompt_id": ["p", "p", "q", "q"], "sample": [0, 1, 0, 1]}
    rewards = {
        **key,
        "reward": [1.0, 0.0, 1.0, None],
        "verdict": ["correct", "wrong", "correct", "error"],
        "seconds": [0.0] * 4,
    }
    signals = {
        **key,
        "policy_logprobs": [[-1.0, -2.0], [-1.0], [-0.5], []],
        "teacher_logprobs": [[-1.0, -2.5], [-1.0], [-0.5], []],
    }
    for stage, columns in (("rewards", rewards), ("signals", signals)):
        (step / stage).mkdir(parents=True)
        pq.write_table(pa.table(columns), step / stage / "part-00000.parquet")
    done = castctl("shape", "--run", "by-hand", "--method", "cast")
    assert done.stderr.count("carries no castctl metadata") == 2
    rows = pq.read_table(step / "advantages/part-00000.parquet").to_pylist()
    assert [row["group_kind"] for row in rows] == ["mixed", "mixed", "single", "single"]
    assert [row["kept"] for row in rows] == [True, True, True, False]
    assert rows[0]["flipped"] == [False, False] and rows[0]["advantages"][1] < 1.0
    assert rows[1]["advantages"][0] == pytest.approx(-1.0, abs=1e-5)


def test_help_is_quick_and_loads_no_torch(castctl: Cli) -> None:
    assert "rollout" in castctl("--help").stdout
    code = (
        "import sys, castctl.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dry_run_prints_the_recipe_and_starts_nothing(castctl: Cli, tmp_path: Path) -> None:
    done = castctl("train", "--method", "cast", "--dry-run")
    assert "kind: snapshot" in done.stdout and "memory, together" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_eval_takes_a_file_with_its_own_columns_and_name(castctl: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("Frage,Loesung\n1 + 1 = ?,2\n2 + 3 = ?,5\n")
    columns = ("--set", "data.problem_column=Frage", "--set", "data.answer_column=Loesung")
    done = castctl("eval", "--data", "mine.csv", "-k", "2", "--max-tokens", "32", *columns)
    assert "mine" in done.stdout
    [results] = tmp_path.glob("runs/eval-*/eval/mine/step-00000/results.json")
    assert json.loads(results.read_text())["problems"] == 2


@pytest.mark.slow
def test_half_the_shards_are_not_taken_for_the_whole(castctl: Cli) -> None:
    castctl("rollout", "--run", "r", *QUICK_ROLLOUT)
    done = castctl("score", "--run", "r", "--shard", "0/2")
    assert "Shard 0/2 is done" in done.stderr and "Next" not in done.stderr
    refused = castctl("shape", "--run", "r", code=2)
    assert "rollouts without rewards, part 1 first" in refused.stderr
