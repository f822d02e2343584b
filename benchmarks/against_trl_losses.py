"""Loss and gradient of one optimizer step, castctl's against TRL's, on equal completions.

Both start from the same rewards, the same old and new weights of a random model in float64 and the
same sampler's log-probs. TRL runs in an environment of its own, made once in the cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
import random_qwen3
import torch
from numpy.typing import NDArray
from peer_environment import TRL, python_with

from castctl.methods.advantages import compute_advantages
from castctl.methods.groups import group_rewards
from castctl.methods.signals import TokenSignals
from castctl.models import attention
from castctl.models.head import score_tokens
from castctl.models.language_model import LanguageModel
from castctl.models.packing import pack
from castctl.models.policy import FullWeights
from castctl.ragged import offsets_of
from castctl.recipe.optimizer import OptimizerSettings
from castctl.recipe.recipe import Recipe
from castctl.stages.train.batch import TrainBatch
from castctl.stages.train.optimizer import Optimizer
from castctl.stages.train.update import update

BOUND = 1e-6
"""The largest difference: TRL's advantages and castctl's streams are float32."""

N, GROUPS, MAX_TOKENS, TEMPERATURE, VOCABULARY = 4, 3, 24, 0.8, 512
PAD = 0

TRLS_BASELINE = {"kind": "mean_std", "std": "sample", "eps": 1e-4}
TOKEN_MEAN = {"aggregation": "token_mean"}


@dataclass(frozen=True)
class Case:
    """The same loss in TRL's words and in castctl's."""

    trl: dict[str, Any]
    surrogate: dict[str, Any]
    correction: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    baseline: dict[str, Any] = field(default_factory=lambda: TRLS_BASELINE)


GRPO = {"loss_type": "grpo"}
GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
WIDER = {"epsilon": 0.02, "epsilon_high": 0.03}
GSPO_WIDER = {"kind": "gspo", "range_low": 0.02, "range_high": 0.03}


def corrected(mode: str, high: float) -> dict[str, Any]:
    return {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": high}


CASES = {
    "grpo": Case(GRPO, {"kind": "clip"}),
    "grpo, two-sided": Case(GRPO | {"delta": 1.3}, {"kind": "clip", "dual_clip": 1.3}),
    "dapo": Case(
        {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
        {"kind": "clip", "clip_high": 0.28, **TOKEN_MEAN},
    ),
    "dr-grpo": Case(
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"kind": "clip", "aggregation": "constant"},
        baseline={"kind": "mean"},
    ),
    "gspo": Case(GSPO | {"epsilon": 3e-4, "epsilon_high": 4e-4}, {"kind": "gspo"}),
    "gspo, a wider range": Case(GSPO | WIDER, GSPO_WIDER),
    "gspo, token mean": Case(GSPO | WIDER | {"loss_type": "dapo"}, GSPO_WIDER | TOKEN_MEAN),
    "cispo": Case(
        {"loss_type": "cispo", "epsilon_high": 1.1},  # the weight itself
        {"kind": "cispo", "weight_high": 1.1, **TOKEN_MEAN},
    ),
    "sapo": Case({"loss_type": "sapo"}, {"kind": "sapo"}),
    "grpo, tokens truncated": Case(
        GRPO | corrected("token_truncate", 1.1), {"kind": "clip"}, {"kind": "truncate", "high": 1.1}
    ),
    "grpo, tokens masked": Case(
        GRPO | corrected("token_mask", 1.1),
        {"kind": "clip"},
        {"kind": "mask", "low": 0.0, "high": 1.1},
    ),
    "grpo, sequences masked": Case(
        GRPO | corrected("sequence_mask", 1.2),
        {"kind": "clip"},
        {"kind": "mask", "level": "sequence", "high": 1.2},
    ),
    "gspo, tokens truncated": Case(
        GSPO | WIDER | corrected("token_truncate", 1.1),
        GSPO_WIDER,
        {"kind": "truncate", "high": 1.1},
    ),
}


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--python", type=Path, help="of an environment with TRL")
    options = measure.parse(parser)
    python = options.python or python_with(TRL)
    with tempfile.TemporaryDirectory() as folder:
        step = Step(Path(folder))
        step.write()
        script = Path(__file__).with_name("trl_alone.py")
        subprocess.run([python, script, folder], check=True, stdout=sys.stderr)
        numbers = {name: compared(step, name) for name in CASES}
        versions = json.loads((step.folder / "versions.json").read_text())
    measure.report("against_trl_losses", options.repeats, other=versions, cases=numbers)
    worst = max(max(each["loss_off"], each["gradient_off"]) for each in numbers.values())
    if worst > BOUND:
        sys.exit(f"castctl and TRL differ by {worst:.1e}, more than {BOUND:g}")


class Step:
    """Completions of a random model, their rewards, and the weights before and after a move."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        rows = N * GROUPS
        prompts = [random_ids(rng, rng.integers(3, 9)) for _ in range(GROUPS)]
        self.prompts = [prompts[row // N] for row in range(rows)]
        self.completions = [random_ids(rng, rng.integers(2, MAX_TOKENS)) for _ in range(rows)]
        self.rewards = np.array([1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0], np.float64)
        self.offsets = offsets_of([len(each) for each in self.completions])
        self.old, self.new = (model_at(distance) for distance in (0.0, 0.004))
        self.old_logprobs = logprobs_of(self.old, self.prompts, self.completions)
        noise = rng.normal(0, 0.1, len(self.old_logprobs))
        self.sampler = np.minimum(self.old_logprobs + noise, -1e-4)

    def write(self) -> None:
        """What TRL reads."""
        text = self.folder / "text.txt"
        text.write_text("Add the numbers.\n")
        random_qwen3.make_tokenizer(text, VOCABULARY).save_pretrained(self.folder / "tokenizer")
        for name, model in (("old", self.old), ("new", self.new)):
            model.model.save_pretrained(self.folder / name)
        cuts = self.offsets[1:-1]
        step = {
            "n": N,
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "prompts": [each.tolist() for each in self.prompts],
            "completions": [each.tolist() for each in self.completions],
            "rewards": self.rewards.tolist(),
            "sampler": [each.tolist() for each in np.split(self.sampler, cuts)],
            "cases": {name: case.trl for name, case in CASES.items()},
        }
        (self.folder / "step.json").write_text(json.dumps(step))


def random_ids(rng: np.random.Generator, length: int) -> NDArray[np.int32]:
    return rng.integers(PAD + 1, VOCABULARY, length).astype(np.int32)


def model_at(distance: float) -> LanguageModel:
    """The random model in float64, its weights moved by noise of that deviation."""
    model = random_qwen3.make_model(VOCABULARY, hidden=64, layers=2, pad_token_id=PAD).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += distance * torch.randn(
                weights.shape, generator=generator, dtype=weights.dtype
            )
    model.set_attn_implementation(attention.NAME)
    return LanguageModel(model, None, torch.float64)


def logprobs_of(
    model: LanguageModel, prompts: list[NDArray[np.int32]], completions: list[NDArray[np.int32]]
) -> NDArray[np.float64]:
    packed = pack(prompts, completions)
    with torch.no_grad():
        hidden = model.hidden_states(packed)
    head, targets = model.head(TEMPERATURE, 16), torch.from_numpy(packed.targets_N)
    return score_tokens(head, hidden, targets, with_entropies=False)[0].double().numpy()


def compared(step: Step, name: str) -> dict[str, float]:
    """Both losses and how far they are apart, absolutely, as they are sums of terms of size 1 that
    cancel; and the difference of the gradients, relative to TRL's."""
    theirs = dict(np.load(step.folder / f"trl-{name}.npz"))
    their_loss = float(theirs.pop("loss"))
    loss, gradient, held = differentiated(step, CASES[name])
    assert gradient.keys() == theirs.keys(), "both have the same parameters"
    one, other = (np.concatenate([g[n].ravel() for n in theirs]) for g in (gradient, theirs))
    return {
        "loss": loss,
        "trl_loss": their_loss,
        "loss_off": abs(loss - their_loss),
        "gradient_off": float(np.linalg.norm(one - other) / np.linalg.norm(other)),
        "clip_share": held,
    }


def differentiated(step: Step, case: Case) -> tuple[float, dict[str, Any], float]:
    """castctl's loss and gradient of the step, and the share of tokens that its bound holds."""
    recipe = Recipe.model_validate(
        {
            "method": {
                "name": "grpo",
                "baseline": case.baseline,
                "surrogate": case.surrogate,
                "correction": case.correction,
            },
            "sampling": {"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
            "train": {"microbatch_tokens": 64, "head_chunk_tokens": 16},
        }
    )
    of_row = np.arange(len(step.rewards)) // N
    groups, signals = group_rewards(step.rewards, of_row), TokenSignals(step.offsets)
    made = compute_advantages(recipe.method, groups, signals)
    correction = recipe.method.correction
    weights = correction.corrected(step.old_logprobs, step.sampler, step.offsets)
    tokens = int(step.offsets[-1])
    loss_weights = np.ones(tokens) if weights is None else weights.weights_N
    batch = TrainBatch(
        prompts=step.prompts,
        teacher_prompts=step.prompts,
        completions=step.completions,
        group_of_row=of_row,
        kept_R=made.kept_R,
        offsets=step.offsets,
        advantages=made.advantages_N.astype(np.float32),
        loss_weights=loss_weights.astype(np.float32),
        old_logprobs=step.old_logprobs.astype(np.float32),
    )
    model = model_at(0.004)
    policy = FullWeights(model)
    optimizer = Optimizer(policy.trained(), OptimizerSettings(), 1)
    unbound = recipe.optimizer.model_copy(update={"max_grad_norm": 1e12})
    recipe = recipe.model_copy(update={"optimizer": unbound})
    stats = update(policy, model, optimizer, batch, recipe, 0)
    gradient = {name: p.grad.numpy() for name, p in model.model.named_parameters()}
    return stats.losses[0], gradient, stats.row()["clip_share"]


if __name__ == "__main__":
    main()
