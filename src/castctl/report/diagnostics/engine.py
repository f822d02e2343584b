"""Engine: how far the sampler's log-probs are from the scorer's, and what that does to weights."""

from __future__ import annotations

from typing import Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.diagnostics.engine_correction import (
    carries,
    correction_sheet,
    correction_words,
    does,
    touched_of,
)
from castctl.report.diagnostics.engine_figure import bins_of, engine_picture
from castctl.report.diagnostics.words import (
    answer,
    around,
    cell,
    few,
    place,
    share,
    share_cell,
    value,
)
from castctl.report.document import Picture, Section, Sheet
from castctl.report.marks import counted, number, percent

ROUNDING = 1e-3
"""Nats: a mean difference below is what float32 and the order of sums leave."""

NOTABLE = 1e-2
"""Nats: a mean difference from which engines are known to differ in more than rounding, as two
implementations in half precision do."""

TOLD = 10
TITLE = "Sampler against scorer"


def section(diagnosis: Diagnosis) -> Section:
    """Differences, divergences, importance weights, where they are, and the worst tokens."""
    numbers = diagnosis.numbers
    if not numbers["tokens"]:
        words = "No token has log-probs of both the sampler and the scorer."
        return Section(diagnosis.name, TITLE, answer=(words, "So nothing can be compared."))
    blocks: list[str | Sheet | Picture] = [
        _differences(numbers),
        _weights(numbers),
        *correction_sheet(numbers),
        *_words(numbers),
        engine_picture(numbers),
        _by_logprob(numbers),
        _worst(numbers),
    ]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"], touched_of(numbers)))
    return Section(diagnosis.name, TITLE, blocks, answer=_answer(numbers))


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    return answer(
        f"Sampler and scorer differ by {cell(numbers['size'])} nats a token, by "
        f"{number(numbers['largest'])} at most; KL(sampler || scorer) is "
        f"{_size_of(numbers['k3'])} a token.",
        carries(numbers) or f"That is {_verdict(numbers)}. {does(numbers)}",
        numbers["prompts"],
    )


def _size_of(told: dict[str, Any]) -> str:
    """An estimate in nats, which may have overflowed."""
    known = number(told["mean"])
    return f"{known} nats" if known else "beyond any number"


def _differences(numbers: dict[str, Any]) -> Sheet:
    rows = [
        ["mean", cell(numbers["mean"])],
        ["mean size", cell(numbers["size"])],
        ["  standard deviation", number(numbers["std"])],
        ["largest size", number(numbers["largest"])],
        *(
            [f"  {100 * float(level):g} % of tokens below", number(bound)]
            for level, bound in numbers["quantiles"].items()
        ),
        *(
            [f"{'' if tail == '0.1' else '  '}tokens beyond {tail} nats, %", share_cell(told)]
            for tail, told in numbers["beyond"].items()
        ),
        ["  KL(sampler || scorer) a token, k1", cell(numbers["k1"])],
        ["KL(sampler || scorer) a token, k3", cell(numbers["k3"])],
    ]
    note = (
        f"l_old - l_sampler in nats, the scorer's log-prob of the sampled token minus the "
        f"sampler's; {numbers['tokens']:,} tokens of {numbers['prompts']:,} prompts, "
        f"{numbers['left_out']:,} more without a finite log-prob on both sides. k1 is the mean of "
        "-diff, k3 that of exp(diff) - 1 - diff. Brackets: 95 % intervals over prompts."
    )
    headings = ("", "value")
    return Sheet("Differences of log-probs", headings, rows, note, first=headings)


def _weights(numbers: dict[str, Any]) -> Sheet:
    rows = []
    for of in ("token", "completion"):
        told = numbers[f"{of}_weights"]
        quantiles = [number(told["quantiles"].get(level)) for level in ("0.01", "0.99")]
        rows.append(
            [of, cell(told["mean"], 6), number(told["min"]), *quantiles, number(told["max"]),
             percent(told["effective"])]
        )  # fmt: skip
    headings = ("ratio of a", "mean", "min", "1 %", "99 %", "max", "effective")
    note = (
        "exp(l_old - l_sampler) of a token, and its product over a completion, before any "
        "correction. The mean is 1 where the sampler's log-probs are those it sampled from. "
        "Effective: (sum r)^2 / (n sum r^2), how many of equal weight would count as much, over "
        "their number. An empty max is beyond any number."
    )
    first = ("ratio of a", "min", "max", "effective")
    return Sheet("Ratios of scorer to sampler", headings, rows, note, first=first)


def _by_logprob(numbers: dict[str, Any]) -> Sheet:
    names, told = bins_of(numbers["logprobs"]), numbers["by_logprob"]
    done = touched_of(numbers)
    rows = [
        [names[n], percent(part, ""), cell(told["mean"][n]), cell(told["size"][n])]
        + ([share_cell(told[done][n])] if done else [])
        for n, part in enumerate(told["share"])
        if part
    ]
    headings = ["sampler's log-prob, nats", "tokens, %", "mean difference", "mean size"]
    return Sheet("By the sampler's log-prob", headings + ([f"{done}, %"] if done else []), rows)


def _worst(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [number(each["scorer"] - each["sampler"]), number(each["sampler"]), number(each["scorer"]),
         place(each), around(each)]
        for each in numbers["worst"][:TOLD]
    ]  # fmt: skip
    headings = ("difference", "sampler", "scorer", "where",
                "the token in «» and what stands about it")  # fmt: skip
    return Sheet("The tokens that differ most, one a prompt, in nats", headings, rows, right=False)


def _steps(steps: list[dict[str, Any]], done: str | None) -> Sheet:
    """`done` is what the run's correction does to tokens beyond its bounds."""
    rows = [
        [str(counted(step["step"])), cell(step["mean"]), cell(step["size"]),
         number(step["largest"]), cell(step["k3"])]
        + ([share_cell(step["corrected"][done]), percent(step["corrected"]["effective"]["mean"])]
           if done and step["corrected"] else [""] * (2 if done else 0))
        for step in steps
    ]  # fmt: skip
    headings = ["step", "mean", "mean size", "largest", "KL (k3)"]
    headings += [f"{done}, %", "effective"] if done else []
    return Sheet("Step by step: differences in nats", headings, rows)


def _words(numbers: dict[str, Any]) -> list[str]:
    words = [_size(numbers), _bias(numbers), correction_words(numbers)]
    if numbers["altered"]:
        words.append(
            f"The sampling distribution was not the policy's ({numbers['altered']}): its log-probs "
            "are those of what truncation and penalties made of it, and the scorer's are not."
        )
    words.append(
        "What this does not show: which of the two is right, or where they differ. Only sampled "
        "tokens are seen: what the sampler would never draw, such as tokens cut off by a top-k "
        "that nobody meant, shows in the mean weight and not in a single token, and a mean weight "
        "of 1 does not rule it out. Log-probs taken by the scorer with newer weights than the "
        "sampler's differ for that reason and not for the engine's."
    )
    return [each for each in words if each] + few(numbers["prompts"])


def _size(numbers: dict[str, Any]) -> str:
    size, beyond = numbers["size"], numbers["beyond"]["0.1"]
    return (
        f"Sampler and scorer differ by {value(size, ' nats')} a token in the mean of the size, by "
        f"{number(numbers['largest'])} at most, and by more than 0.1 at {share(beyond)} of the "
        f"tokens: {_verdict(numbers)}."
    )


def _verdict(numbers: dict[str, Any]) -> str:
    size, largest = numbers["size"]["mean"], numbers["largest"]
    if size < ROUNDING and largest < NOTABLE:
        return "as much as rounding leaves: the engines compute the same distribution"
    if size < NOTABLE and largest < 1:
        return "more than rounding in float32, within what half precision leaves"
    return (
        "more than precision usually explains: look for another temperature, truncation (top-k, "
        "top-p), penalties, weights or template"
    )


def _bias(numbers: dict[str, Any]) -> str:
    mean = numbers["mean"]
    if numbers["size"]["mean"] < ROUNDING:
        return ""
    if mean["low"] is None or mean["low"] <= 0 <= mean["high"]:
        return f"On average neither is higher: the mean difference is {value(mean, ' nats')}."
    higher = "scorer" if mean["mean"] > 0 else "sampler"
    words = f"On average the {higher} is higher, by {value(mean, ' nats')} (scorer minus sampler)."
    if higher == "sampler":
        words += (
            " Some of that is expected: the sampler drew the tokens that it favours, so that "
            "minus the mean is an estimate of KL(sampler || scorer)."
        )
    return words
