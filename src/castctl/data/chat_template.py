"""The text of a tokenizer's chat template, with the day that it takes for today."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, cast

from castctl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEND = "mend the template (chat_template.jinja in the model's folder), or {}"
PLAIN = MEND.format("set data.chat=false")

_TODAY = re.compile(r"""strftime_now\s*\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template; UserError where it has none."""
    try:
        return cast(str, tokenizer.get_chat_template())
    except ValueError:
        raise UserError("the tokenizer has no chat template; set data.chat=false") from None


def dated(template: str, day: datetime.date) -> str:
    """A chat template that takes `day` for today's date; UserError where it asks for the date in
    another way than by `strftime_now` with a format in quotes."""
    fixed = _TODAY.sub(lambda asked: asked[1] + day.strftime(asked[2]) + asked[1], template)
    if "strftime_now(" in fixed.replace(" ", ""):
        raise UserError(
            "the tokenizer's chat template asks for today's date with a format that is not in "
            f"quotes, so that it cannot be data.date; {PLAIN}"
        )
    return fixed
