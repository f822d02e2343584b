"""castctl_step.py, with each stage's FLOPs and its peak of GPU memory beside the times.

python benchmarks/castctl_shape_step.py FOLDER
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import castctl_step
import measure  # before torch
import torch
from flops import pass_flops

from castctl.explain.model_shape import ModelShape, model_shape
from castctl.models.language_model import LanguageModel
from castctl.models.packing import PackedBatch, pack
from castctl.runs.run import Run
from castctl.stages.train import loop

STAGES = {"rollout_step": "rollout", "score_signals": "score", "update": "update"}
"""What the loop calls, and the stage that it is."""


class Watch:
    """Counts what passes through a model in each stage of a step.

    On a GPU a stage begins and ends with nothing under way, so that its seconds are its own.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape, self.stage = shape, "rest"
        self._forget()
        for name, stage in STAGES.items():
            setattr(loop, name, self._during(stage, getattr(loop, name)))
        read = LanguageModel.hidden_states

        def counted(model: LanguageModel, batch: PackedBatch, *given: Any, **named: Any) -> Any:
            self.flops[self.stage] += pass_flops(self.shape, batch, torch.is_grad_enabled())
            self.tokens[self.stage] += len(batch.targets_N)
            return read(model, batch, *given, **named)

        LanguageModel.hidden_states = counted  # type: ignore[method-assign]

    def facts(self, run: Run, row: dict[str, Any]) -> dict[str, Any]:
        """Of the step since the last time it was asked: by stage its FLOPs, the completion tokens
        of its passes, and the most bytes of tensors that a GPU held."""
        self._turn("rest")
        sampled = run.step(row["step"]).table("rollouts")
        prompts, completions = (
            [ids.values.to_numpy() for ids in sampled[f"{kind}_token_ids"]]
            for kind in ("prompt", "completion")
        )
        batch = pack(prompts, completions)
        self.flops["rollout"] = pass_flops(self.shape, batch, trains=False)
        self.tokens["rollout"] = len(batch.targets_N)
        told = {"flops": self.flops, "stage_tokens": self.tokens, "most_bytes": self.bytes}
        self._forget()
        return told

    def _forget(self) -> None:
        self.flops, self.tokens, self.bytes = Counter[str](), Counter[str](), Counter[str]()

    def _during(self, stage: str, work: Any) -> Any:
        @wraps(work)
        def watched(*given: Any, **named: Any) -> Any:
            with self._watched(stage):
                return work(*given, **named)

        return watched

    @contextmanager
    def _watched(self, stage: str) -> Iterator[None]:
        self._turn(stage)
        yield
        self._turn("rest")

    def _turn(self, stage: str) -> None:
        """Note the peak of the stage that ends here, and begin another."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_allocated()
            self.bytes[self.stage] = max(self.bytes[self.stage], most)
            torch.cuda.reset_peak_memory_stats()
        self.stage = stage


def main(folder: Path) -> None:
    recipe = castctl_step.recipe_of(folder)
    castctl_step.main(folder, Watch(model_shape(recipe.model)).facts)


if __name__ == "__main__":
    assert measure
    main(Path(sys.argv[1]))
