"""TRL without castctl around it: its losses and gradients of the steps in a folder.

    python benchmarks/trl_alone.py FOLDER

It runs in an environment of TRL's own, which peer_environment.py makes. GRPOTrainer's own code
takes the rewards to advantages, both models' log-probs to ratios, and all of them to a loss; only
the generation is replaced, by the completions of the folder.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def main(folder: Path) -> None:
    step = json.loads((folder / "step.json").read_text())
    for name, settings in step["cases"].items():
        loss, gradient = differentiated(folder, step, settings)
        np.savez(folder / f"trl-{name}.npz", loss=loss, **gradient)
    packages = ("trl", "torch", "transformers")
    (folder / "versions.json").write_text(json.dumps({each: version(each) for each in packages}))


def differentiated(
    folder: Path, step: dict[str, Any], settings: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """The loss of one optimizer step and its gradient, by parameter, in float64."""
    model, moved = (
        AutoModelForCausalLM.from_pretrained(folder / which, dtype=torch.float64)
        for which in ("old", "new")
    )
    rows, sampler = len(step["completions"]), step["sampler"]

    def rewarded(completions: list[str], **columns: Any) -> list[float]:
        return step["rewards"]

    corrects = "vllm_importance_sampling_mode" in settings
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewarded,
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        train_dataset=Dataset.from_list([{"prompt": "."}] * rows),
        args=GRPOConfig(
            output_dir=str(folder / "trainer"), report_to="none", use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=rows,
            gradient_accumulation_steps=1, num_generations=step["n"],
            num_iterations=2,  # else it takes the new policy for the old one
            max_completion_length=step["max_tokens"], temperature=step["temperature"],
            beta=0.0, **settings,
        ),
    )  # fmt: skip
    # vLLM itself is needed for the generation alone.
    trainer.use_vllm = corrects
    trainer.vllm_importance_sampling_correction = corrects
    trainer.current_gradient_accumulation_steps = 1
    texts = ["."] * rows
    trainer._generate = lambda prompts: (
        step["prompts"], step["completions"], None, texts, sampler if corrects else None, {}, None,
        None,
    )  # fmt: skip
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "."}] * rows)
    trainer.model.load_state_dict(moved.state_dict())
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradient = {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}
    return float(loss), gradient


if __name__ == "__main__":
    main(Path(sys.argv[1]))
