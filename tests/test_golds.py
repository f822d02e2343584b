"""The golds of the benchmarks, as they are and rewritten; and what must stay wrong."""

from __future__ import annotations

import json
import re
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.verify.grader import grade
from castctl.verify.spelling import spellings
from commands import Commands

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rewritings.py"

MISSED = {"percent": 0.04}
"""Kinds of rewriting of which the grader misses some, with the largest share; others: none.

math-verify reads 1.25% as 0.0125 alone, but 125% as 125 too.
"""


@pytest.mark.slow
def test_every_gold_verifies_as_it_is_and_rewritten(
    benchmarks: Path, commands: Commands, tmp_path: Path
) -> None:
    done = commands.start_file(SCRIPT, str(benchmarks), cwd=tmp_path).wait(600)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["kinds"]
    assert table["as it is"]["pairs"] == 1919
    for kind, measured in table.items():
        assert measured["pairs"] >= 10, kind
        assert measured["missed"] <= MISSED.get(kind, 0), (kind, measured["examples"])


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        ("203", r"2.03 \times 10^{2}"),
        ("0.00305", r"3.05 \cdot 10^{-3}"),
        (r"\frac{14}{3}", "4 2/3"),
        (r"-\frac{14}{3}", "-4 2/3"),
        ("1.25", r"\text{1.25}"),
        ("-50", r"-50\%"),
        ("9", "9 dollars"),
        ("90", "90°"),
        ("2220", r"2\,220"),
        ("1234567", "1 234 567"),
        (r"(2,\infty)", "(2,∞)"),
        (r"3\sqrt{13}", "3√13"),
        (r"\sqrt{16.5}", "√16.5"),
        (r"1.6\times10^{-19}", r"16\times10^{-20}"),
        ("0.15", r"1.5\times10^{-1}"),
        ("-0.05", r"-5\%"),
        ("-5", "-5%"),
        ("0.0000014", r"1.4\times10^{-6}"),
        (r"1.4\times10^{-6}", "0.0000014"),
        (r"\frac{1}{1024}", "0.0009765625"),
        (r"\frac{1}{2^{100}}", r"4^{-50}"),
        (r"\frac{1}{3}", "0.333333"),
        (r"e^{-50}", r"\frac{1}{e^{50}}"),
        ("(1,2)", r"\bigl( 1, 2 \bigr)"),
        (r"10,\!080", r"\ 10,\!080\,"),
    ],
)
def test_right_answers_that_math_verify_alone_misreads(answer: str, extracted: str) -> None:
    assert grade(answer, extracted)


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        ("203", r"2.03 \times 10^{3}"),
        (r"1\times10^{-7}", r"2\times10^{-7}"),
        (r"5\times10^{-7}", r"1\times10^{-6}"),
        (r"6.6\times10^{-34}", r"1.1\times10^{-12}"),
        (r"6.02\times10^{23}", r"6.03\times10^{23}"),
        ("2", "√16.5"),
        ("1", "√25.2"),
        ("4", "√16,5"),
        ("0", r"√4\,000"),
        ("4", "√4 2"),
        ("100", "√10 000"),
        ("23", r"2\big3"),
        ("0.0000012", "0.0000014"),
        ("0.0000001", r"2\times10^{-7}"),
        ("0.000001", r"1.4\times 10^{-6}"),
        (r"1.4\times10^{-6}", "0.000001"),
        ("0", r"1\times10^{-30}"),
        ("0.0", r"1\times10^{-7}"),
        (r"1\times10^{-30}", "0.0"),
        (r"(0.00000021, 1)", r"(0.00000022, 1)"),
        (r"x=2.1\times10^{-17}", r"x=2.2\times10^{-17}"),
        (r"10^{-20}", r"2\cdot10^{-20}"),
        (r"\frac{1}{2^{100}}", r"\frac{1}{2^{99}}"),
        (r"\frac{1}{52!}", "0"),
        (r"\frac{1}{52!}", r"\frac{2}{52!}"),
        ("5", "-5%"),
        ("0.05", r"-5\%"),
        ("202.99999999999997", r"2.03 \times 10^{2}"),
        ("20.3", r"2.03 \times 10^{2}"),
        ("14", "4 2/3"),
        (r"\frac{8}{3}", "4 2/3"),
        (r"\frac{42}{3}", "4 2/3"),
        ("1", "1 000/3"),
        (r"\frac{1234}{567}", "1 234/567"),
        ("1.25", r"\text{125}"),
        ("125", r"\text{1.25}"),
        ("50", r"-50\%"),
        ("-5", r"-50\%"),
        ("9", "90 dollars"),
        ("9", "9 million dollars"),
        ("9", "90°"),
        ("440", r"2\,220"),
        ("222", "2 220"),
        ("2220", "2 2200"),
        ("12", "1 2"),
        (r"(2,\infty)", "(-∞,2)"),
        (r"(2,\infty)", "[2,∞)"),
        (r"\sqrt{13}", "3√13"),
        ("13", "√13"),
        ("(1,2)", r"\bigl( 2, 1 \bigr)"),
        ("(1,2)", r"\bigl[ 1, 2 \bigr]"),
        ("10080", r"\ 10,\!08\,"),
        ("5", ".5"),
    ],
)
def test_wrong_answers_stay_wrong(answer: str, extracted: str) -> None:
    assert not grade(answer, extracted)


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3
    ),
    st.integers(-20, 20),
)
def test_scientific_notation_keeps_its_exact_value(number: object, exponent: int) -> None:
    [written] = spellings(rf"{number} \times 10^{{{exponent}}}")
    value = Fraction(re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1/\2", written))
    assert value == Fraction(str(number)) * Fraction(10) ** exponent


@given(st.integers(1, 999), st.integers(1, 999), st.integers(-60, 20))
def test_numbers_of_any_size_are_told_apart(number: int, other: int, exponent: int) -> None:
    answer, extracted = (rf"{n} \times 10^{{{exponent}}}" for n in (number, other))
    assert grade(answer, extracted) is (number == other)
    decimal = f"{Decimal(other).scaleb(exponent):f}"
    assert grade(answer, decimal) is (number == other)


@given(st.integers(-(10**12), 10**12), st.sampled_from([" ", r"\,", r"\;", r"\ "]))
def test_grouped_digits_keep_their_value(number: int, space: str) -> None:
    assert spellings(f"{number:,}".replace(",", space)) == [str(number)]


@given(st.lists(st.sampled_from(["even", "Evelyn", "no", "none of them", "増加", "чётное", "①③"])))
def test_plain_words_are_left_alone(words: list[str]) -> None:
    text = " ".join(words)
    assert spellings(text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        " " * 10**6 + "x" + " " * 10**6,
        r"\," * 10**6 + "x",
        "x" + r"\," * 10**6 + "x",
        "1" * 10**6,
        "1 222" * 10**5,
        "√1" * 10**5,
        "." * 10**6,
    ],
    ids=lambda text: text[:5],
)
def test_a_megabyte_is_respelled_in_no_time(text: str) -> None:
    start = time.perf_counter()
    spellings(text)
    assert time.perf_counter() - start < 2
