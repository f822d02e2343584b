"""GRPO by castctl, a step at a time, as `castctl train` does it.

    python benchmarks/castctl_step.py FOLDER

The folder has the model, and work.json says what is done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure  # before torch
import numpy as np
import torch
from numpy.typing import NDArray
from turns import Turns, reward

from castctl.engines import transformers_engine
from castctl.engines.transformers_engine import TransformersEngine
from castctl.progress import Silent
from castctl.recipe.reader import load_recipe
from castctl.recipe.recipe import Recipe
from castctl.runs.run import Run, create_run
from castctl.stages.train.loop import _Loop, train

Facts = Callable[[Run, dict[str, Any]], dict[str, Any]]
"""What else is told of a step, from its run and its row of metrics."""
STAGES = ("rollout", "verify", "score", "shape", "train", "sync", "measure")


def verify(problem: str, completion: str, answer: str | None) -> float:
    return reward(completion)


def verify_right(problem: str, completion: str, answer: str | None) -> float:
    """Right or wrong, each for half of the completions."""
    return float(reward(completion) >= 0.5)


class EndAt:
    """Each row ends after so many tokens, and not before."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self.last: NDArray[np.bool_] = np.zeros(0, np.bool_)
        uniforms, pick = transformers_engine.RowUniforms, TransformersEngine._pick

        class Watched(uniforms):  # type: ignore[misc,valid-type]
            def at(own, position: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
                self.last = position + 1 >= self.lengths[rows]
                numbers: NDArray[np.float64] = super().at(position, rows)
                return numbers

        def picked(engine: Any, logits: torch.Tensor, *given: Any) -> Any:
            ids, logprobs = pick(engine, logits, *given)
            [end] = engine.stop_ids
            wrong = np.flatnonzero((ids == end) != self.last)
            ids[wrong] = np.where(self.last[wrong], end, end + 1)
            if len(wrong):
                told = logits[wrong].float().log_softmax(-1).cpu().numpy()
                logprobs[wrong] = told[np.arange(len(wrong)), ids[wrong]]
            return ids, logprobs

        transformers_engine.RowUniforms = Watched  # type: ignore[misc]
        TransformersEngine._pick = picked  # type: ignore[method-assign]


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a folder's work."""
    work = json.loads((folder / "work.json").read_text())
    return load_recipe(
        None,
        [
            f"model.path={folder / 'model'}", f"model.device={work['device']}",
            f"model.dtype={work['dtype']}", f"data.path={folder / 'problems.jsonl'}",
            "data.prompt_template={{ problem }}", "data.chat=false",
            f"data.max_prompt_tokens={work['prompt_tokens']}",
            f"sampling.n={work['n']}", f"sampling.max_tokens={max(work['lengths'])}",
            f"train.prompts_per_step={work['prompts']}", f"train.part_size={work['prompts']}",
            f"train.steps={work['steps']}", f"train.checkpoint_every={work['steps']}",
            f"train.gradient_checkpointing={work['gradient_checkpointing']}",
            "optimizer.lr=1e-6", "eval.task=held-out", "eval.every=0", "eval.limit=1", "eval.k=1",
            "eval.max_tokens=1", f"verifier.function={Path(__file__)}:verify",
            "verifier.workers=1", *work["settings"],
        ],
        method={"name": work["method"]},
    )  # fmt: skip


def main(folder: Path, more: Facts = lambda run, row: {}) -> None:
    """Take the steps, and tell `more` of each beside its times."""
    work = json.loads((folder / "work.json").read_text())
    EndAt(work["lengths"])
    recipe = recipe_of(folder)
    run = create_run(recipe, str(folder / f"run-{work['label']}"), "benchmark")
    turns, step = Turns(), _Loop.step

    def turn(loop: _Loop, number: int) -> Any:
        turns.wait()
        return step(loop, number)

    _Loop.step = turn  # type: ignore[method-assign]

    def told(row: dict[str, Any]) -> None:
        seconds = {stage: row.get(f"seconds_{stage}", 0.0) for stage in STAGES}
        taken = turns.taken()
        tokens = {"tokens": row["completion_tokens"], "trained": row["trained_tokens"]}
        turns.tell(**taken, **tokens, stages=seconds, **more(run, row))

    train(run, Silent(), told)


if __name__ == "__main__":
    assert measure
    main(Path(sys.argv[1]))
