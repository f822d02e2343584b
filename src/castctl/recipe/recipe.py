"""The recipe: every setting of a run.

Class defaults are the vetted settings; there is no second layer. Under each field
stands what it does and whose choice the default is: `(paper)` or `(paper: ...)` where one
states it, `(ours)` or `(ours; ...)` where the papers leave it open and castctl chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from castctl.errors import UserError
from castctl.methods import MethodSettings
from castctl.methods.advantages import selective_signals
from castctl.methods.teacher import PATHLESS
from castctl.recipe.data import DataSettings
from castctl.recipe.engine import EngineSettings
from castctl.recipe.evaluation import EvalSettings
from castctl.recipe.model import ModelSettings
from castctl.recipe.optimizer import OptimizerSettings
from castctl.recipe.split import asks_elsewhere, require_data
from castctl.recipe.train import TrainSettings
from castctl.recipe.verifier import VerifierSettings
from castctl.settings import (
    Amount,
    Count,
    PresencePenalty,
    RepetitionPenalty,
    Samples,
    Section,
    Seed,
)

ALTERING = ("top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty")
"""The settings of `sampling` that make its distribution another than the policy's; off by
default."""


class SamplingSettings(Section):
    n: Samples = 8
    """Completions of each prompt: the group size G."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature T; every log-prob in the pipeline is of softmax(logits / T)."""
    max_tokens: Count = 2048
    """Longest completion, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, in evaluations too; their tokens stay in it, as its last."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: Amount = 0
    """Sample from the k most likely tokens only; 0 is off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Leave out tokens less likely than this share of the most likely one; 0 is off."""
    presence_penalty: PresencePenalty = 0.0
    """Taken from the logit of each token that the completion holds already (as OpenAI and vLLM
    have it); 0 is off."""
    repetition_penalty: RepetitionPenalty = 1.0
    """Divides the logits above 0, and multiplies the others, of tokens that the prompt or the
    completion holds already (arXiv 1909.05858; as vLLM has it); 1 is off."""
    max_rows: Count = 256
    """Completions that the engine `transformers` decodes side by side."""

    @field_validator("stop", mode="before")
    @classmethod
    def _stops_are_listed(cls, stops: Any) -> Any:
        if not isinstance(stops, list | tuple):
            raise ValueError('write a list of strings, such as ["\\n\\nProblem:"]')
        return stops

    @field_validator("stop")
    @classmethod
    def _stops_are_text(cls, stops: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stops:
            raise ValueError("an empty string is in every completion; take it out")
        if any("\ufffd" in stop for stop in stops):
            raise ValueError("U+FFFD stands for bytes that are no text; take it out")
        return stops


def alterations(sampling: Mapping[str, Any]) -> dict[str, float]:
    """Which of these settings make the sampling distribution another than the policy's, and their
    values; those that are not named are off."""
    off = {name: SamplingSettings.model_fields[name].default for name in ALTERING}
    return {name: sampling[name] for name in ALTERING if sampling.get(name, off[name]) != off[name]}


class LoggingSettings(Section):
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that Accelerate writes to, beside `metrics.parquet`."""
    project: str = "castctl"
    """Project name at the tracker."""
    completions: Amount = 8
    """Completions of each step that trackers are sent, with verdict, reward and advantage; 0 sends
    no text."""


class Recipe(Section):
    """Every setting of a run."""

    seed: Seed = 0
    """Seed of prompt order, sampling and evaluation."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    sampling: SamplingSettings = SamplingSettings()
    engine: EngineSettings = EngineSettings()
    verifier: VerifierSettings = VerifierSettings()
    method: MethodSettings = MethodSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.sampling.temperature == 0 and self.sampling.n > 1:
            raise ValueError("temperature 0 gives equal completions; raise sampling.temperature")
        updates = self.updates
        policy_loss = self.method.surrogate
        if policy_loss.trains and not policy_loss.has_ratio and updates > 1:
            raise ValueError(
                f"{self.method.name}: REINFORCE is right for one update a batch, and "
                f"train.epochs x train.minibatches gives {updates}; set both to 1 or "
                "method.surrogate.kind=clip"
            )
        if getattr(self.method.distillation, "tokens", None) == "sampled" and updates > 1:
            raise ValueError(
                f"{self.method.name}: distillation by the sampled token is right for one update a "
                f"batch, and train.epochs x train.minibatches gives {updates}; set both to 1 or "
                "method.distillation.tokens=full"
            )
        if self.method.binary_rewards and self.verifier.mixes:
            raise ValueError(
                f"{self.method.name} tells right from wrong by rewards of 0 and 1, and "
                "verifier.rewards add up to others; give every reward but correct weight 0, and "
                "correct weight 1, or take another method, such as grpo"
            )
        if self.method.teacher.skip_tokens >= self.sampling.max_tokens:
            raise ValueError(
                f"method.teacher.skip_tokens={self.method.teacher.skip_tokens} leaves out every "
                f"token of sampling.max_tokens={self.sampling.max_tokens}; lower it"
            )
        if self.train.sharding != "none" and self.model.adapts:
            raise ValueError(
                "train.sharding=full shares out whole weights, and not adapters, which are small; "
                "set train.sharding=none"
            )
        cache = getattr(self.method.overlong, "cache", None) or 0
        if cache > self.sampling.max_tokens:
            raise ValueError(
                f"method.overlong.cache={cache} is longer than sampling.max_tokens="
                f"{self.sampling.max_tokens}, which penalises every completion; lower it"
            )
        return self

    @property
    def reads_total(self) -> list[str]:
        """The schedules that depend on `train.steps`, as settings: another number of steps changes
        every step, not the last ones alone."""
        decay = self.method.distillation.decay_steps
        return [
            *self.optimizer.reads_total,
            *([f"method.distillation.decay_steps={decay}"] if decay else []),
        ]

    @property
    def updates(self) -> int:
        """Optimizer steps on the completions of one step, where it has as many groups."""
        return self.train.epochs * self.train.minibatches

    @property
    def scores_policy(self) -> bool:
        """Whether the policy reads the completions before the update, and not in it alone."""
        return (
            self.train.score_policy == "always"
            or "policy_logprobs" in self.method.needs
            or self.updates > 1
            or self.samples_reference
        )

    @property
    def signals(self) -> frozenset[str]:
        """The signals that scoring writes for training and its metrics."""
        read = {"policy_logprobs", "entropies"} if self.scores_policy else set()
        return self.method.needs | read

    @property
    def selective(self) -> frozenset[str]:
        """Of these, the signals of completions with a base advantage alone."""
        every = self.train.score_rows == "all"
        return frozenset() if every else selective_signals(self.method)

    @property
    def scoring_passes(self) -> tuple[str, ...]:
        """Who reads every completion in the score stage, once each."""
        others = (name for name in self.method.scoring_passes if name != "policy")
        return (*(["policy"] if self.scores_policy else []), *others)

    @property
    def samples_reference(self) -> bool:
        """Whether the initial policy reads a sample of each step for the metrics alone."""
        return self.train.reference_kl_tokens > 0 and "ref_logprobs" not in self.method.needs

    @property
    def reads_reference(self) -> bool:
        """Whether training holds the initial policy."""
        return self.samples_reference or "ref_logprobs" in self.method.needs

    def require_parts_for(self, ranks: int) -> None:
        """Raise `UserError` where a step has fewer parts than there are ranks: some would only
        wait."""
        prompts, size = self.train.prompts_per_step, self.train.part_size
        if ranks > -(-prompts // size):
            most = prompts // ranks
            raise UserError(
                f"a step of {prompts} prompts in parts of {size} has fewer parts than the {ranks} "
                "ranks; "
                + (f"set train.part_size={most}" if most else
                   f"start at most {prompts} ranks, or raise train.prompts_per_step")
            )  # fmt: skip

    def check_training(self) -> list[str]:
        """Refuse what cannot train; return warnings about what can but may surprise.

        Raises `UserError` with the reason and the fix.
        """
        sampling, method = self.sampling, self.method
        require_data(self)
        if method.teacher.pathless:
            raise UserError(f"{method.name}: {PATHLESS}")
        if sampling.n < 2 and method.compares:
            raise UserError(
                f"{method.name} compares completions of one prompt; "
                "set sampling.n (-n) to 2 or more"
            )
        if sampling.n < 2 and method.told_by_peers:
            raise UserError(
                "method.teacher.context=peer tells the teacher another completion of the prompt; "
                "set sampling.n (-n) to 2 or more, or another method.teacher.context"
            )
        if sampling.temperature == 0:
            raise UserError("training needs a sampling.temperature above 0")
        if altering := alterations(sampling.model_dump()):
            told = " and ".join(f"sampling.{name}={value:g}" for name, value in altering.items())
            raise UserError(
                f"{told} draws from another distribution than the policy's, and nothing trains on "
                "that: the ratios of the loss divide by the policy's. Leave it out; evaluations "
                "may draw so (eval.top_p, eval.presence_penalty and the like)"
            )
        if self.train.minibatches > self.train.prompts_per_step:
            raise UserError(
                f"train.minibatches={self.train.minibatches} splits a step by whole groups, but "
                f"it has train.prompts_per_step={self.train.prompts_per_step} of them; lower it"
            )
        warnings = []
        updates = self.train.steps * self.train.epochs * self.train.minibatches
        warmup = self.optimizer.warmup_of(updates)
        if warmup >= updates:
            warnings.append(
                f"the warm-up of {warmup} optimizer steps is as long as the run's "
                f"{updates} optimizer steps: optimizer.lr is never reached"
            )
        if self.method.baseline.normalizes_first and not self.verifier.adds_up:
            warnings.append(
                "method.baseline.multi_objective_aggregation=normalize_then_sum only divides a "
                "single reward's advantages by their deviation in the step: set verifier.rewards"
            )
        if self.model.adapts and "lr" not in self.optimizer.model_fields_set:
            warnings.append(
                f"optimizer.lr={self.optimizer.lr:g} is the default of full weights; adapters take "
                "more, about three times here: set optimizer.lr"
            )
        if self.model.path == "embedded" and self.data.prompt_template.strip() != "{{ problem }}":
            warnings.append(
                "the embedded model knows prompts of the bare problem alone; begin the recipe with "
                "`extends: tiny`"
            )
        if asks_elsewhere(self):
            warnings.append(
                f"evaluated on the embedded arithmetic, trained on {self.data.path}: set "
                "eval.task=held-out for problems of that data, or name others"
            )
        return warnings + method.warnings()
