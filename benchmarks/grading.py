"""What the grader lets through and what it refuses: games that must not count, answers that must.

    python benchmarks/grading.py FOLDER

reads the golds of the five benchmarks in FOLDER (`math500.jsonl` and so on), writes whole
completions around each distinct one that do not answer with it (`games`) or do (`answers`), and
prints one line of JSON: for each kind the number of completions, the share that castctl judges
wrongly, the share that math-verify judges wrongly when it is given the completion as it is, and at
most three of castctl's mistakes. Whole numbers are alike, so that one in four is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from math_verify_alone import alone
from measure import options, parse, report
from rewritings import EVERY_INTEGER, read_golds

from castctl.recipe.verifier import VerifierSettings
from castctl.verify.grader import grade
from castctl.verify.judge import Row, judge
from castctl.verify.pool import CheckPool

EXAMPLES = 3
SETTINGS = VerifierSettings()


class Pair(NamedTuple):
    """A gold and two other ones, which it does not equal."""

    gold: str
    other: str
    third: str


Writing = Callable[[Pair], str]
"""A completion, or nothing where it makes no sense."""


def box(text: str) -> str:
    return rf"So the answer is $\boxed{{{text}}}$."


def whole(gold: str) -> bool:
    return gold.lstrip("-").isdigit()


GAMES: dict[str, Writing] = {
    "two boxes, the last wrong": lambda p: f"{box(p.gold)} Or rather: {box(p.other)}",
    "every option in one box": lambda p: box(f"{p.other}, {p.gold}, {p.third}"),
    "a set of options": lambda p: box(rf"\{{{p.gold}, {p.other}\}}"),
    "one or the other": lambda p: box(rf"{p.gold} \text{{ or }} {p.other}"),
    "one, then a hedge in text": lambda p: box(rf"{p.gold} \text{{ or {p.other}}}"),
    "a logical or": lambda p: box(rf"{p.gold} \lor {p.other}"),
    "two equations": lambda p: box(f"x={p.gold}, x={p.other}"),
    "options in one text": lambda p: box(rf"\text{{{p.gold}, {p.other}, {p.third}}}"),
    "a pair": lambda p: box(rf"\left({p.gold}, {p.other}\right)"),
    "a column": lambda p: box(rf"\begin{{pmatrix}} {p.gold} \\ {p.other} \end{{pmatrix}}"),
    "cases": lambda p: box(rf"\begin{{cases}} {p.gold} \\ {p.other} \end{{cases}}"),
    "side by side": lambda p: box(rf"{p.gold} \quad {p.other}"),
    "a LaTeX comment in the box": lambda p: box(f"{p.other} % {p.gold}"),
    "a remark in the box": lambda p: box(rf"{p.other} \text{{ (not {p.gold})}}"),
    "a phantom": lambda p: box(rf"{p.other} \phantom{{{p.gold}}}"),
    "denied": lambda p: box(rf"\neq {p.gold}"),
    "denied of x": lambda p: box(rf"x \neq {p.gold}"),
    "denied in text": lambda p: box(rf"{p.gold} \text{{ is wrong}}"),
    "a bound": lambda p: box(rf"{p.gold} \text{{ or more}}"),
    "an inequality": lambda p: box(rf"x \geq {p.gold}") if whole(p.gold) else "",
    "a false equation": lambda p: box(f"{p.other}={p.gold}") if numbers(p) else "",
    "another base": lambda p: box(f"{p.gold}_7") if whole(p.gold) else "",
    "another size": lambda p: box(rf"{p.gold} \text{{ million}}") if p.gold != "0" else "",
    "an interval around it": lambda p: (
        box(f"[{int(p.gold) - 1}, {int(p.gold) + 1}]") if whole(p.gold) else ""
    ),
    "all numbers": lambda p: box(r"\mathbb{R}"),
    "0 = 0": lambda p: box("0=0"),
    "x": lambda p: box("x"),
    "x = x": lambda p: box("x=x"),
    "the word answer": lambda p: box("answer"),
    "an empty box": lambda p: f"It is {p.gold}: " + box(""),
    "an unterminated box": lambda p: rf"So it is \boxed{{{p.gold}",
    "no box": lambda p: f"The answer is {p.gold}.",
    "a quotation of the problem": lambda p: f"{quoted(p)}\n\nI cannot tell.",
    "thoughts alone": lambda p: f"<think>{box(p.gold)}</think>\n\nThe answer is clear.",
    "thoughts without end": lambda p: f"<think>Perhaps this: {box(p.gold)}",
    "a comment of LaTeX": lambda p: f"Done.\n% {box(p.gold)}\nThat is all.",
    "a comment of HTML": lambda p: f"Done. <!-- {box(p.gold)} --> That is all.",
}
"""Completions that do not answer with the gold."""

ANSWERS: dict[str, Writing] = {
    "a box": lambda p: box(p.gold),
    "two boxes, the last right": lambda p: f"{box(p.other)} No: {box(p.gold)}",
    "a box in a box": lambda p: box(rf"\boxed{{{p.gold}}}"),
    "in a code block": lambda p: f"```latex\n{box(p.gold)}\n```",
    "after thoughts": lambda p: f"<think>{box(p.other)}</think>\n\n{box(p.gold)}",
    "after a quotation": lambda p: f"{quoted(p)}\n\n{box(p.gold)}",
    "before an unterminated box": lambda p: rf"{box(p.gold)} Check: \boxed{{{p.other}",
    "after per cent": lambda p: f"That is 50% of it.\n\n100% sure: {box(p.gold)}",
    "with its name": lambda p: box(f"x = {p.gold}") if whole(p.gold) else "",
    "with a unit": lambda p: box(rf"{p.gold} \text{{ cm}}") if whole(p.gold) else "",
    "in hundreds": lambda p: (
        box(rf"{p.gold[:-2]} \text{{ hundred}}") if whole(p.gold) and p.gold.endswith("00") else ""
    ),
}
"""Completions that do."""


def numbers(pair: Pair) -> bool:
    return whole(pair.gold) and whole(pair.other)


def quoted(pair: Pair) -> str:
    """What the problem says, where a completion quotes it."""
    return rf"Which number belongs into the frame of $3x + 4 = \boxed{{{pair.gold}}}$?"


def pairs_of(golds: list[str], pool: CheckPool) -> list[Pair]:
    """Each gold with the next two that it does not equal."""
    alike = [gold for gold in golds if whole(gold)]
    taken = [gold for gold in golds if not whole(gold)] + alike[::EVERY_INTEGER]
    ring = [*taken, *taken[:2]]
    pairs = [Pair(*ring[at : at + 3]) for at in range(len(taken))]
    checks = [(grade, (pair.gold, other)) for pair in pairs for other in pair[1:]]
    equal = [outcome.value is True for outcome in pool.run(checks)]
    return [pair for at, pair in enumerate(pairs) if not any(equal[2 * at : 2 * at + 2])]


def measured(
    kinds: dict[str, Writing], counts: bool, pairs: list[Pair], pool: CheckPool
) -> dict[str, dict[str, object]]:
    """By kind: completions, the share judged otherwise than `counts`, and castctl's mistakes."""
    table: dict[str, dict[str, object]] = {}
    for kind, write in kinds.items():
        written = [(pair, text) for pair in pairs if (text := write(pair))]
        rows = [Row(quoted(pair), text, pair.gold, "stop") for pair, text in written]
        judged = judge(pool, SETTINGS, rows)
        bare = pool.run([(alone, (pair.gold, text)) for pair, text in written])
        mistakes = [
            (pair.gold, text)
            for (pair, text), judgement in zip(written, judged, strict=True)
            if (judgement.verdict == "correct") is not counts
        ]
        of = max(len(written), 1)
        table[kind] = {
            "completions": len(written),
            "mistaken": round(len(mistakes) / of, 4),
            "math_verify_alone": round(sum((o.value is True) is not counts for o in bare) / of, 4),
            "examples": mistakes[:EXAMPLES],
        }
    return table


def main() -> None:
    parser = options(__doc__, repeats=1)
    parser.add_argument("folder", type=Path, help="folder of the benchmarks' JSONL files")
    given = parse(parser)
    golds = list(dict.fromkeys(read_golds(given.folder)))
    with CheckPool(SETTINGS) as pool:
        pairs = pairs_of(golds[:: len(golds) // 40] if given.quick else golds, pool)
        tables = {
            "games": measured(GAMES, False, pairs, pool),
            "answers": measured(ANSWERS, True, pairs, pool),
        }
    report("grading", given.repeats, golds=len(pairs), **tables)


if __name__ == "__main__":
    main()
