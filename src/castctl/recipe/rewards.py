"""What a completion is rewarded for: correctness, and what may be weighed beside it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from castctl.settings import Amount, Count, Section

Share = Annotated[float, Field(ge=0, le=1)]

Script = Literal[
    "arabic", "armenian", "bengali", "cjk", "cyrillic", "devanagari", "ethiopic", "georgian",
    "greek", "gujarati", "hangul", "hebrew", "hiragana", "katakana", "khmer", "latin", "tamil",
    "telugu", "thai",
]  # fmt: skip
"""With what the Unicode names of a script's letters begin."""


def _name(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,39}", text):
        raise ValueError("write small letters, digits and underscores, a letter first")
    return text


class _Reward(Section):
    kind: str
    weight: float = Field(1.0, ge=-1e6, le=1e6)
    """What it is multiplied by before it is added; 0 only records it."""


class CorrectReward(_Reward):
    """What the verifier says of the answer."""

    kind: Literal["correct"] = "correct"
    """`correct`: what the verifier says of the answer."""

    @property
    def name(self) -> str:
        """Of its column, after `reward_`."""
        return self.kind


class BoxedReward(_Reward):
    """1 where the completion has a final answer in a box, else 0."""

    kind: Literal["boxed"] = "boxed"
    """`boxed`: 1 where a box holds the final answer, else 0."""
    within_last: float | None = Field(None, gt=0, le=1)
    """The box must begin within this last share of the tokens; null is anywhere (ours)."""

    @property
    def name(self) -> str:
        """Of its column, after `reward_`."""
        return self.kind


class LengthReward(_Reward):
    """1 up to a length, 0 beyond, as GDPO's (arXiv 2601.05242)."""

    kind: Literal["length"] = "length"
    """`length`: 1 up to `target` tokens, 0 beyond (paper: GDPO's)."""
    target: Count
    """Longest completion, in tokens, that is rewarded in full."""
    fall: Amount = 0
    """Tokens after `target` over which it falls linearly to 0; 0 is at once (paper: GDPO's)."""
    only_correct: bool = False
    """0 for what is not correct: GDPO's conditioned reward (ours)."""

    @property
    def name(self) -> str:
        """Of its column, after `reward_`."""
        return self.kind


class LanguageReward(_Reward):
    """The share of a completion's letters that are of the language's scripts, after DeepSeek-R1's
    language consistency (arXiv 2501.12948), which counts words."""

    kind: Literal["language"] = "language"
    """`language`: the share of letters that are of `scripts`."""
    scripts: tuple[Script, ...] = ("latin",)
    """Scripts of the language: Japanese has `[cjk, hiragana, katakana]` (ours). Greek letters count
    for no script but their own: formulas have them."""

    @field_validator("scripts")
    @classmethod
    def _some_script(cls, scripts: tuple[Script, ...]) -> tuple[Script, ...]:
        if not scripts:
            raise ValueError("name a script at least, such as [latin]")
        return scripts

    @property
    def name(self) -> str:
        """Of its column, after `reward_`."""
        return self.kind


class CustomReward(_Reward):
    """A number of the user's own function."""

    kind: Literal["custom"] = "custom"
    """`custom`: what your own function gives."""
    function: str
    """As `verifier.function`; in a file, only beside --trust-verifier."""
    name: Annotated[str, AfterValidator(_name)]
    """Of its column, after `reward_`."""


Reward = Annotated[
    CorrectReward | BoxedReward | LengthReward | LanguageReward | CustomReward,
    Field(discriminator="kind"),
]
