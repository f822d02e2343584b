"""Engine: how far the sampler's log-probs are from the scorer's, and what that does to weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.colors import BLACK, BLUE, ORANGE
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
    from_zero,
    logarithmic,
    name,
    panels,
    points,
    steps_of,
)
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        *_words(numbers),
        _picture(numbers),
        _by_logprob(numbers),
        _worst(numbers),
    ]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    return Section(diagnosis.name, TITLE, blocks, answer=_answer(numbers))


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    return answer(
        f"Sampler and scorer differ by {cell(numbers['size'])} nats a token, by "
        f"{number(numbers['largest'])} at most.",
        f"That is {_verdict(numbers)}.",
        numbers["prompts"],
    )


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
        effective = told.get("effective")
        rows.append(
            [of, cell(told["mean"], 6), number(told["min"]), *quantiles, number(told["max"]),
             share_cell(told["above"]), share_cell(told["below"]),
             percent(effective)]
        )  # fmt: skip
    cap = numbers["cap"]
    headings = ("weight of a", "mean", "min", "1 %", "99 %", "max", f"above {cap:g}, %",
                f"below {1 / cap:g}, %", "effective")  # fmt: skip
    note = (
        "exp(l_old - l_sampler) of a token, and its product over a completion. The mean is 1 where "
        "the sampler's log-probs are those it sampled from. Effective: completions of equal weight "
        "that would count as much, over their number. An empty max is beyond any number."
    )
    first = ("weight of a", "min", "max", *headings[6:])
    return Sheet("Importance weights that correct for it", headings, rows, note, first=first)


def _by_logprob(numbers: dict[str, Any]) -> Sheet:
    names = _bins(numbers["logprobs"])
    told = numbers["by_logprob"]
    rows = [
        [label, percent(part, ""), cell(mean), cell(size)]
        for label, part, mean, size in zip(
            names, told["share"], told["mean"], told["size"], strict=False
        )
        if part
    ]
    headings = ("sampler's log-prob, nats", "tokens, %", "mean difference", "mean size")
    return Sheet("By the sampler's log-prob", headings, rows)


def _bins(edges: list[float]) -> list[str]:
    inner = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
    return [f"below {edges[0]:g}", *inner, f"{edges[-1]:g} and above"]


def _worst(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [number(each["scorer"] - each["sampler"]), number(each["sampler"]), number(each["scorer"]),
         place(each), around(each)]
        for each in numbers["worst"][:TOLD]
    ]  # fmt: skip
    headings = ("difference", "sampler", "scorer", "where",
                "the token in «» and what stands about it")  # fmt: skip
    return Sheet("The tokens that differ most, one a prompt, in nats", headings, rows, right=False)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), cell(step["mean"]), cell(step["size"]),
         number(step["largest"]), cell(step["k3"]), share_cell(step["above"]),
         share_cell(step["below"]), percent(step["effective"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "mean", "mean size", "largest", "KL (k3)", "above the cap, %",
                "below 1 / cap, %", "effective")  # fmt: skip
    return Sheet("Step by step: differences in nats", headings, rows)


def _words(numbers: dict[str, Any]) -> list[str]:
    words = [_size(numbers), _bias(numbers), _correction(numbers)]
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
        "more than precision usually explains: look for another temperature, another truncation "
        "of the distribution (top-k, top-p), stale weights, or another template"
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


def _correction(numbers: dict[str, Any]) -> str:
    tokens, completions = numbers["token_weights"], numbers["completion_weights"]
    return (
        f"To correct for it token by token, weights run from {number(tokens['min'])} to "
        f"{number(tokens['max']) or 'beyond any number'}; a cap of {numbers['cap']:g} cuts "
        f"{share(tokens['above'])} of them. To correct for whole completions leaves "
        f"{percent(completions['effective'])} of them as effective sample."
    )


def _picture(numbers: dict[str, Any]) -> Picture:
    return Picture(
        "engine-differences",
        "Where and how much sampler and scorer differ",
        "Four plots of the size of the difference of log-probs: by step, along the completion, by "
        "the sampler's log-prob, and the share of tokens beyond growing sizes.",
        lambda: _draw(numbers),
    )


def _draw(numbers: dict[str, Any]) -> Figure:
    figure, (steps, position, logprob, tail) = panels(2, 2)
    by_step = numbers["by_step"]
    draw = curve if len(by_step) > 1 else points
    draw(steps, steps_of(by_step), [s["size"] for s in by_step], "", BLUE)
    name(steps, "Mean size of the difference by step", "step", "mean |difference|, nats")
    along_steps(steps, by_step)
    tenths = [5 + 10 * n for n in range(10)]
    curve(position, tenths, numbers["by_position"]["size"], "", BLUE)
    name(position, "Along the completion", "way through the completion, %",
         "mean |difference|, nats")  # fmt: skip
    sizes = numbers["by_logprob"]["size"]
    names = _bins(numbers["logprobs"])[: len(sizes)]
    points(logprob, list(range(len(sizes))), sizes, "", ORANGE, marker="s")
    logprob.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    name(logprob, "By the sampler's log-prob", "sampler's log-prob, nats",
         "mean |difference|, nats")  # fmt: skip
    if any(told and told["mean"] for told in sizes):
        logarithmic(logprob.yaxis)
    found = numbers["tail"]
    shares = [100 * share if share else None for share in found["shares"]]
    tail.plot(found["sizes"], np.array(shares, np.float64), color=BLACK, marker="o", markersize=3)
    tail.axvline(math.log(numbers["cap"]), color=BLACK, linewidth=0.8, linestyle=":")
    if any(found["shares"]):
        for axis in (tail.xaxis, tail.yaxis):
            logarithmic(axis)
    name(tail, f"Tail (dotted: a weight of {numbers['cap']:g})", "|difference|, nats",
         "tokens that differ by more, %")  # fmt: skip
    for axes in (steps, position):
        from_zero(axes)
    return figure
