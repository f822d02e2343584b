"""Engine: what the run's own correction does, and whether the run rests on it, in words."""

from __future__ import annotations

from typing import Any

from castctl.diagnosis.corrected import LEAST_EFFECTIVE, MOST_TOUCHED
from castctl.report.diagnostics.words import share, share_cell
from castctl.report.document import Sheet
from castctl.report.marks import number, percent

Numbers = dict[str, Any]

TOUCHED = {"truncate": ("caps", "capped"), "mask": ("masks", "masked")}
"""What a kind of correction does to what lies beyond its bounds."""

WELL = 0.95
"""Effective share of the tokens from which their own ratios are worth trying."""

RATIOS = {
    "token": "a token's ratio",
    "sequence": "the product of a completion's ratios",
    "geometric": "the geometric mean of a completion's ratios",
}


def carries(numbers: Numbers) -> str:
    """That the run rests on its correction, where it does or may."""
    found = numbers["corrected"]
    if found is None or found["carries"] == "no":
        return ""
    sure = "carries" if found["carries"] == "yes" else "may carry"
    return f"The correction {sure} this run. {does(numbers, 'It')} {_remedy(numbers)}"


def does(numbers: Numbers, subject: str = "The correction") -> str:
    """What the correction does, in a sentence."""
    made, found = numbers["correction"], numbers["corrected"]
    if found is None:
        return "Nothing corrects for it."
    return (
        f"{subject} {TOUCHED[made['kind']][0]} {percent(found['touched']['mean'])} of the "
        f"{_units(made)}; the effective sample is {percent(found['effective']['mean'])}."
    )


def touched_of(numbers: Numbers) -> str | None:
    """What the correction does to tokens beyond its bounds, `masked` or `capped`; None without
    one."""
    return None if numbers["corrected"] is None else TOUCHED[numbers["correction"]["kind"]][1]


def _remedy(numbers: Numbers) -> str:
    if numbers["altered"]:
        return f"It was sampled with {numbers['altered']}, and nothing trains on that."
    tokens = numbers["token_weights"]["effective"]
    if numbers["correction"]["level"] != "token" and tokens >= WELL:
        return "Token by token it would lose little: try method.correction.level=token."
    return "Find what makes the two differ before you widen its bounds."


def correction_sheet(numbers: Numbers) -> list[Sheet]:
    """What the run's own correction makes of the ratios; nothing where it has none."""
    made, found, done = numbers["correction"], numbers["corrected"], touched_of(numbers)
    if done is None:
        return []
    units = _units(made)
    rows = [[f"tokens {done}, %", share_cell(found[done])]]
    if made["level"] != "token":
        rows.append([f"completions {done}, %", share_cell(found["touched"])])
    rows.append([f"effective sample, % of {found['units']:,} {units}",
                 share_cell(found["effective"])])  # fmt: skip
    note = (
        f"{_named(made)}. Over all tokens of these steps. Effective sample: (sum w)^2 / (n sum "
        f"w^2) of the weights w. {RULE[made['level']]}"
    )
    headings = ("", "value")
    return [Sheet("What the run's correction does", headings, rows, note, first=headings)]


def correction_words(numbers: Numbers) -> str:
    """The correction in a paragraph."""
    made, found = numbers["correction"], numbers["corrected"]
    tokens, completions = (numbers[f"{of}_weights"] for of in ("token", "completion"))
    words = (
        f"Ratios of tokens run from {number(tokens['min'])} to "
        f"{number(tokens['max']) or 'beyond any number'}. Uncorrected they leave "
        f"{percent(tokens['effective'])} of the tokens as effective sample, and "
        f"{percent(completions['effective'])} of the completions where a completion's are "
        "multiplied. "
    )
    if found is None:
        return words + (
            "Nothing corrects for it: method.correction.kind is none, or there is no policy loss."
        )
    return words + (
        f"The run's correction ({_named(made)}) {TOUCHED[made['kind']][0]} "
        f"{share(found['touched'])} of the "
        f"{_units(made)} and leaves {share(found['effective'])} of them as effective sample. "
        f"{RULE[made['level']]} Here it {CARRIES[found['carries']]}."
    )


CARRIES = {"yes": "does", "maybe": "may", "no": "does not"}

RULE = {
    level: f"A run rests on its correction where more than {percent(most)} of the "
    f"{'tokens' if level == 'token' else 'completions'} are masked or capped, or less than "
    f"{percent(LEAST_EFFECTIVE)} of them effective, with the whole interval; where the estimate "
    "alone is, it may."
    for level, most in MOST_TOUCHED.items()
}


def _units(made: dict[str, Any]) -> str:
    return "tokens" if made["level"] == "token" else "completions"


def _named(made: dict[str, Any]) -> str:
    """A correction in words, with the bounds that are in force."""
    low, high = made["low"], made["high"]
    beyond = f"above {high:g}" if not low else f"below {low:g} or above {high:g}"
    weight = f"{high:g}" if made["kind"] == "truncate" else "0"
    return f"{made['kind']}: {RATIOS[made['level']]} {beyond} counts as {weight}"
