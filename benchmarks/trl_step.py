"""GRPO by TRL alone, a step at a time, in an environment of TRL's own.

    python benchmarks/trl_step.py FOLDER

The folder has the model, and work.json says what is done.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LogitsProcessor, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from turns import Turns, reward


class EndAt(LogitsProcessor):
    """Each row of a batch ends after so many tokens, and not before."""

    def __init__(self, lengths: list[int], prompt: int, end: int) -> None:
        self.lengths, self.prompt, self.end = torch.tensor(lengths), prompt, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt + 1 >= self.lengths.to(scores.device)
        scores = scores.clone()
        ends = scores[:, self.end].clone()
        scores[last] = float("-inf")
        scores[:, self.end] = torch.where(last, ends, float("-inf"))
        return scores


class Turn(TrainerCallback):
    """A step of the trainer is a turn."""

    def __init__(self) -> None:
        self.turns, self.tokens = Turns(), 0

    def on_step_begin(self, *given: Any, **named: Any) -> None:
        self.tokens = 0
        self.turns.wait()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        most = None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_allocated()
        self.turns.tell(**self.turns.taken(), tokens=self.tokens, most_bytes=most)

    def rewarded(
        self, completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        self.tokens += sum(map(len, completion_ids))
        return [reward(each) for each in completions]


def main(folder: Path) -> None:
    work = json.loads((folder / "work.json").read_text())
    on_cpu = work["device"] == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    turn, rows = Turn(), work["prompts"] * work["n"]
    prompts = [json.loads(line)["problem"] for line in (folder / "problems.jsonl").open()]
    assert {len(tokenizer(each)["input_ids"]) for each in prompts} == {work["prompt_tokens"]}
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=turn.rewarded,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": each} for each in prompts]),
        callbacks=[turn],
        args=GRPOConfig(
            output_dir=str(folder / "trainer"), report_to="none", use_cpu=on_cpu,
            bf16=work["dtype"] == "bfloat16",  # of the passes: the weights are float32
            gradient_checkpointing=work["gradient_checkpointing"],
            per_device_train_batch_size=rows // work["accumulate"],
            gradient_accumulation_steps=work["accumulate"], num_generations=work["n"],
            max_completion_length=max(work["lengths"]), temperature=1.0, beta=0.0,
            learning_rate=1e-6, max_steps=work["steps"], save_strategy="no", logging_steps=1000,
            disable_tqdm=True, model_init_kwargs={"dtype": "float32"},
        ),
    )  # fmt: skip
    generate = trainer.model.generate

    def ending(**named: Any) -> Any:
        end = EndAt(work["lengths"], work["prompt_tokens"], tokenizer.eos_token_id)
        return generate(**named, logits_processor=[end])

    trainer.model.generate = ending
    packages = ("trl", "torch", "transformers")
    (folder / "versions.json").write_text(json.dumps({each: version(each) for each in packages}))
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
