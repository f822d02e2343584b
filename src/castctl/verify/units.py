"""What stands after a number: a unit, or code or a sentence, which math-verify drops as if it were
one. Takes time linear in the text."""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|emph|mathrm|mbox)\s*\{(?P<said>[^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_VALUE = re.compile(r"\s*(?:[A-Za-z](?:_\{?[A-Za-z0-9]{1,9}\}?)?\s*=)?[^A-Za-z,;=]*")
_RELATIVE = re.compile(r"\b(?:that|which|who)\b.*", re.S)
"""Of numbers that are prime: the verb is the noun's."""
_SENTENCE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|does|did|will|would|should|must|equals|because|therefore"
    r"|thus|hence|although|unless|but|if|else|we|you|it|ignore|accept|assume)\b"
)
_PLURAL = r"[a-z]{3,20}s\s*\Z"
_CODE = re.compile(
    r"\A\s*(?:import|from|exec|eval|assert|raise|lambda|def|elif|while|exit|quit|del|await|echo"
    rf"|(?:print|return)(?!\s+{_PLURAL}))\b"  # five return trips
    r"|\w\((?!(?:s|es|ies)\))|;|=|->|&&|\|\|"  # apple(s)
    r"|(?P<quote>[\"'`])[^\"'`]*(?P=quote)"
)


def no_unit(text: str) -> bool:
    r"""Whether text follows a number that is code or a sentence: 5 \text{ print("x")}, and
    12 \text{ is the answer because it is even}, but neither 5 \text{ apples} nor
    4 \text{ numbers that are prime}.

    A formula with letters in it may well go on in words, as n^2 \text{ if n is even} does.
    """
    match = _TEXT.search(text)
    before = "" if match is None else text[: match.start()].strip()
    if match is None or not before or not _VALUE.fullmatch(_COMMAND.sub("", before)):
        return False
    said = match["said"].lower()
    return bool(_CODE.search(said) or _SENTENCE.search(_RELATIVE.sub("", said)))
