"""Reference answers that no completion can meet, found before any is sampled."""

from __future__ import annotations

import re
from collections.abc import Sequence

from castctl.progress import Progress
from castctl.recipe.verifier import VerifierSettings
from castctl.verify.boxed import is_sentence, last_boxed
from castctl.verify.grader import self_verifies
from castctl.verify.pool import CheckPool

_PLAIN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?|[A-J]")  # needs no check; most golds
EXAMPLES = 3


def gold_notes(
    answers: Sequence[str | None], settings: VerifierSettings, progress: Progress
) -> list[str]:
    """A line that counts and names the answers that cannot be read as one, or that do not even
    verify against themselves; nothing where all do, or where the user's own verifier decides.
    """
    if settings.function:
        return []
    unsure = list(dict.fromkeys(a for a in answers if a is not None and not _PLAIN.fullmatch(a)))
    doubtful = {a for a in unsure if is_sentence(a) or not _fits_a_box(a)}
    calls = [(self_verifies, (answer,)) for answer in unsure]
    with CheckPool(settings) as pool, progress.task("golds", len(calls), "answers") as advance:
        outcomes = pool.run(calls, lambda: advance(1))
    doubtful |= {
        a for a, outcome in zip(unsure, outcomes, strict=True) if outcome.value is not True
    }
    if not doubtful:
        return []
    count = sum(answer in doubtful for answer in answers)
    named = [repr(a[:60]) for a in unsure if a in doubtful][:EXAMPLES]
    return [
        f"{count} of {len(answers)} answers cannot be read as an answer, or do not verify against "
        f"themselves, so hardly any completion will be right: {', '.join(named)}; look at "
        "data.answer_column"
    ]


def _fits_a_box(answer: str) -> bool:
    """Whether a box can hold it: braces that do not balance end a box elsewhere, or nowhere."""
    box = last_boxed(f"\\boxed{{{answer}}}")
    return last_boxed(answer) is not None or (box is not None and box.content == answer)
