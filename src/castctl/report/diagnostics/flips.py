"""Flips: how many tokens CAST turned, where they sit, and what they spell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.axes import whole_numbers
from castctl.report.colors import NEGATIVE, POSITIVE
from castctl.report.diagnostics.agreement import (
    FOLLOWS,
    agreement_sheet,
    agreement_words,
    gap_decides,
)
from castctl.report.diagnostics.figures import (
    along_steps,
    curve,
    from_zero,
    label,
    legend_below,
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
    slope,
    spelled,
)
from castctl.report.document import Picture, Section, Sheet
from castctl.report.marks import counted, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WAYS = {"down": ("down: base above 0", POSITIVE, "v"), "up": ("up: base below 0", NEGATIVE, "^")}
TOLD, CONTEXTS, BARS = 12, 6, 12


def section(diagnosis: Diagnosis) -> Section:
    """Shares of flipped tokens, their places, tokens and contexts, and what they cost."""
    numbers = diagnosis.numbers
    blocks: list[str | Sheet | Picture] = [_directions(numbers), *_words(numbers)]
    if _flipped(numbers):
        blocks += [*_pictures(numbers), _tokens(numbers), _contexts(numbers)]
    blocks += [agreement_sheet(numbers["agreement"]), _by_correct(numbers)]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    return Section(diagnosis.name, "Flipped tokens", blocks, answer=_answer(numbers))


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    if not _flipped(numbers):
        return answer("No token is flipped.", _why_none(numbers), numbers["prompts"])
    if gap_decides(numbers["agreement"]):
        return answer(FOLLOWS, "So the update follows the teacher's sign.", numbers["prompts"])
    shares, lost = ([share_cell(numbers[way][key], "%") or "none" for way in WAYS]
                    for key in ("share", "lost"))  # fmt: skip
    return answer(
        f"CAST flipped {shares[0]} of the tokens of praised completions and {shares[1]} of blamed "
        "ones.",
        f"That takes {lost[0]} of the push towards the praised and {lost[1]} of that away from the "
        "blamed.",
        numbers["prompts"],
    )


def _flipped(numbers: dict[str, Any]) -> int:
    return sum(numbers[way]["flipped"] for way in WAYS)


def _directions(numbers: dict[str, Any]) -> Sheet:
    rows = []
    for way, (title, _, _) in WAYS.items():
        told = numbers[way]
        rows.append(
            [title, f"{told['candidates']:,}", f"{told['flipped']:,}", share_cell(told["share"]),
             cell(told["before"]), cell(told["after"]), share_cell(told["lost"])]
        )  # fmt: skip
    headings = ("direction", "tokens", "flipped", "share, %", "|A'| before", "|A| after", "lost, %")
    note = (
        "Down: the verdict praises the completion and the teacher doubts the token; up: the other "
        "way. |A'|: shaped and clamped, not flipped; lost: (|A'| + |A|) of the flipped tokens over "
        "|A'| of all, what flipping takes from the verdict's direction. Brackets: 95 % intervals "
        "over prompts."
    )
    first = ("direction", "tokens", "flipped", "share, %", "lost, %")
    return Sheet("Flips in each direction", headings, rows, note, first=first)


def _by_correct(numbers: dict[str, Any]) -> Sheet:
    downs, ups = (numbers[way]["by_correct"] for way in WAYS)
    removed = numbers["clamp_removed"]
    rows = []
    for count in range(max(len(downs), len(ups))):
        down, up, clamped = (
            each[count] if count < len(each) else None for each in (downs, ups, removed)
        )
        if down or up:
            rows.append([str(count), share_cell(down), share_cell(up), percent(clamped)])
    note = (
        "Clamp: of the tokens with a weight other than 1, not flipped, the share whose advantage "
        "the clamp made what it would be unshaped; mean over steps."
    )
    headings = ("correct in the group", "flipped down, %", "flipped up, %", "undone by the clamp")
    return Sheet("By number of correct completions in the group", headings, rows, note)


def _tokens(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [way if first == 0 else "", spelled(token), f"{token['flipped']:,.0f}",
         percent(token["flipped"] / token["candidates"])]
        for way in WAYS
        for first, token in enumerate(numbers[f"tokens_{way}"][:TOLD])
    ]  # fmt: skip
    note = "The last column: of the token's occurrences under a base of that sign."
    return Sheet("What flipped tokens spell", ("", "token", "flips", "of its own"), rows, note)


def _contexts(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [way if first == 0 else "", number(each["gap"]), number(each["advantage"]), place(each),
         around(each)]
        for way in WAYS
        for first, each in enumerate(numbers[f"contexts_{way}"][:CONTEXTS])
    ]  # fmt: skip
    headings = ("", "gap, nats", "advantage", "where", "the token in «» and what stands about it")
    return Sheet("The flips with the largest gap, one a prompt", headings, rows, right=False)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), share_cell(step["down"]), share_cell(step["up"]),
         share_cell(step["completions"]), number(step["rms"]), number(step["smallest"]),
         percent(step["floored"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "down, %", "up, %", "completions, %", "RMS of the gap, nats",
                "smallest that flipped", "groups at the floor")  # fmt: skip
    return Sheet("Step by step", headings, rows)


def _words(numbers: dict[str, Any]) -> list[str]:
    words = [_threshold(numbers["settings"])]
    if not _flipped(numbers):
        return [*words, f"No token is flipped. {_why_none(numbers)}", *few(numbers["prompts"])]
    words += [
        f"Flipped down are {share(numbers['down']['share'])} of the tokens of completions that the "
        f"verdict praises, flipped up {share(numbers['up']['share'])} of those that it blames; "
        f"{share(numbers['completions'])} of the completions with an advantage have a flip.",
        *agreement_words(numbers["agreement"]),
        _mass(numbers),
        _seat(numbers),
        *_still(numbers["by_step"]),
        *slope(numbers["trend"]["down"], "the share flipped down"),
        *slope(numbers["trend"]["up"], "the share flipped up"),
        "What this does not show: whether the flipped tokens were mistakes. A past self disagrees "
        "most on the tokens that are being learned, and a flip there works against the learning; "
        "only runs with and without flips tell. Tokens of one completion flip together, which the "
        "intervals, over prompts, allow for; the lists of tokens and contexts are the largest ones "
        "and no random sample.",
    ]
    return words + few(numbers["prompts"])


def _still(steps: list[dict[str, Any]]) -> list[str]:
    """A word on steps whose gap is zero, which are in every share."""
    dead = [str(counted(step["step"])) for step in steps if step["rms"] == 0]
    if not dead:
        return []
    several = (
        f"{len(dead)} steps read"
        if len(dead) > 6
        else f"step{'s' * (len(dead) > 1)} {', '.join(dead)}"
    )
    return [
        f"At {several} the gap is zero everywhere, as where the teacher is the policy itself: "
        "nothing could flip there, and those tokens are in the shares."
    ]


def _threshold(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return "Which threshold was in force is not recorded: the advantages were made elsewhere."
    if settings["flip"] == "none":
        return "Flipping was off when these advantages were made."
    where = "" if settings["flip"] == "both" else f" in {settings['flip']} completions alone"
    size = (
        "a flipped token's size is that of the other side, at least its base"
        if settings["flip_size"] == "other_side"
        else f"a flipped token keeps {settings['kappa_correct']:g} of its size in correct "
        f"completions and {settings['kappa_wrong']:g} in wrong ones"
    )
    if settings["tau_nats"] is not None:
        return f"A token flips{where} beyond a gap of {settings['tau_nats']:g} nats; {size}."
    return (
        f"A token flips{where} beyond {settings['tau_rms']:g} root mean squares of its group's "
        f"gap, but not below {settings['tau_floor']:g} nats; {size}. (Settings of the first step "
        "read.)"
    )


def _why_none(numbers: dict[str, Any]) -> str:
    if (numbers["settings"] or {}).get("flip") == "none":
        return "The method was shaped with flipping off."
    sizes = [step["rms"] for step in numbers["by_step"] if step["rms"] is not None]
    if not any(sizes):
        return (
            "None could be: the gap is zero everywhere, as in the first step and right after the "
            "teacher was refreshed."
        )
    return (
        f"The gap's root mean square is {number(max(sizes))} nats at most, and nothing against the "
        "verdict reached the threshold. That says nothing of what a lower threshold would flip."
    )


def _mass(numbers: dict[str, Any]) -> str:
    down, up = (numbers[way] for way in WAYS)
    known = [told for told in (down, up) if told["flipped"]]
    sizes = ", ".join(
        f"{number(told['before']['mean'])} to {number(told['after']['mean'])} "
        f"{'down' if told is down else 'up'}"
        for told in known
    )
    return (
        f"Flipping changes the size of an advantage from |A'| to |A|: {sizes}. It takes "
        f"{share(down['lost'])} of the push towards correct completions and {share(up['lost'])} of "
        "the push away from wrong ones."
    )


def _seat(numbers: dict[str, Any]) -> str:
    """Where flips are most frequent, of places that hold any."""
    words = []
    for way in WAYS:
        told = numbers[way]
        if not told["flipped"]:
            continue
        tenth, most = _most(told["by_position"])
        words.append(f"{way} in tenth {tenth + 1} of the completion, {share(most)}")
        if told["by_entropy"]:
            tenth, most = _most(told["by_entropy"])
            nats = number(numbers["entropy"][tenth])
            words[-1] += f", and at entropies about {nats} nats, {share(most)}"
    return f"Flips are most frequent {'; '.join(words)}. The most of ten is high by chance too."


def _most(shares: list[dict[str, Any] | None]) -> tuple[int, dict[str, Any] | None]:
    best = max(range(len(shares)), key=lambda n: (shares[n] or {}).get("mean") or 0.0)
    return best, shares[best]


def _pictures(numbers: dict[str, Any]) -> list[Picture]:
    return [
        Picture(
            "flips-places",
            "Where flips sit",
            "Four plots of the share of tokens flipped down and up: by step, by the number of "
            "correct completions in the group, along the completion, and by entropy or by distance "
            "to the end.",
            lambda: _draw_places(numbers),
        ),
        Picture(
            "flips-tokens",
            "The tokens flipped most often",
            "Two bar charts of the tokens of the vocabulary with the most flips, down and up.",
            lambda: _draw_tokens(numbers),
        ),
    ]


def _draw_places(numbers: dict[str, Any]) -> Figure:
    figure, (steps, correct, position, last) = panels(2, 2)
    by_step = numbers["by_step"]
    tenths = [5 + 10 * n for n in range(10)]
    entropy = numbers["entropy"]
    for way, (title, color, marker) in WAYS.items():
        told = numbers[way]

        def draw(
            axes: Axes, x: Sequence[float], shares: list[Any], along: bool,
            style: tuple[str, str, str] = (title, color, marker),
        ) -> None:  # fmt: skip
            method = curve if along and len(x) > 1 else points
            shift = 0.0 if method is curve else (0.12 if style[2] == "^" else -0.12)
            method(axes, [at + shift for at in x], shares, style[0], style[1],
                   scale=100, marker=style[2])  # fmt: skip

        draw(steps, steps_of(by_step), [s[way] for s in by_step], True)
        draw(correct, list(range(len(told["by_correct"]))), told["by_correct"], False)
        draw(position, tenths, told["by_position"], True)
        if entropy is not None:
            draw(last, list(range(1, 11)), told["by_entropy"], False)
        else:
            draw(last, list(range(len(numbers["to_end"]))), told["by_distance"], False)
    name(steps, "Flipped tokens step by step (bands: 95 %)", "step", "flipped, % of those tokens")
    name(correct, "By correct completions of the group", "correct completions",
         "flipped, % of those tokens")  # fmt: skip
    name(
        position,
        "Along the completion",
        "way through the completion, %",
        "flipped, % of those tokens",
    )
    if entropy is not None:
        name(last, "By the policy's entropy at the token", "tenth of the entropies, lowest first",
             "flipped, % of those tokens")  # fmt: skip
        last.set_xticks(range(1, 11))
        last.set_xlim(0.5, 10.5)
    else:
        name(
            last,
            "By distance to the end",
            "tokens to the last one, from",
            "flipped, % of those tokens",
        )
        last.set_xticks(range(len(numbers["to_end"])), map(str, numbers["to_end"]))
    for axes in (steps, correct, position, last):
        from_zero(axes)
    along_steps(steps, by_step)
    whole_numbers(correct)
    legend_below(position, 2)
    return figure


def _draw_tokens(numbers: dict[str, Any]) -> Figure:
    figure, both = panels(1, 2)
    for axes, (way, (title, color, _)) in zip(both, WAYS.items(), strict=True):
        tokens = numbers[f"tokens_{way}"][:BARS][::-1]
        axes.barh(range(len(tokens)), [token["flipped"] for token in tokens], 0.7, color=color)
        axes.set_ylim(min(len(tokens) - 6.5, -0.5), len(tokens) - 0.5)
        axes.set_yticks(range(len(tokens)), [label(spelled(t), 16) for t in tokens], fontsize=8)
        name(axes, f"Flipped {title}", "flips", "token")
    return figure
