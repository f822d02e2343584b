"""How often the grader misses a right answer that is written otherwise.

    python benchmarks/rewritings.py FOLDER

reads the golds of the five benchmarks in FOLDER (`math500.jsonl` and so on), writes each distinct
one in the ways that models write it, wherever that makes sense, and prints one line of JSON: for
each way the number of pairs, the share that the grader misses and at most three of the misses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from measure import options, parse, report

from castctl.data.prompts import load_prompts
from castctl.recipe.recipe import DataSettings
from castctl.recipe.verifier import VerifierSettings
from castctl.verify.judge import Row, judge
from castctl.verify.pool import CheckPool

BENCHMARKS = ("math500", "aime24", "aime25", "amc23", "gsm8k")
EXAMPLES = 3
EVERY_INTEGER = 4
"""Whole numbers are alike, so that one of these many is rewritten."""

Rewriting = Callable[[str], Iterator[str]]

_NUMBER = re.compile(r"-?\d*\.?\d+")
_FRACTION = re.compile(r"(-?)\\d?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
_MIXED = re.compile(r"(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_SEPARATED = re.compile(r"\d{1,3}(,(\\!)?\s*\d{3})+")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def read_number(gold: str) -> Fraction | None:
    """The value of a gold that is an integer or a decimal."""
    return Fraction(gold) if _NUMBER.fullmatch(gold) else None


def read_fraction(gold: str) -> Fraction | None:
    """The value of a gold that is a fraction of integers."""
    match = _FRACTION.fullmatch(gold)
    if not match:
        return None
    sign, top, short_top, bottom, short_bottom = match.groups()
    return Fraction(f"{sign}{top or short_top}/{bottom or short_bottom}")


def as_it_is(gold: str) -> Iterator[str]:
    yield gold


def spaces(gold: str) -> Iterator[str]:
    yield f"  {gold}\n"
    yield rf"\ {gold}\,"
    if "\\" not in gold and read_number(gold) is None and not _SEPARATED.fullmatch(gold):
        yield re.sub(r"\s*([-+=,/])\s*", r" \1 ", gold)


def trailing_period(gold: str) -> Iterator[str]:
    yield f"{gold}."
    yield f"{gold} ."


def dollar_signs(gold: str) -> Iterator[str]:
    if not gold.startswith(r"\$"):
        yield f"${gold}$"


def display_style(gold: str) -> Iterator[str]:
    if r"\text" not in gold:
        yield rf"\displaystyle {gold}"


def bold(gold: str) -> Iterator[str]:
    if read_number(gold) is not None:
        yield rf"\mathbf{{{gold}}}"
        yield rf"\textbf{{{gold}}}"


def frac_command(gold: str) -> Iterator[str]:
    if r"\frac" in gold:
        yield gold.replace(r"\frac", r"\dfrac")
        yield gold.replace(r"\frac", r"\tfrac")
        yield gold.replace(r"\frac", r"\cfrac")


def slash(gold: str) -> Iterator[str]:
    if (value := read_fraction(gold)) is not None:
        yield f"{value.numerator}/{value.denominator}"
        yield f"{value.numerator} / {value.denominator}"


def decimal(gold: str) -> Iterator[str]:
    value = read_fraction(gold)
    if value is not None and 10**12 % value.denominator == 0:
        yield str((Decimal(value.numerator) / value.denominator).normalize())
    if (value := read_number(gold)) is not None and value.denominator == 1:
        yield f"{gold}.0"
        yield f"{gold}.00"


def fraction(gold: str) -> Iterator[str]:
    if (value := read_number(gold)) is not None:
        if value.denominator > 1:
            yield rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        yield rf"\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"


def negative_fraction(gold: str) -> Iterator[str]:
    value = read_fraction(gold)
    if value is not None and value < 0:
        top, bottom = -value.numerator, value.denominator
        yield rf"\frac{{-{top}}}{{{bottom}}}"
        yield rf"\frac{{{top}}}{{-{bottom}}}"
        yield rf"-\dfrac{{{top}}}{{{bottom}}}"
        yield f"-{top}/{bottom}"


def mixed_number(gold: str) -> Iterator[str]:
    value = read_fraction(gold)
    if value is not None and value > 1 and value.denominator > 1:
        whole, rest = divmod(value.numerator, value.denominator)
        yield rf"{whole}\frac{{{rest}}}{{{value.denominator}}}"
        yield rf"{whole} \frac{{{rest}}}{{{value.denominator}}}"
        yield f"{whole} {rest}/{value.denominator}"
    if match := _MIXED.fullmatch(gold):
        whole, top, bottom = map(int, match.groups())
        yield rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


def scientific(gold: str) -> Iterator[str]:
    value = read_number(gold)
    if value and (abs(value) >= 10 or abs(value) < Fraction(1, 10)):
        digits, exponent = f"{Decimal(gold).normalize():e}".split("e")
        yield rf"{digits} \times 10^{{{int(exponent)}}}"
        yield rf"{digits} \cdot 10^{{{int(exponent)}}}"


def text(gold: str) -> Iterator[str]:
    if read_number(gold) is not None:
        yield rf"\text{{{gold}}}"
        yield rf"\mathrm{{{gold}}}"
    if match := _TEXT.fullmatch(gold):
        word = match[1]
        yield word
        yield word.strip("()")
        yield rf"\text{{{word.strip('()')}}}"
        yield rf"\text{{ {word} }}"
        yield rf"\textbf{{{word}}}"
        yield rf"\mathrm{{{word}}}"


def units(gold: str) -> Iterator[str]:
    if read_number(gold) is not None:
        yield rf"{gold}\text{{ cm}}"
        yield rf"{gold} \text{{ cm}}"
        yield rf"{gold}\,\text{{cm}}"
        yield rf"{gold}\ \text{{hours}}"
        yield rf"{gold} \text{{ square units}}"
        yield rf"{gold}\mathrm{{~cm}}"
        yield rf"{gold}\text{{ cm}}^2"
        yield f"{gold} cm"
        yield f"{gold} hours"
    if (match := re.fullmatch(r"([^\\]+?)\s*\\(?:text|mbox)\{([^}]*)\}(\^2)?", gold)) is not None:
        yield match[1]
        yield rf"{match[1]}\text{{{match[2]}}}{match[3] or ''}"


def money(gold: str) -> Iterator[str]:
    number = gold.removeprefix(r"\$")
    if read_number(number) is not None:
        yield rf"\${number}"
        yield f"${number}"
        yield rf"{number} \text{{ dollars}}"
        yield f"{number} dollars"
        yield number


def degrees(gold: str) -> Iterator[str]:
    number = gold.removesuffix(r"^\circ")
    if read_number(number) is not None:
        yield rf"{number}^\circ"
        yield rf"{number}^{{\circ}}"
        yield f"{number}°"
        yield rf"{number}\text{{ degrees}}"
        yield f"{number} degrees"
        yield number


def percent(gold: str) -> Iterator[str]:
    if read_number(gold) is not None:
        yield rf"{gold}\%"
        yield f"{gold}%"
        yield rf"{gold}\text{{ percent}}"


def thousands(gold: str) -> Iterator[str]:
    plain = gold.removeprefix(r"\$")
    if _SEPARATED.fullmatch(plain):
        plain = re.sub(r"\D", "", plain)
        yield plain
    if plain.lstrip("-").isdigit() and abs(int(plain)) >= 1000:
        grouped = f"{int(plain):,}"
        yield grouped
        yield grouped.replace(",", "{,}")
        yield grouped.replace(",", r",\!")
        yield grouped.replace(",", r"\,")
        yield grouped.replace(",", " ")


def leading_zeros(gold: str) -> Iterator[str]:
    if gold.isdigit():
        yield f"0{gold}"
        yield f"{int(gold):03d}"
    if gold.startswith("."):
        yield f"0{gold}"
    if gold.startswith("0."):
        yield gold[1:]


def order_of_a_set(gold: str) -> Iterator[str]:
    inner = gold.removeprefix(r"\{").removesuffix(r"\}")
    items = [item.strip() for item in inner.split(",")]
    if len(items) < 2 or not all(re.fullmatch(r"[-\w\\{}]+", item) for item in items):
        return
    if _SEPARATED.fullmatch(gold):
        return
    turned = ", ".join(reversed(items))
    yield turned
    yield rf"\{{{turned}\}}"
    yield rf"\left\{{{turned}\right\}}"
    yield turned.replace(", ", r" \text{ and } ")


def equation(gold: str) -> Iterator[str]:
    name, equals, value = gold.partition("=")
    if equals and re.fullmatch(r"[a-z] *", name):
        yield value
        yield f"{name.strip()} = {value.strip()}"
    elif read_number(gold) is not None or read_fraction(gold) is not None:
        yield f"x={gold}"
        yield f"n = {gold}"
        yield rf"x \approx {gold}"
        yield rf"f(2) = {gold}"
        yield rf"\angle ABC = {gold}"


def left_and_right(gold: str) -> Iterator[str]:
    bare = gold.replace(r"\left", "").replace(r"\right", "")
    if re.fullmatch(r"[(\[].*[)\]]", bare) and bare.count("(") + bare.count("[") == 1:
        yield bare
        yield rf"\left{bare[:-1]}\right{bare[-1]}"
        yield rf"\big{bare[:-1]}\big{bare[-1]}"


def membership(gold: str) -> Iterator[str]:
    bare = gold.removeprefix(r"x \in ")
    if r"\infty" in bare or r"\cup" in bare or bare != gold:
        yield bare
        yield rf"x \in {bare}"


def unicode(gold: str) -> Iterator[str]:
    if r"\text" in gold:
        return
    written = gold.replace("-", "\N{MINUS SIGN}").replace(r"\pi", "π").replace(r"\infty", "∞")
    written = re.sub(r"\\sqrt\{(\d+)\}", r"√\1", written)
    if written != gold:
        yield written


REWRITINGS: dict[str, Rewriting] = {
    "as it is": as_it_is,
    "spaces": spaces,
    "trailing period": trailing_period,
    "dollar signs": dollar_signs,
    r"\displaystyle": display_style,
    r"\mathbf": bold,
    r"\dfrac": frac_command,
    "slash for fraction": slash,
    "decimal": decimal,
    "fraction for number": fraction,
    "negative fraction": negative_fraction,
    "mixed number": mixed_number,
    "scientific": scientific,
    r"\text": text,
    "units": units,
    "money": money,
    "degrees": degrees,
    "percent": percent,
    "thousands": thousands,
    "leading zeros": leading_zeros,
    "order of a set": order_of_a_set,
    "equation": equation,
    r"\left and \right": left_and_right,
    "membership": membership,
    "Unicode": unicode,
}


def read_golds(folder: Path) -> list[str]:
    """The answers of every benchmark, as castctl reads them."""
    golds: list[str] = []
    for name in BENCHMARKS:
        prompts = load_prompts(DataSettings(path=str(folder / f"{name}.jsonl")))
        golds += prompts.table["answer"].to_pylist()
    return golds


def missed_by_kind(golds: list[str]) -> dict[str, dict[str, object]]:
    """By kind: the number of pairs, the share missed, and examples of misses."""
    distinct = list(dict.fromkeys(golds))
    alike = [gold for gold in distinct if gold.isdigit()]
    spared = set(alike) - set(alike[::EVERY_INTEGER])
    pairs = [
        (kind, gold, written)
        for kind, rewrite in REWRITINGS.items()
        for gold in (golds if rewrite is as_it_is else distinct)
        if rewrite is as_it_is or gold not in spared
        for written in dict.fromkeys(rewrite(gold))
    ]
    rows = [Row("", rf"\boxed{{{written}}}", gold, "stop") for _, gold, written in pairs]
    settings = VerifierSettings()
    with CheckPool(settings) as pool:
        judged = judge(pool, settings, rows)
    table: dict[str, dict[str, object]] = {}
    for kind in REWRITINGS:
        own = [
            (gold, written, judgement.verdict)
            for (its, gold, written), judgement in zip(pairs, judged, strict=True)
            if its == kind
        ]
        missed = [each for each in own if each[2] != "correct"]
        table[kind] = {
            "pairs": len(own),
            "missed": round(len(missed) / max(len(own), 1), 4),
            "examples": list(dict.fromkeys(missed))[:EXAMPLES],
        }
    return table


def main() -> None:
    parser = options(__doc__, repeats=1)
    parser.add_argument("folder", type=Path, help="folder of the benchmarks' JSONL files")
    given = parse(parser)
    golds = read_golds(given.folder)
    kinds = missed_by_kind(golds[:: len(golds) // 60] if given.quick else golds)
    report("rewritings", given.repeats, golds=len(golds), kinds=kinds)


if __name__ == "__main__":
    main()
