"""What transformers is about to drop is an error in tests, in whichever way it says so."""

from __future__ import annotations

import logging


class _Refusal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            raise AssertionError(
                f"transformers deprecates what castctl uses: {record.getMessage()}"
            )


def refuse_deprecated() -> None:
    """Raise where transformers logs a deprecation; pytest's filters see to its warnings."""
    logging.getLogger("transformers").addHandler(_Refusal(logging.WARNING))
