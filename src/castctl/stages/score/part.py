"""The signals of one part, computed on demand and each model pass once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.data.conversation import earlier_in
from castctl.data.teacher_template import Told
from castctl.engines.sampling import request_seed, row_key
from castctl.errors import UserError
from castctl.models.packing import Ids, by_prompt, flattened, rows_of
from castctl.models.perturbation import perturbation_scores
from castctl.models.sensitivity import gradient_scores
from castctl.progress import Advance
from castctl.ragged import spread
from castctl.shards.columns import correctness, list_column, ragged_column
from castctl.shards.schema import PEER, PROMPT_SIGNALS
from castctl.stages.score.peers import draw_peers, peer_prompts
from castctl.stages.score.scorers import Scorer, Scorers
from castctl.verify.spans import AnswerSpan, answer_parts

Floats = NDArray[np.float32]

PASSES = {
    "policy_logprobs": "policy",
    "entropies": "policy",
    "teacher_logprobs": "teacher",
    "ref_logprobs": "reference",
    "bilateral_logprobs": "bilateral",
    "importance_perturb": "perturbation",
    "importance_grad": "gradient",
}
"""The reading of the completions that a signal comes from; prompts alone need none."""


@dataclass(frozen=True)
class Budget:
    """How a pass is cut up: input tokens at once, and completion tokens whose logits exist."""

    microbatch_tokens: int
    chunk_tokens: int


class PartScorer:
    """Computes the signals of one part of `rollouts`; those that depend on verdicts read its
    `rewards`.

    `advance` is told of completions, once a pass; `seconds` are those of each pass. Raises
    `UserError` for rollouts that these models cannot have made, and for numbers that are not
    finite.
    """

    def __init__(
        self,
        rollouts: pa.Table,
        rewards: pa.Table | None,
        scorers: Scorers,
        step: int,
        temperature: float,
        budget: Budget,
        advance: Advance,
    ) -> None:
        self._rollouts, self._rewards, self._scorers = rollouts, rewards, scorers
        self._step, self._temperature = step, temperature
        self._budget, self._advance = budget, advance
        self._with_entropies = False
        self._left_out: Mapping[str, NDArray[np.bool_]] = {}
        self.seconds: dict[str, float] = {}
        self._prompts = rows_of(*ragged_column(rollouts, "prompt_token_ids"))
        ids, self._offsets = ragged_column(rollouts, "completion_token_ids")
        self._completions = rows_of(ids, self._offsets)
        if any(len(prompt) == 0 for prompt in self._prompts):
            raise UserError(
                "a rollout has empty prompt_token_ids, and a model scores after a prompt only; "
                "roll out again, or write the prompt's tokens into the part"
            )
        scorers.policy.model.refuse_unknown_tokens("prompt", self._prompts)
        scorers.policy.model.refuse_unknown_tokens("completion", self._completions)
        scorers.policy.model.refuse_long_rows(self._prompts, self._completions)

    def columns(
        self, names: Sequence[str], left_out: Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, pa.Array]:
        """These signals, each as a column; of some, rows (R) are left out and null."""
        self._with_entropies = "entropies" in names
        self._left_out = left_out
        return {name: self._column(name) for name in names}

    def _column(self, name: str) -> pa.Array:
        if name == PEER:
            samples = self._rollouts["sample"].to_pylist()
            peers = [None if peer is None else samples[peer] for peer in self._peers]
            return pa.array(peers, pa.int32())
        if name in PROMPT_SIGNALS:
            teacher = name == "teacher_prompt_token_ids"
            return self._prompt_column(
                self._teacher_prompts if teacher else self._bilateral_prompts
            )
        flat = {
            "policy_logprobs": lambda: self._policy[0],
            "entropies": lambda: self._policy[1],
            "teacher_logprobs": lambda: self._teacher,
            "ref_logprobs": lambda: self._reference,
            "bilateral_logprobs": lambda: self._bilateral,
            "importance_perturb": self._perturbation,
            "importance_grad": self._gradient,
        }[name]()
        absent = self._unread(name).copy()
        if name == "teacher_logprobs":
            absent |= [prompt is None for prompt in self._teacher_prompts]
        read = flat[~spread(absent, self._offsets)]
        influence = name.startswith("importance_")  # NaN there says that a token was not scored
        if not np.isfinite(read).all() and not (influence and not np.isinf(read).any()):
            raise UserError(
                f"{name} are not all finite; the model's weights "
                "are broken or have diverged: go back to an earlier checkpoint, or lower "
                "optimizer.lr"
            )
        return list_column(flat, self._offsets, pa.float32(), absent)

    @cached_property
    def _policy(self) -> tuple[Floats, Floats]:
        entropies = self._with_entropies
        return self._score("policy", self._scorers.policy, self._prompts, entropies)

    @cached_property
    def _teacher(self) -> Floats:
        teacher = self._scorers.teacher
        assert teacher is not None, "no teacher at hand"
        prompts = self._teacher_prompts
        if teacher.model is self._scorers.policy.model and prompts is self._prompts:
            return self._policy[0]  # a teacher that is the policy costs no second pass
        left_out = self._unread("teacher_logprobs")
        prompts = [None if left else p for p, left in zip(prompts, left_out, strict=True)]
        whole = [prompt for prompt in prompts if prompt is not None]
        if len(whole) == len(prompts):
            return self._score("teacher", teacher, whole)[0]
        nothing = np.full(self._offsets[-1], np.nan, np.float32)
        return self._score_some("teacher", teacher, prompts, nothing)

    @cached_property
    def _reference(self) -> Floats:
        assert self._scorers.reference is not None, "no reference at hand"
        return self._score("reference", self._scorers.reference, self._prompts)[0]

    @cached_property
    def _bilateral(self) -> Floats:
        """The policy's log-probs, of completions with an opposite under the bilateral prompt."""
        both = zip(self._bilateral_prompts, self._prompts, strict=True)
        other = [None if asked is bare else asked for asked, bare in both]
        return self._score_some("bilateral", self._scorers.policy, other, self._policy[0])

    @cached_property
    def _teacher_prompts(self) -> Sequence[Ids | None]:
        """What the teacher is asked, a prompt a row; the rollouts' own where it is the same, None
        where the row has no teacher."""
        template = self._scorers.teacher_template
        if template is None:
            return self._prompts
        if self._scorers.told.told_by_peers:
            room = self._scorers.policy.model.context_tokens
            return peer_prompts(template, self._rollouts, self._peers, self._completions, room)
        names = ("prompt_id", "problem", "answer", "solution", "earlier")
        columns = [self._rollouts[name].to_pylist() for name in names]
        others = self._scorers.others or {}
        told = {}
        for id, problem, answer, solution, cell in zip(*columns, strict=True):
            answer, solution = others.get(id, (answer, solution))
            told[id] = Told(problem, answer, solution, earlier_in(cell))
        prompts = (np.array(ids, np.int32) for ids in template.render_all([*told.values()]))
        rendered = dict(zip(told, prompts, strict=True))
        rows: list[Ids] = [rendered[id] for id in columns[0]]
        longest = max(map(len, rows), default=0)
        room = self._scorers.policy.model.context_tokens
        if longest >= room:
            raise UserError(
                f"a prompt of the teacher has {longest} tokens, and the model's context {room}; "
                "shorten data.teacher_template, or take method.teacher.context=answer"
            )
        return rows

    @cached_property
    def _peers(self) -> list[int | None]:
        """The row of the completion that the teacher is told, for each row."""
        assert self._rewards is not None, "peers are correct completions"
        correct = np.array(self._rewards["verdict"].to_pylist()) == "correct"
        ids, samples = (self._rollouts[name].to_pylist() for name in ("prompt_id", "sample"))
        return draw_peers(ids, samples, correct, self._scorers.seed, self._step)

    @cached_property
    def _bilateral_prompts(self) -> list[Ids]:
        """The prompts of the ratio: with the opposite completions of the row's group."""
        template = self._scorers.bilateral
        assert template is not None, "nobody renders the bilateral prompt"
        assert self._rewards is not None, "the opposite is read off the rewards"
        rewards = correctness(self._rewards)
        if not np.isin(rewards[~np.isnan(rewards)], (0.0, 1.0)).all():
            raise UserError(
                "bilateral conditioning tells right from wrong, so rewards must be 0 or 1; use "
                "--method grpo for graded rewards"
            )
        names = ("prompt_id", "sample", "problem", "completion", "earlier")
        columns = [self._rollouts[name].to_pylist() for name in names]
        groups: dict[str, list[int]] = {}
        for row in np.argsort(columns[1], kind="stable"):
            groups.setdefault(columns[0][row], []).append(int(row))
        rows: list[Ids] = []
        for row, (id, _, problem, _, earlier) in enumerate(zip(*columns, strict=True)):
            others = [columns[3][o] for o in groups[id] if rewards[o] == 1 - rewards[row]]
            own = self._prompts[row]
            if others:
                length, correct = len(self._completions[row]), bool(rewards[row] == 1)
                told = earlier_in(earlier)
                ids = template.render(problem, own.tolist(), length, correct, others, told)
                own = own if ids == own.tolist() else np.array(ids, np.int32)
            rows.append(own)
        return rows

    def _score(
        self,
        name: str,
        scorer: Scorer,
        prompts: Sequence[Ids],
        with_entropies: bool = False,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[Floats, Floats]:
        """Log-probs (N) and, if asked for, entropies (N) of one reading of the completions, or of
        these `rows` of them."""
        read = self._completions if rows is None else [self._completions[row] for row in rows]
        with self._timed(name):
            logprobs, entropies = scorer.model.score(
                prompts, read, self._temperature, self._budget.microbatch_tokens,
                self._budget.chunk_tokens, self._advance, with_entropies=with_entropies,
            )  # fmt: skip
        return logprobs, np.zeros(0, np.float32) if entropies is None else entropies

    def _score_some(
        self, name: str, scorer: Scorer, prompts: Sequence[Ids | None], others: Floats
    ) -> Floats:
        """Log-probs (N) of the rows that have one of these prompts, and `others` (N) elsewhere."""
        asked = {row: prompt for row, prompt in enumerate(prompts) if prompt is not None}
        self._advance(len(prompts) - len(asked))
        rows = np.array([*asked], np.int64)[by_prompt([*asked.values()])]
        scored, _ = self._score(name, scorer, [asked[row] for row in rows.tolist()], rows=rows)
        logprobs = others.copy()
        ends = np.cumsum(np.diff(self._offsets)[rows])
        for row, end in zip(rows, ends, strict=True):
            start, stop = self._offsets[row], self._offsets[row + 1]
            logprobs[start:stop] = scored[end - (stop - start) : end]
        return logprobs

    def _perturbation(self) -> Floats:
        oar, model = self._scorers.perturbation, self._scorers.policy.model
        tokenizer = model.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with self._timed("perturbation"):
            return perturbation_scores(
                model, self._prompts, self._completions,
                self._spans("importance_perturb", oar.conclude),
                score=oar.score, pad_id=pad, stride=oar.stride, budget=oar.budget,
                temperature=self._temperature, microbatch_tokens=self._budget.microbatch_tokens,
                chunk_tokens=self._budget.chunk_tokens, advance=self._advance,
            )  # fmt: skip

    def _gradient(self) -> Floats:
        oar = self._scorers.gradient
        keys = zip(
            *(self._rollouts[name].to_pylist() for name in ("prompt_id", "sample")), strict=True
        )
        seeds = [request_seed(row_key(self._scorers.seed, self._step, *key)) for key in keys]
        with self._timed("gradient"):
            return gradient_scores(
                self._scorers.policy.model, self._prompts, self._completions,
                self._spans("importance_grad", oar.conclude), seeds,
                score=oar.score, noise_std=oar.noise_std,
                temperature=self._temperature, microbatch_tokens=self._budget.microbatch_tokens,
                chunk_tokens=self._budget.chunk_tokens, advance=self._advance,
            )  # fmt: skip

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def _unread(self, name: str) -> NDArray[np.bool_]:
        """The rows (R) that are left out of a signal."""
        return self._left_out.get(name, np.zeros(len(self._completions), np.bool_))

    def _spans(self, name: str, conclude: str | None) -> list[AnswerSpan | None]:
        """Reasoning and answer of each completion; None without an extracted answer, and where the
        influence by this name is not read."""
        assert self._rewards is not None, "OAR reads where the verifier found the answer"
        starts, ends = (self._rewards[name].to_pylist() for name in ("answer_start", "answer_end"))
        tokenizer = self._scorers.policy.model.tokenizer
        rows = zip(self._completions, starts, ends, self._unread(name), strict=True)
        return [
            None if left else answer_parts(tokenizer, ids.tolist(), start, end, conclude)
            for ids, start, end, left in rows
        ]

    def _prompt_column(self, prompts: Sequence[Ids | None]) -> pa.Array:
        """Prompts as a column, null where they are the rollouts' own, and where there is none."""
        none = np.zeros(0, np.int32)
        both = zip(prompts, self._prompts, strict=True)
        rows = [none if asked is None or asked is own else asked for asked, own in both]
        flat, offsets = flattened(rows)
        absent = np.array([row is none for row in rows], np.bool_)
        return list_column(flat, offsets, pa.int32(), absent=absent)
