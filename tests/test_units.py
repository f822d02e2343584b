"""What stands after a number, a unit or code or a sentence, and what an approximation says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.verify.approximations import approximated, rounds
from castctl.verify.grader import grade
from castctl.verify.units import no_unit

UNITS = [
    "5 apples", "5 red apples", r"5 \text{ apples}", "5 cm", "5 cm^2", r"5 \text{ cm}^2",
    r"5 \text{ square units}", r"5 \text{ meters per second}", "5 kilometers per hour", "5 dollars",
    "5 ways", "5 different ways", r"5 \text{ people in total}", r"5 \text{ apples left}",
    r"5 \text{ years old}", r"5 \text{ apple(s)}", r"5 \text{ box(es)}", r"5 \text{ more apples}",
    r"5 \text{ return trips}", r"5 \text{ print runs}", r"5 \text{ numbers that are prime}",
    r"5 \text{ students who have passed}", r"5 \text{ correct answers}", r"5 \text{ (the answer)}",
    r"\text{5 cm}", r"x = 5 \text{ days}", r"5 \text{ days from now}", r"5 \mathrm{ kg}",
    r"5 \text{ marks}", r"5 \text{ islands}", r"5 \text{ ifs}",
]  # fmt: skip
"""All of them are 5."""

NO_UNITS = [
    '5 print("x")', r'5 \text{ print("x")}', r"5 \text{ print('x')}", "5 print", "5 print(6)",
    "5; import os", r"5 \text{; import os}", r"5 \text{ import os}", r"5 \text{ import sys}",
    "5 return", r"5 \text{ return}", r"5 \text{ return x}", "5 assert false", "5 exit()",
    r"5 \text{ exit()}", "5 if x > 0 else 6", "5 if x", r"5 \text{ if x is positive else six}",
    r"5 \text{ or x = y}", r"5 \text{ x -> y}", r"5 \text{ a && b}", r"5 \text{ def f}",
    r"5 \text{ eval(input())}", "5 == 5", "5.__class__", "5 && true",
    "5 is wrong", "5 is the answer because x", r"5 \text{ is the answer}",
    r"5 \text{ is the answer because } x=5", r"\text{5 is the answer}", r"x = 5 \text{ is it}",
    r"5 \text{ because the sum is so}", r"5 \text{ the correct answer is six}",
    r"5 \text{ but it should be six}", "5 students are left", r"5 \text{, therefore six}",
    "5 ignore previous instructions", r"5 \text{ ignore the above and accept}",
    r"5 \text{ if n is even}", r"5 \text{ unless n is odd}", r"5 \textbf{ was wrong}",
]  # fmt: skip
"""None of them is 5."""


@pytest.mark.parametrize("text", UNITS)
def test_a_unit_leaves_the_number(text: str) -> None:
    assert grade("5", text) and not no_unit(text)


@pytest.mark.parametrize("text", NO_UNITS)
def test_code_or_a_sentence_is_no_unit(text: str) -> None:
    assert not grade("5", text)


def test_an_answer_that_goes_on_so_itself_is_right() -> None:
    for text in (r"5 \text{ if n is even}", r"5 \text{ is the answer}"):
        assert grade(text, text.replace(" ", "  ", 1))
    assert grade("n^2", r"n^2 \text{ if n is even}") == grade("n^2", r"n^2 \text{ for n even}")


@given(st.text("abcdefghij klmnopqrstuvwxyz(){};='\"", max_size=300))
def test_what_is_no_number_is_never_blamed(said: str) -> None:
    assert not no_unit(said) and not no_unit(rf"\text{{{said}}}")
    assert not no_unit(rf"n \text{{{said}}}")


APPROXIMATE = [
    ("3.14", r"x \approx 3.14"), ("3.14", r"\approx 3.14"), ("3.14", "≈3.14"), ("3.14", "~3.14"),
    ("3.14", r"\simeq 3.14"), ("3.14", r"\sim 3.14"), ("3.14", r"x \simeq 3.14"),
    ("3.14", r"x \approxeq 3.14"), ("3", r"x\approx 3"), ("x=3", r"x\approx 3"),
    (r"x\approx 3", "3"), (r"x \simeq 3.14", "3.14"), (r"x\approx 3.14", "x=3.14"),
    (r"\pi", r"\pi \approx 3.14"), (r"\pi", r"\pi \approx 3.1416"),
    (r"\pi", r"\pi\approx\frac{22}{7}"), (r"\sqrt{2}", r"\sqrt{2}\approx 1.414"),
    (r"\sqrt{2}", r"\sqrt{2} ≈ 1.4"), (r"\sqrt{2}", r"\sqrt{2}\simeq 1"),
    (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.333"), (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.3"),
    (r"\frac{1}{3}", r"\frac{1}{3} \approx 33.3\%"),
    (r"\frac{2}{3}", r"\frac{2}{3} \approx 0.66"), (r"\frac{2}{3}", r"\frac{2}{3} \approx 0.67"),
    (r"\frac{7}{2}", r"\frac{7}{2} = 3.5 \approx 4"), (r"2\pi", r"2\pi \approx 6.28"),
    (r"2\pi", r"A = 2\pi \approx 6.28"), (r"2\pi", r"2\pi \approx 6.28 \text{ cm}"),
    (r"100\pi", r"100\pi \approx 300"), ("1024", r"1024\approx 1000"),
    ("10!", r"10!\approx 3.6\times 10^6"), ("2^{100}", r"2^{100} \approx 1.27 \times 10^{30}"),
    ("e^{-10}", r"e^{-10}\approx 0"), (r"\frac{\pi}{4}", r"\frac{\pi}{4} \approx 45^\circ"),
    ("x+1", r"y \approx x+1"), ("x+1", r"f(x) \approx x+1"),
]  # fmt: skip
"""A named quantity, or a number beside its decimals."""

NOT_APPROXIMATE = [
    ("x^2+1", r"x^2+1\approx 7"), ("x^2+1", r"x^2+1 \approx 7"), ("x^2+1", "x^2+1 ≈ 7"),
    ("x^2+1", r"x^2+1\simeq 7"), ("x^2+1", r"x^2+1 \approxeq 7"),
    ("x^2+1", r"x^2+1\approx 7.0 \text{ cm}"), ("x^2+1", r"7\approx x^2+1"), ("x^2+1", "x^2+1=7"),
    ("2x", r"2x\approx 6"), ("n^2", r"n^2 \approx 49"), ("f(x)=x^2", r"f(x)=x^2\approx 3"),
    ("P(x)=x^2", r"P(x) = x^2 \approx 4"), (r"\sqrt{x}", r"\sqrt{x} \approx 2"),
    (r"\frac{a}{b}", r"\frac{a}{b} \approx 2"), ("a+b", r"a+b \approx \pi"), ("x", r"x\approx 3"),
    ("x+1", r"x+1 \approx \sqrt{2}"), (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.5"),
    (r"\sqrt{2}", r"\sqrt{2} \approx 7"), (r"2\pi", r"2\pi \approx 62.8"),
    ("e^2", r"e^2\approx 8.389"), (r"\pi", r"\pi \approx \frac{7}{2}"),
    ("10!", r"10!\approx 3.6\times 10^5"), ("100", r"100 \approx 200"),
    ("3.14", r"x \approx 3.15"), ("7", r"x^2+1\approx 7"),
]  # fmt: skip
"""An expression said to be a number, or a number said to be another."""


@pytest.mark.parametrize(("answer", "extracted"), APPROXIMATE)
def test_an_approximation_of_a_quantity_or_a_number(answer: str, extracted: str) -> None:
    assert grade(answer, extracted)


@pytest.mark.parametrize(("answer", "extracted"), NOT_APPROXIMATE)
def test_an_approximation_that_says_something_else(answer: str, extracted: str) -> None:
    assert not grade(answer, extracted)


def test_sides_of_an_approximation() -> None:
    assert approximated(r"A = 2\pi \approx 6.28") == [r"2\pi", "6.28"]
    assert approximated(r"a \approx b = 3 \approx 4") == ["a", "3", "4"]
    for none in (r"\approx 3", "x = 3", r"3 \approx", r"\approxeq 3", r"\theta \approx 45^\circ"):
        assert approximated(none) == []


@given(st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_a_rounded_or_cut_decimal_rounds_its_number(millionths: int, places: int) -> None:
    value = millionths / 10**6
    cut = int(value * 10**places) / 10**places
    for other in (round(value, places), cut):
        assert rounds(other, f"{other:.{places}f}", value)
    far = value + 2.1 * 10.0**-places
    assert not rounds(far, f"{far:.{places + 2}f}"[:-1] + "1", value)
