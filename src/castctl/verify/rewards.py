"""What completions are rewarded for beside correctness, and the sum of it all."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from castctl.errors import UserError
from castctl.recipe.rewards import (
    BoxedReward,
    CorrectReward,
    LanguageReward,
    LengthReward,
    Reward,
)
from castctl.verify.custom import LARGEST
from castctl.verify.judge import Judgement, Row, box_begins, own_rewards
from castctl.verify.pool import CheckPool
from castctl.verify.worker import Outcome

if TYPE_CHECKING:
    from castctl.recipe.verifier import VerifierSettings


@dataclass(frozen=True)
class Rewarded:
    """A judgement whose reward is the weighted sum, and the `parts` of it by name; none of a
    completion whose verdict is `error`."""

    judgement: Judgement
    parts: dict[str, float]


def reward(
    pool: CheckPool, settings: VerifierSettings, rows: Sequence[Row], judged: Sequence[Judgement]
) -> list[Rewarded]:
    """What each row is worth by `settings.rewards`, beside its verdict.

    A row on which one of the user's functions fails or takes too long has the verdict `error`: its
    sum is not known.

    Raises:
        UserError: a function cannot be used or is not trusted, the workers cannot start, or tokens
            are counted that nobody knows.
    """
    own = own_rewards(settings)
    known = [index for index, each in enumerate(judged) if each.verdict != "error"]
    told: dict[int, dict[str, float | str]] = {index: {} for index in known}
    for kind in settings.rewards:
        values: Iterable[float | str]
        if kind.name in own:
            arguments = [(rows[i].problem, rows[i].completion, rows[i].answer) for i in known]
            outcomes = pool.run([(own[kind.name], each) for each in arguments])
            values = (each.value if each.kind == "value" else _why(each) for each in outcomes)
        else:
            values = (_value(kind, rows[index], judged[index]) for index in known)
        for index, value in zip(known, values, strict=True):
            told[index][kind.name] = value
    return [
        _added_up(settings, each, told[index]) if index in told else Rewarded(each, {})
        for index, each in enumerate(judged)
    ]


def _added_up(
    settings: VerifierSettings, judgement: Judgement, values: Mapping[str, float | str]
) -> Rewarded:
    """`values` are numbers, or why there is none."""
    parts = {name: value for name, value in values.items() if not isinstance(value, str)}
    if lacking := [name for name in values if name not in parts]:
        message = f"reward {lacking[0]}: {values[lacking[0]]}"
        return Rewarded(replace(judgement, reward=None, verdict="error", message=message), {})
    total = math.fsum(each.weight * parts[each.name] for each in settings.rewards)
    if abs(total) > LARGEST:
        message = f"the rewards add up to {total:g}, which is no reward"
        return Rewarded(replace(judgement, reward=None, verdict="error", message=message), {})
    return Rewarded(replace(judgement, reward=total), parts)


def _why(outcome: Outcome) -> str:
    return outcome.message or outcome.kind


def _value(kind: Reward, row: Row, judgement: Judgement) -> float:
    match kind:
        case CorrectReward():
            assert judgement.reward is not None, "only an error has none"
            return judgement.reward
        case BoxedReward():
            return _boxed(row, judgement.start)
        case LengthReward():
            return _length(kind, row, judgement)
        case LanguageReward():
            return of_scripts(row.completion, frozenset(kind.scripts))
    raise AssertionError(f"nobody computes {kind}")


def _boxed(row: Row, start: int | None) -> float:
    if start is None:
        return 0.0
    return float(row.boxed_from is None or box_begins(row, start) >= row.boxed_from)


def _length(kind: LengthReward, row: Row, judgement: Judgement) -> float:
    if row.tokens is None:
        raise UserError(
            "{kind: length} of verifier.rewards counts tokens, and nobody counted those of these "
            "completions; leave it out"
        )
    if kind.only_correct and judgement.verdict != "correct":
        return 0.0
    over = max(row.tokens - kind.target, 0)
    return max(1.0 - over / kind.fall, 0.0) if kind.fall else float(over == 0)


def of_scripts(text: str, scripts: frozenset[str]) -> float:
    """The share of the letters of `text` that are of these scripts; 1 where it has none.

    A letter's script is what its Unicode name begins with, after compatibility forms are taken for
    what they stand for (NFKC). Greek counts only where it is asked for.
    """
    if text.isascii():
        return 1.0 if "latin" in scripts else _share(Counter(text), scripts)
    return _share(Counter(unicodedata.normalize("NFKC", text)), scripts)


def _share(counts: Counter[str], scripts: frozenset[str]) -> float:
    within = total = 0
    for letter, count in counts.items():
        script = _script(letter)
        if script is None or (script == "greek" and "greek" not in scripts):
            continue
        total += count
        within += count if script in scripts else 0
    return within / total if total else 1.0


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str | None:
    """The script of a letter; None for what is no letter."""
    name = unicodedata.name(letter, "") if letter.isalpha() else ""
    return name.split()[0].lower() if name else None
