"""A Jinja template of the user's: the words around a problem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from castctl.data.jinja_text import names_used, render_texts
from castctl.data.rendering import Refused, render, run
from castctl.errors import UserError, one_line


class TextTemplate:
    """A Jinja template of the user's, over named values that stay inert text.

    `used` are the values it uses. Raises UserError, naming the setting, for a template that does
    not parse, that uses other values than `values`, or that leaves the problem out.
    """

    def __init__(self, text: str, setting: str, values: Iterable[str]) -> None:
        self.setting = setting
        self._text = text
        try:
            used = run(names_used, text)
        except Refused as error:
            raise self._broken(error) from None
        values = set(values)
        if unknown := used - values:
            raise UserError(
                f"{setting} uses {', '.join(sorted(unknown))}; "
                f"it can only use {', '.join(sorted(values))}"
            )
        self.used = used
        if not used & {"problem", "prompt"}:
            raise UserError(f"{setting} leaves the problem out; write {{{{ problem }}}} into it")

    def render(self, values: Sequence[dict[str, str]]) -> list[str]:
        """The text over each set of values."""
        try:
            return render(render_texts, self._text, values)
        except Refused as error:  # Whatever a template runs into is the template's mistake.
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> UserError:
        return UserError(
            f"{self.setting} is not a working Jinja template ({one_line(error)}); mend it"
        )
