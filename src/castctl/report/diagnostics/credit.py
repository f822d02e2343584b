"""Credit: whether OAR-P and OAR-G agree, where their weights sit, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castctl.diagnosis.diagnosis import Diagnosis
from castctl.report.colors import BLACK, BLUE, ORANGE
from castctl.report.diagnostics.figures import (
    curve,
    name,
    panels,
    points,
)
from castctl.report.diagnostics.words import (
    answer,
    cell,
    few,
    share,
    share_cell,
    side_of,
    spelled,
    value,
)
from castctl.report.document import Picture, Section, Sheet
from castctl.report.marks import counted, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = {"perturb": ("OAR-P", BLUE, "o"), "grad": ("OAR-G", ORANGE, "s")}
TOLD = 12


def section(diagnosis: Diagnosis) -> Section:
    """Agreement, where the weights sit, the tokens that gain, and the cost."""
    numbers = diagnosis.numbers
    blocks: list[str | Sheet | Picture] = [_agreement(numbers), _weights(numbers), *_words(numbers)]
    if numbers["rho"] is not None:
        blocks += [*_pictures(numbers), _tokens(numbers)]
    if len(numbers["by_step"]) > 1:
        blocks.append(_steps(numbers["by_step"]))
    title = "Credit by influence: OAR-P against OAR-G"
    return Section(diagnosis.name, title, blocks, answer=_answer(numbers))


def _answer(numbers: dict[str, Any]) -> tuple[str, str]:
    if numbers["rho"] is None:
        return "No completion could be compared: none has both scores.", _scored(numbers)
    verdict = {1: "agree on", -1: "contradict one another on"}.get(
        side_of(numbers["rho"]), "are not shown to agree on"
    )
    second = (
        f"Of one's top tenth {share_cell(numbers['overlap'], '%')} is in the other's; by chance "
        f"{percent(numbers['overlap_chance']['mean'])}."
    )
    if numbers["overhead"] is not None:
        cost = numbers["overhead"]
        second += (
            f" OAR-P costs {number(cost['perturbation'])} times the policy's pass, OAR-G "
            f"{number(cost['gradient'])} times."
        )
    return answer(
        f"OAR-P and OAR-G {verdict} which tokens count: rank correlation {cell(numbers['rho'])}.",
        second,
        numbers["prompts"],
    )


def _agreement(numbers: dict[str, Any]) -> Sheet:
    rows = [
        ["rank correlation, mean", cell(numbers["rho"])],
        *(
            [f"  {verdict.replace('_', ' ')} completions", cell(told)]
            for verdict, told in numbers["rho_by_verdict"].items()
            if told
        ),
        *(
            [f"  {100 * float(level):g} % of completions below", number(rho)]
            for level, rho in numbers["rho_quantiles"].items()
        ),
        ["overlap of the top 10 %, %", share_cell(numbers["overlap"])],
        ["  of unrelated scores, %", share_cell(numbers["overlap_chance"])],
        ["  difference, points", share_cell(numbers["overlap_excess"])],
    ]
    note = (
        f"{numbers['completions']:,} completions of {numbers['prompts']:,} prompts; not compared: "
        f"{numbers['unscored']:,} without a score, {numbers['few']:,} with fewer than 3 tokens "
        f"that have both, {numbers['flat']:,} whose scores do not vary. Spearman's correlation "
        "within a completion. Brackets: 95 % intervals over prompts."
    )
    headings = ("", "value")
    return Sheet("Agreement of both influences", headings, rows, note, first=headings)


def _weights(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [title, share_cell(numbers["tokens_scored"][way]), share_cell(told["raw_top_share"]),
         cell(told["raw_gini"]), share_cell(told["top_share"]), cell(told["gini"])]
        for way, (title, _, _) in WAYS.items()
        for told in (numbers[way],)
    ]  # fmt: skip
    settings = numbers["perturb"]["settings"]
    note = (
        "Top 10 %: share of a completion's whole in its largest 10 % of scored tokens; Gini: 0 "
        "where all are equal, towards 1 where one has all. Weights by the bi-level reshaping with "
        f"the presets' threshold {settings['threshold']:g}, gain {settings['gain']:g} and floor "
        f"{settings['floor']:g}."
    )
    headings = ("", "tokens scored, %", "scores: top 10 %", "scores: Gini", "weights: top 10 %",
                "weights: Gini")  # fmt: skip
    first = ("", "scores: top 10 %", "weights: top 10 %")
    return Sheet("Where scores and weights sit", headings, rows, note, first=first)


def _tokens(numbers: dict[str, Any]) -> Sheet:
    rows = [
        [title if first == 0 else "", spelled(token), f"{token['count']:,.0f}",
         number(token["weight"] / token["count"]), number(token["gain"])]
        for way, (title, _, _) in WAYS.items()
        for first, token in enumerate(numbers[way]["tokens"][:TOLD])
    ]  # fmt: skip
    headings = ("", "token", "scored", "mean weight", "sum of weight - 1")
    return Sheet("Tokens that gain most weight", headings, rows)


def _steps(steps: list[dict[str, Any]]) -> Sheet:
    rows = [
        [str(counted(step["step"])), cell(step["rho"]), share_cell(step["overlap"]),
         share_cell(step["scored"])]
        for step in steps
    ]  # fmt: skip
    headings = ("step", "rank correlation", "overlap of the top 10 %, %", "completions scored, %")
    return Sheet("Step by step", headings, rows)


def _words(numbers: dict[str, Any]) -> list[str]:
    if numbers["rho"] is None:
        return [
            f"No completion could be compared: {numbers['unscored']:,} of "
            f"{numbers['completions']:,} have no score, as where no answer was extracted. OAR "
            "leaves the advantages of those uniform."
        ]
    return [
        _agree(numbers),
        _sit(numbers),
        _scored(numbers),
        _cost(numbers),
        "What this does not show: which of the two is right. Both stand for the influence of a "
        "token on the distribution of the answer, and neither says whether training by it helps; "
        "a replaced token and a small push along a gradient are different questions. Settings of "
        "threshold and gain are the presets', not those of a run. Ranks count many tokens of "
        "hardly any influence as much as the few that matter: read the overlap beside them.",
        *few(numbers["prompts"]),
    ]


def _scored(numbers: dict[str, Any]) -> str:
    if not numbers["unscored"]:
        return "Every completion is scored."
    return (
        f"{share(numbers['scored'])} of the completions are scored. The others have no answer "
        "whose distribution could be compared, and keep uniform weights."
    )


def _agree(numbers: dict[str, Any]) -> str:
    side = side_of(numbers["rho"])
    verdict = {1: "they agree more than chance", -1: "they contradict one another"}.get(
        side, "0 lies inside, so no agreement is shown"
    )
    excess = side_of(numbers["overlap_excess"])
    more = {1: "more than", -1: "less than"}.get(excess, "not distinguishable from")
    return (
        f"Within a completion the two rank its tokens with a mean correlation of "
        f"{value(numbers['rho'])}: {verdict}. Of the tokens that score highest for one, "
        f"{share(numbers['overlap'])} are among the highest of the other, {more} the "
        f"{percent(numbers['overlap_chance']['mean'])} of unrelated scores."
    )


def _sit(numbers: dict[str, Any]) -> str:
    told = [
        f"{title} {share(numbers[way]['raw_top_share'])} of the scores and "
        f"{share(numbers[way]['top_share'])} of the weight"
        for way, (title, _, _) in WAYS.items()
    ]
    return (
        f"A completion's largest 10 % of scored tokens hold, by {'; by '.join(told)}. The "
        "logarithm and the cap of the gain make the weights much more even than the scores; equal "
        "weights would give about 10 %, more in short completions, whose tenth is rounded up."
    )


def _cost(numbers: dict[str, Any]) -> str:
    overhead = numbers["overhead"]
    if overhead is None:
        return "What the two passes cost is not known: no step read holds the seconds of all three."
    seconds = numbers["seconds"]
    return (
        f"OAR-P's pass took {number(overhead['perturbation'])} times as long as scoring the policy "
        f"once, OAR-G's {number(overhead['gradient'])} times ({number(seconds['perturbation'])} "
        f"and {number(seconds['gradient'])} s against {number(seconds['policy'])} s, "
        f"{seconds['steps']} {'step' if seconds['steps'] == 1 else 'steps'}, on this machine)."
    )


def _pictures(numbers: dict[str, Any]) -> list[Picture]:
    return [
        Picture(
            "credit-agreement",
            "How far OAR-P and OAR-G agree within a completion",
            "A histogram of the rank correlations of completions, and the mean correlation by "
            "verdict with its interval.",
            lambda: _draw_agreement(numbers),
        ),
        Picture(
            "credit-weights",
            "Where the weights of OAR-P and OAR-G sit",
            "Mean weight along the completion for both, and how much of the scores and weights the "
            "largest tenth of the tokens holds.",
            lambda: _draw_weights(numbers),
        ),
    ]


def _draw_agreement(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(1, 2)
    found = numbers["rho_histogram"]
    left.stairs(found["counts"], found["edges"], fill=True, color=BLUE, alpha=0.7)
    mean = numbers["rho"]["mean"]
    left.axvline(mean, color=BLACK, linewidth=1.2)
    left.axvline(0, color=BLACK, linewidth=0.8, linestyle=":")
    name(left, f"Rank correlations of completions (line: mean {mean:.2f})",
         "Spearman's correlation of OAR-P and OAR-G", "completions")  # fmt: skip
    told = {verdict: each for verdict, each in numbers["rho_by_verdict"].items() if each}
    points(right, list(range(len(told))), list(told.values()), "", BLACK)
    right.axhline(0, color=BLACK, linewidth=0.8, linestyle=":")
    right.set_xticks(range(len(told)), [verdict.replace("_", " ") for verdict in told])
    right.set_xlim(-0.5, len(told) - 0.5)
    name(right, "Mean correlation by verdict (bars: 95 %)", "verdict", "Spearman's correlation")
    return figure


def _draw_weights(numbers: dict[str, Any]) -> Figure:
    figure, (left, right) = panels(1, 2)
    for shift, (way, (title, color, marker)) in zip((-0.08, 0.08), WAYS.items(), strict=True):
        told = numbers[way]
        at = [5 + 10 * n for n in range(10)]
        curve(left, at, told["by_position"], title, color, marker=marker)
        shares = [told["raw_top_share"], told["top_share"]]
        points(right, [shift, 1 + shift], shares, title, color, scale=100, marker=marker)
    left.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
    right.axhline(10, color=BLACK, linewidth=0.8, linestyle=":")
    right.set_xticks((0, 1), ("scores", "weights"))
    right.set_xlim(-0.5, 1.5)
    right.set_ylim(0, 100)
    name(left, "Mean weight along the completion (dotted: uniform)",
         "way through the completion, %", "mean weight of scored tokens")  # fmt: skip
    name(right, "Held by the largest tenth of the tokens", "", "share of the completion's whole, %")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure
