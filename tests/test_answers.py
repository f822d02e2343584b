"""Answers and golds of every spelling, each beside what must not pass for it."""
# ruff: noqa: RUF001

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castctl.verify.grader import UnparsableAnswer, grade

EQUAL = [
    (r"\textbf{(E)}\ 42", "42"),
    (r"\textbf{(E)}\ 42", "E"),
    ("42", "(E) 42"),
    ("10:30 AM", "10:30"),
    ("2:30", r"\text{2:30 p.m.}"),
    ("2e3", "2000"),
    ("2E3", r"2\times 10^3"),
    ("1e-3", "0.001"),
    ("-4.5e3", "-4500"),
    ("2*pi*r", r"2\pi r"),
    ("sqrt(3)/2", r"\frac{\sqrt{3}}{2}"),
    ("x**2 + 1", "x^2+1"),
    ("asin(x)", r"\arcsin x"),
    ("log10(100)", "2"),
    (r"\(x^2\)", "x^2"),
    (r"\frac{a}{b} c", r"\frac{ac}{b}"),
    (r"\frac{1}{2}ab", r"\frac{ab}{2}"),
    ("10-4t", "10 - 4t"),
    ("5 m", "5"),
    (r"5 \text{ m}", "5"),
    ("5", "5 m"),
    ("5", "5 kg"),
    (r"\frac{3}{4} cm", r"\frac{3}{4}"),
    ("BAC", "BAC"),
    ("BAC", "CAB"),
    (r"\angle ABC", r"\angle CBA"),
    (r"\angle ABC", r"\angle ABC"),
    ("1, 1, 2", "1, 2, 1"),
    ("1, 2, 2", "2, 1, 2"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"0.\overline{36}", r"\frac{4}{11}"),
    (r"0.1\overline{6}", "1/6"),
    (r"1.\dot{3}", r"\frac{4}{3}"),
    ("(0,12.5)", "0<x<12.5"),
    ("0<x<12.5", "(0,12.5)"),
    (r"[\sqrt2,\infty)", r"m\ge\sqrt2"),
    (r"m\ge\sqrt2", r"[\sqrt2,\infty)"),
    ("x>2", "2<x"),
    (r"(-\infty,1)\cup(3,\infty)", r"x<1 \text{ or } x>3"),
    (r"x<1 \text{ or } x>3", r"(-\infty,1)\cup(3,\infty)"),
    (r"x<1 \text{ or } x>3", r"(3,\infty)\cup(-\infty,1)"),
    (r"x<1 \text{ or } x>3", r"x>3 \text{ or } x<1"),
    (r"x > 1 \text{ and } x < 3", "(1,3)"),
    (r"-1 \le x \le 1", "[-1,1]"),
    (r"x \neq 2", r"(-\infty,2)\cup(2,\infty)"),
    (r"x<1 \text{ or } x=3", r"(-\infty,1)\cup\{3\}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2 \text{ and } 1\pm\sqrt{5}"),
    (r"\frac1e<a<e", r"(\frac{1}{e}, e)"),
    ("z = 1+2i", "1+2i"),
    ("A, B, C", "C, A, B"),
    ("a, b, b", "b,a,b"),
    ("m < -2 \\text{ or } m > 2", "m<-2, m>2"),
    ("B", "b"),
    ("1'000", "1000"),
    (r"\triangle ABC", r"\triangle BCA"),
    (r"n \text{ odd}", r"n \text{ is odd}"),
    ("2:30 PM", "14:30"),
    (r"5\text{ PM}", "5:00 PM"),
    ("3+4i", r"3 + 4 \mathrm{i}"),
    ("(1+i)^2", "2i"),
    (r"\frac{1+3i}{2}", r"\frac{1}{2}+\frac{3}{2}i"),
    (r"e^2", r"{\rm e}^2"),
    ("73", r"\boldsymbol{73}"),
    ("73", "__73__"),
    (r"\frac12", r"\mathbf{\frac{1}{2}}"),
    ("12345", r"\textbf{12,345}"),
    ("3,4", r"\text{3 and 4}"),
    (r"\frac34", r"\text{$\frac{3}{4}$}"),
    (r"\frac\pi4", r"\frac{\pi}{4}"),
    (r"\sqrt[3]2", r"\sqrt[3]{2}"),
    ("35", r"\binom73"),
    ("P = 4s", "4s"),
    ("60t", "d = 60 t"),
    (r"\textbf{(D)}\ (1,2)", "(1,2)"),
    (r"\textbf{(D)}\ 1,000", "D"),
    (r"\textbf{(A)}\ \text{Yes}", "Yes"),
    ("C", r"$\textbf{(C)}$ $12$"),
    ("2", r"\mathrm{(D) \ } 2"),
    ("E", r"\text{Option E}"),
    (r"13824 \notin A", r"13824\notin A"),
    ("x>2", r"\{x|x>2\}"),
    (r"(2,\infty)", r"\left\{\, x \mid x > 2 \,\right\}"),
    (r"\{x \mid -1<x<3\}", r"\{y \mid -1<y<3\}"),
    (r"(-\infty,-2]\cup[2,\infty)", r"x\leq-2\ \text{or}\ x\geq2"),
    (r"(0,1)\cup(1,\infty)", r"x>0 \text{ and } x \ne 1"),
    (r"[\sqrt2,\infty)", r"\sqrt{2} \le m"),
    ("(0,12.5)", "]0,12.5["),
    (r"x\ge2", "x⩾2"),
    (r"\frac13", r"0.333\ldots"),
    (r"\frac13", "0.(3)"),
    (r"\frac13", r"0.\overline{3}..."),
    ("1:2:3", "2:4:6"),
    ("18", "18 eggs"),
    ("18", "18 km/h"),
    ("12", "12（元）"),
    ("x_1", "x₁"),
    (r"\frac52", r"\frac52\ \frac{\text{m}}{\text{s}}"),
    ("25", "25°C"),
    (r"\ln 2", "ln 2"),
    (r"\sqrt{3}", "sqrt3"),
    (r"\pi(R^2-r^2)", r"\pi R^2-\pi r^2"),
    ("true", r"\text{True}"),
    ("Evelyn", r"\textbf{Evelyn}."),
    ("A and C", r"\text{A and C}"),
    ("Tuesday, Friday", "Friday, Tuesday"),
    ("abc", "cba"),
    ("12 cm^2", "12"),
    ("€18", "18"),
    ("18 euros", "18"),
    ("12:30 AM", "0:30"),
    (r"2{:}30", "2:30"),
    (r"\mathrm{e}^2", "e^2"),
    (r"3+4\mathrm{i}", "3+4i"),
    (r"\pi\mathrm{i}", r"i\pi"),
    (r"\textbf{42}", "42"),
    ("**42**", "42"),
    ("42", "**42**"),
    ("1/2", "½"),
    ("5/2", "2½"),
    ("x^{-2}", "x⁻²"),
    (r"\frac ab", r"\frac{a}{b}"),
    (r"\frac{1}{2}", r"\frac12"),
    (r"\emptyset", r"\varnothing"),
    (r"\varnothing", r"\emptyset"),
    ("∅", r"\varnothing"),
    ("9.8", r"9.8\ \frac{\text{m}}{\text{s}^2}"),
    ("73", r"\text{73 apples}"),
    ("120000", "12万元"),
    ("12", "１２"),
    ("3", "3千克"),
    ("增函数", r"\text{增函数}"),
    ("(1,2)", "（1，2）"),
    ("$18", "18"),
    ("18.", "18"),
    ("18 dollars", "18"),
    ("+5", "5"),
    ("yes", "Yes"),
    ("18%", "0.18"),
    ("1,000", "1000"),
    (r"\cos 60^\circ", r"\frac{1}{2}"),
    (r"4\sqrt(2)", r"4\sqrt{2}"),
    (r"\{1,2\}", r"\{1,2,2\}"),
    (r"\{2,1\}", r"\{1,2\}"),
    ("theta/2", r"\frac{\theta}{2}"),
    (r"5\%", "5"),
    (r"\text{(C)}", "(C)"),
    ("4", "(D) 4"),
    ("H", r"\text{H}"),
]

DIFFERENT = [
    (r"\textbf{(E)}\ 42", r"\textbf{(E)}\ 43"),
    (r"\textbf{(E)}\ 42", "43"),
    (r"\textbf{(E)}\ 42", "D"),
    ("42", r"\textbf{(E)}\ 43"),
    ("E", r"\textbf{(D)}\ 42"),
    ("10:30 AM", "10:31 AM"),
    ("2:30", "2:03"),
    ("2:30", "3:20"),
    ("12:00", "0:12"),
    ("2e3", "2001"),
    ("2e3", "2e4"),
    ("1e-3", "0.01"),
    ("1e-3", "-1e-3"),
    ("5.3e-11", r"5.4\cdot 10^{-11} \text{ m}"),
    ("6.02e23", "6.02e22"),
    ("2*pi*r", r"2\pi r^2"),
    ("2*pi*r", r"\pi r"),
    ("exp(-2*x)", "e^{2x}"),
    ("ln(x)/x", r"\frac{x}{\ln x}"),
    ("sqrt(3)/2", r"\frac{\sqrt{2}}{3}"),
    ("abs(x)", "x"),
    ("2**10", "2^{11}"),
    ("2**10", "1025"),
    ("x**2 + 1", "x^2-1"),
    (r"\(x^2\)", "x^3"),
    ("$7$", "8"),
    (r"\[ \frac{1}{2} \]", r"\frac{1}{3}"),
    (r"\frac{a}{b} c", r"\frac{a}{b} d"),
    (r"\frac{1}{2}ab", r"\frac{1}{2}"),
    ("2ab", "2"),
    ("10-4t", "6"),
    ("10-4t", "10-4"),
    (r"\angle ABC", r"\angle ACB"),
    ("1, 1, 2", "1, 2"),
    ("1, 2", "1, 1, 2"),
    ("1, 1, 2", "1, 2, 2"),
    ("1, 1, 2", "1, 1, 3"),
    (r"0.\overline{3}", "0.3"),
    (r"0.\overline{36}", r"\frac{4}{10}"),
    (r"0.1\overline{6}", "0.16"),
    ("0<x<12.5", "[0,12.5)"),
    ("0<x<12.5", "(0,12.4)"),
    ("0<x<12.5", r"0<x\le12.5"),
    ("(0,12.5)", r"0<x\le 12.5"),
    (r"m\ge\sqrt2", r"(\sqrt2,\infty)"),
    (r"m\ge\sqrt2", r"(-\infty,\sqrt2]"),
    (r"m\ge\sqrt2", r"m\le\sqrt2"),
    ("x>2", "y>2"),
    ("x>2", "x<2"),
    (r"x<1 \text{ or } x>3", r"(-\infty,1]\cup(3,\infty)"),
    (r"x<1 \text{ or } x>3", r"(-\infty,1)"),
    (r"-1 \le x \le 1", "1"),
    ("5", "x>5"),
    ("5", "x<5"),
    ("x>5", "5"),
    ("(1,2)", "2<x<1"),
    (r"x \neq 2", r"(-\infty,3)\cup(3,\infty)"),
    (r"x \neq 2", "2"),
    (r"x \neq 2", r"(2,\infty)"),
    (r"x<1 \text{ or } x=3", r"(-\infty,1)"),
    (r"x<1 \text{ or } x=3", "3"),
    ("34", r"3\ 4"),
    (r"5 \text{ feet } 6 \text{ inches}", r"5 \text{ feet } 7 \text{ inches}"),
    (r"1 \text{ to } 2", r"2 \text{ to } 1"),
    ("5", r"5 \text{ to } 1"),
    (r"\frac12", r"\frac12\%"),
    ("1,234", "1, 234"),
    ("2 mg", "2"),
    (r"\text{Kim, Luka, Navin}", r"\text{Navin, Luka, Kim}"),
    ("34", r"3\,4"),
    ("34", "3~4"),
    ("ab", r"\text{a}\ \text{c}"),
    ("2:30 AM", "14:30"),
    (r"5\text{ PM}", r"5\text{ AM}"),
    ("3+4i", r"3 - 4 \mathrm{i}"),
    ("(1+i)^2", "-2i"),
    ("73", r"\boldsymbol{37}"),
    (r"\frac12", r"\mathbf{\frac{2}{1}}"),
    (r"\frac\pi4", r"\frac{4}{\pi}"),
    ("P = 4s", "5s"),
    ("4s", "4t"),
    (r"\textbf{(D)}\ (1,2)", "(2,1)"),
    (r"\textbf{(D)}\ 4", r"\textbf{(D)}\ 4 \text{ or more}"),
    (r"13824 \notin A", r"13824 \in A"),
    ("r", "R"),
    (r"\frac{M}{m}", "1"),
    (r"\pi(R^2-r^2)", "0"),
    (r"\frac12 mv^2", r"\frac12 Mv^2"),
    (r"\Delta", r"\delta"),
    (r"x<1 \text{ or } x>3", r"x<1 \text{ and } x>3"),
    (r"a>0 \text{ and } b<0", r"a>0 \text{ or } b<0"),
    (r"n \text{ is even}", r"n \text{ is odd}"),
    (r"3 \text{ hours } 30 \text{ minutes}", "3"),
    (r"m\ge\sqrt2", r"n\in[\sqrt2,\infty)"),
    ("2<y<3", r"x\in(2,3)"),
    (r"\{x \mid 1<x<3\}", r"\{1,3\}"),
    (r"\{x \mid 1<x<3\}", "1,3"),
    (r"1:\sqrt{3}:2", r"1:2:\sqrt{3}"),
    ("2:3:4", "2/3/4"),
    ("f'(x)", "f(x)"),
    (r"0.\overline{142857}", "0.142857"),
    (r"0.666\ldots", "0.666"),
    ("18 eggs", "81"),
    ("x_1", "x₂"),
    ("1:2:3", "2:4:7"),
    (r"\text{Alice and Bob}", "Alice or Bob"),
    ("listen", "silent"),
    (r"\text{listen}", "silent"),
    ("Tuesday, Friday", "Tuesday, Monday"),
    ("no solution", "one solution"),
    ("12 x^2", "12"),
    ("12 cm^2", "144"),
    ("€18", "81"),
    ("2:30", "14:30"),
    (r"\mathrm{e}^2", "e^3"),
    (r"3+4\mathrm{i}", "3-4i"),
    ("42", "**24**"),
    ("42", r"\textbf{24}"),
    ("1/2", "⅓"),
    ("x^2", "x³"),
    (r"\frac ab", r"\frac{b}{a}"),
    (r"\varnothing", "0"),
    ("9.8", r"9.9\ \frac{\text{m}}{\text{s}^2}"),
    ("73", r"\text{37 apples}"),
    ("73", r"\text{73 or 74}"),
    ("12", "12万元"),
    ("12", "１３"),
    ("12", "12元或13元"),
    ("增函数", r"\text{减函数}"),
    ("(1,2)", "（2，1）"),
    ("$18", "81"),
    ("+5", "-5"),
    ("yes", "no"),
    ("18%", "1.8"),
    (r"\sin 30^\circ", r"\frac{\sqrt{3}}{2}"),
    (r"4\sqrt{2}", r"4\sqrt(3)"),
    ("2^{65536}", "2^{2^{17}}"),
    ("infinity", r"-\infty"),
    (r"\text{(C)}", "(D)"),
    (r"\text{A and B}", r"\text{A}"),
    ("C", r"\text{B}"),
    ("true", "false"),
    (r"5.4 \text{ cents}", r"5.4 \text{ cents} \text{ or } \frac{9}{19}"),
    (r"15\mbox{ cm}^2", r"15\mbox{ cm}^2 \lor 137"),
    ("5", r"x = 5 \text{ cm}, x = 6"),
    ("2516_8", r"2516_8 \text{ or \frac{3\sqrt{3}}{4}}"),
    (r"\frac{14}{3}", r"\frac{14}{3} \quad \text{Evelyn}"),
]

MORE_THAN_THE_ANSWER = [
    ("73", r"\text{73 dozen}"),
    ("x>2", r"(2,\infty) \text{ is wrong}"),
    (r"x \in [-2,7]", r"x \in [-2,7] \text{ is wrong}"),
    ("73", r"\text{73 more than that}"),
]
"""Of these the second is a claim of more; the first may leave out what the problem says."""


@pytest.mark.parametrize(("answer", "extracted"), EQUAL)
def test_one_answer_in_two_spellings(answer: str, extracted: str) -> None:
    assert grade(answer, extracted)
    assert grade(extracted, answer)


@pytest.mark.parametrize(("answer", "extracted"), DIFFERENT)
def test_two_answers_that_look_alike(answer: str, extracted: str) -> None:
    assert not grade(answer, extracted)
    with suppress(UnparsableAnswer):
        assert not grade(extracted, answer)


@pytest.mark.parametrize(("answer", "extracted"), MORE_THAN_THE_ANSWER)
def test_a_claim_of_more(answer: str, extracted: str) -> None:
    assert not grade(answer, extracted)


NUMBERS = st.fractions(min_value=-99, max_value=99, max_denominator=20)


@given(st.integers(1, 999), st.integers(-12, 12), st.integers(1, 999), st.integers(-12, 12))
def test_e_notation_is_a_number(number: int, power: int, other: int, shift: int) -> None:
    same = number * Fraction(10) ** power == other * Fraction(10) ** shift
    assert grade(f"{number}e{power}", rf"{other} \times 10^{{{shift}}}") is same
    assert grade(rf"{other} \times 10^{{{shift}}}", f"{number}e{power:+03d}") is same


@given(st.integers(0, 9), st.text("0123456789", max_size=2), st.integers(1, 98), st.booleans())
def test_a_repeating_decimal_is_its_fraction(
    whole: int, before: str, period: int, wrong: bool
) -> None:
    scale = 10 ** len(before)
    value = Fraction(int(f"{whole}{before}"), scale) + Fraction(period, scale * 99)
    value += Fraction(wrong, 7)
    written = rf"{whole}.{before}\overline{{{period:02d}}}"
    assert grade(written, rf"\frac{{{value.numerator}}}{{{value.denominator}}}") is not wrong


ENDS = [("(", ")", "<", "<"), ("[", ")", r"\le", "<"), ("(", "]", "<", r"\leqslant")]


@settings(max_examples=40)
@given(st.sampled_from(ENDS), st.sampled_from(ENDS), st.integers(-9, 9), st.integers(-9, 9))
def test_an_interval_is_its_inequality(
    one: tuple[str, ...], other: tuple[str, ...], low: int, shift: int
) -> None:
    interval = f"{one[0]}{low},{low + 10}{one[1]}"
    inequality = f"{low + shift} {other[2]} x {other[3]} {low + 10}"
    same = one == other and shift == 0
    assert grade(interval, inequality) is same
    assert grade(inequality, interval) is same


@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), st.data())
def test_lists_are_equal_in_any_order_and_with_each_repeat(
    numbers: list[int], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(numbers))
    other = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    listed, mixed, others = (", ".join(map(str, each)) for each in (numbers, shuffled, other))
    assert grade(listed, mixed)
    assert grade(listed, others) is (sorted(numbers) == sorted(other))


@given(st.permutations("ABC"), st.permutations("ABC"))
def test_angles_are_named_by_their_points_in_order(one: list[str], other: list[str]) -> None:
    first, second = "".join(one), "".join(other)
    same = first in (second, second[::-1])
    assert grade(rf"\angle {first}", rf"\angle {second}") is same
    assert grade(first, second) is same


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"), st.integers(0, 2), st.integers(0, 2))
def test_a_choice_is_its_letter_or_its_value(one: str, other: str, value: int, said: int) -> None:
    written = rf"\textbf{{({other})}}\ {said}"
    assert grade(one, written) is (one == other)
    assert grade(str(value), written) is (value == said)
    assert grade(rf"\text{{({one}) }} {value}", written) is ((one, value) == (other, said))


@given(st.integers(1, 12), st.integers(0, 59), st.integers(1, 12), st.integers(0, 59))
def test_times_of_day(hour: int, minute: int, other: int, later: int) -> None:
    same = (hour, minute) == (other, later)
    assert grade(f"{hour}:{minute:02d}", rf"\text{{{other}:{later:02d}}}") is same
    assert grade(f"{hour}:{minute:02d} AM", rf"{other}:{later:02d}\text{{ a.m.}}") is same
    assert not grade(f"{hour}:{minute:02d} AM", f"{other}:{later:02d} PM")
