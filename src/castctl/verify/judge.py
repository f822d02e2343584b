"""From completions to verdicts and rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from castctl.errors import UserError
from castctl.recipe.trust import REWARDS, require_trust
from castctl.verify.boxed import Boxed, last_boxed
from castctl.verify.custom import CustomVerifier
from castctl.verify.grader import RULES, grade
from castctl.verify.plain import same_plainly
from castctl.verify.pool import CheckPool
from castctl.verify.visible import visible
from castctl.verify.worker import Call, Outcome

if TYPE_CHECKING:
    from castctl.recipe.verifier import VerifierSettings

MOST_CHARACTERS = 10**7
"""Longest completion that is judged, several times the longest context of a model."""

Verdict = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "error"]


class Row(NamedTuple):
    """What is judged."""

    problem: str
    completion: str
    answer: str | None
    finish_reason: str
    """`stop`, `length` or `error`."""
    thinking: bool = False
    """Whether the prompt ends inside thoughts (`opens_thoughts`), which the completion goes on."""
    last_from: int | None = None
    """Where the last share of its tokens begins in the completion, in characters, of
    `box_within_last`; None where nobody counted tokens."""
    boxed_from: int | None = None
    """The same of the reward `boxed`; None where it has no such share."""
    tokens: int | None = None
    """How long the completion is; None where nobody counted tokens."""


@dataclass(frozen=True)
class Judgement:
    """What a completion is worth; a failed check is a verdict, never a silent zero."""

    reward: float | None
    """None if and only if the verdict is `error`."""
    verdict: Verdict
    extracted: str | None = None
    """The final answer as it stands in the completion."""
    start: int | None = None
    """Where `extracted` starts in the completion, in characters."""
    end: int | None = None
    seconds: float = 0.0
    """Time of the check itself."""
    message: str | None = None
    """Why the verdict is `timeout` or `error`."""


def grader_name(settings: VerifierSettings) -> str:
    """What decides, for the record: the user's function and its file's hash, or math-verify and
    the rules around it; from which reward on where that is not 1."""
    custom = _custom(settings)
    name = f"math-verify {version('math-verify')}, rules {RULES}"
    if settings.box_within_last is not None:
        name += f", a box within the last {settings.box_within_last:g} of the tokens"
    if custom is not None:
        name = custom.version
    least = settings.correct_from
    return name if least == 1 else f"{name}, correct from {least:g}"


def made_by(settings: VerifierSettings) -> dict[str, Any]:
    """What decides rewards, for the record of a part: the verifier, and the grader that it is; of
    several rewards each, and the version of a function of the user's."""
    verifier = settings.model_dump(mode="json", exclude={"workers", "max_error_share", "rewards"})
    if settings.adds_up:
        own = own_rewards(settings)
        verifier["rewards"] = [
            each.model_dump(mode="json")
            | ({"version": own[each.name].version} if each.name in own else {})
            for each in settings.rewards
        ]
    return {"verifier": verifier, "grader": grader_name(settings)}


def _custom(settings: VerifierSettings) -> CustomVerifier | None:
    """The user's own verifier: here and below alone the user's code is let in."""
    require_trust(settings)
    return CustomVerifier(settings.function) if settings.function else None


def own_rewards(settings: VerifierSettings) -> dict[str, CustomVerifier]:
    """The user's functions among the rewards, by name."""
    require_trust(settings)
    return {name: CustomVerifier(spec, REWARDS) for name, spec in settings.functions.items()}


def judging_pool(settings: VerifierSettings) -> CheckPool:
    """A pool to judge with; `UserError` now, not after hours, where the verifier does not load or
    is not trusted."""
    _custom(settings)
    own_rewards(settings)
    return CheckPool(settings)


@cache
def shared_pool(settings: VerifierSettings) -> CheckPool:
    """A pool that all of this process shares, until it ends."""
    return judging_pool(settings)


def judge(
    pool: CheckPool,
    settings: VerifierSettings,
    rows: Sequence[Row],
    on_done: Callable[[], object] | None = None,
) -> list[Judgement]:
    """The judgement of each row, in order; `on_done()` follows each row.

    A row is checked by `settings.function` where there is one, whatever its completion
    holds, and otherwise by math-verify: the content of the last box against the answer. Whole
    numbers, and the answer word for word, need no worker and no math-verify.
    A box in thoughts, which the prompt may have opened, in a comment or in a quotation of the
    problem does not count (`visible`). One that begins before the `box_within_last` share of the
    tokens is `wrong`, whatever it holds.

    Raises:
        UserError: `settings.function` cannot be used or is not trusted, the workers cannot
            start, or `box_within_last` is set for completions without tokens.
    """
    custom = _custom(settings)
    boxes = [_final_answer(row) for row in rows]
    judgements: dict[int, Judgement] = {}
    calls: dict[int, Call] = {}
    for index, (row, box) in enumerate(zip(rows, boxes, strict=True)):
        if row.finish_reason == "error":
            judgements[index] = Judgement(None, "error", message="the completion failed")
        elif len(row.completion) > MOST_CHARACTERS:
            why = f"the completion has more than {MOST_CHARACTERS:,} characters"
            judgements[index] = Judgement(None, "error", message=why)
        elif custom:
            calls[index] = custom, (row.problem, row.completion, row.answer)
        elif row.answer is None:
            judgements[index] = Judgement(None, "error", message="the row has no answer")
        elif box is None:
            unfinished = row.finish_reason == "length"
            judgements[index] = Judgement(0.0, "truncated" if unfinished else "no_answer")
        elif settings.box_within_last is not None and _is_early(row, box):
            judgements[index] = Judgement(0.0, "wrong", *box)
        elif (same := same_plainly(row.answer, box.content)) is not None:
            judgements[index] = _judgement(Outcome("value", 0.0, same), box, settings)
        else:
            calls[index] = grade, (row.answer, box.content)
    if on_done:
        for _ in judgements:
            on_done()
    outcomes = pool.run(list(calls.values()), on_done)
    for index, outcome in zip(calls, outcomes, strict=True):
        judgements[index] = _judgement(outcome, boxes[index], settings)
    return [judgements[index] for index in range(len(rows))]


def equivalent(pool: CheckPool, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each pair of extracted answers is one answer; a failed check says no."""
    return [outcome.value is True for outcome in pool.run([(grade, pair) for pair in pairs])]


def check_error_share(
    judgements: Sequence[Judgement], settings: VerifierSettings, total: int | None = None
) -> None:
    """Raise `UserError` where more than `settings.max_error_share` of the verdicts are `error`: of
    `total` in the end, so that what comes first decides no sooner than the rest."""
    total = len(judgements) if total is None else total
    messages = [judgement.message for judgement in judgements if judgement.verdict == "error"]
    if len(messages) > settings.max_error_share * total:
        [(message, _)] = Counter(messages).most_common(1)
        raise UserError(
            f"verifier: {len(messages)} of {total} verdicts ({len(messages) / total:.1%}) are "
            f"`error`, more than verifier.max_error_share={settings.max_error_share:g}; most "
            f"often: {message}"
        )


def _final_answer(row: Row) -> Boxed | None:
    if len(row.completion) > MOST_CHARACTERS:
        return None
    box = last_boxed(visible(row.completion, row.problem, row.thinking))
    return box if box and box.content.strip() else None


def _is_early(row: Row, box: Boxed) -> bool:
    """Whether a box begins before the last share of the tokens."""
    if row.last_from is None:
        raise UserError(
            "verifier.box_within_last counts tokens, and these completions are text alone; leave "
            "it out (--set verifier.box_within_last=null)"
        )
    return box_begins(row, box.start) < row.last_from


def box_begins(row: Row, start: int) -> int:
    """Where the box begins whose content starts at `start`, in characters."""
    return max(row.completion.rfind(name, 0, start) for name in ("\\boxed", "\\fbox"))


def reward_verdict(reward: float, settings: VerifierSettings) -> Verdict:
    """Whether a reward is a right answer's: a part of the credit is none."""
    return "correct" if reward >= settings.correct_from else "wrong"


def _judgement(outcome: Outcome, box: Boxed | None, settings: VerifierSettings) -> Judgement:
    reward: float | None
    verdict: Verdict
    if outcome.kind == "value":
        reward = float(outcome.value)
        verdict = reward_verdict(reward, settings)
    elif outcome.kind == "timeout":
        reward, verdict = 0.0, "timeout"
    else:
        reward, verdict = None, "error"
    extracted, start, end = box or (None, None, None)
    return Judgement(reward, verdict, extracted, start, end, outcome.seconds, outcome.message)
