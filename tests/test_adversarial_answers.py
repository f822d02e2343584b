"""Two thousand answers made to hang, crash or fool the grader."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random

import psutil
import pytest

from castctl.recipe.verifier import VerifierSettings
from castctl.verify.grader import grade
from castctl.verify.judge import Judgement, Row, check_error_share, judge
from castctl.verify.pool import CheckPool

SETTINGS = VerifierSettings(workers=2, timeout=1.0, memory_gb=1.0)
COUNT = 2000
START_SECONDS = 6.0
"""Longest time to replace a worker, on a busy machine."""
ANSWER = "12345"
EQUAL = (
    "12345", "{12345}", r"\{12345\}", "|-12345|", "12345, 12345", r"12345\%", "12,345", "012345.",
    r"\frac{12345^{99999}}{12345^{99998}}", "\uff11\uff12\uff13\uff14\uff15",
)  # fmt: skip

TOUCH = "__import__('os').system('touch touched')"
MATRIX = r" \\ ".join(" & ".join(f"x_{{{i}}}^{j}" for i in range(6)) for j in range(6))

FIXED = (
    # towers, factorials, series
    "9^{9^{9}}", "(((9^9)^9)^9)^9", "7**7**7**7", "(-1)^{10^{18}}", "x^{10^{9}}", "10000000!",
    "3!!!!!!!", r"\binom{10^9}{5\cdot 10^8}", r"\prod_{k=1}^{10^9} k", r"\sqrt[10^9]{2}",
    r"\lfloor 10^{10^{8}} / 3 \rfloor", r"\lim_{x\to 0} \frac{\sin(\tan x)-\tan(\sin x)}{x^7}",
    # nesting and size
    2000 * "(" + "1" + 2000 * ")", 30 * r"\frac{1}{1+" + "1" + 30 * "}", 100 * "-" + "1",
    100 * r"\{" + "1" + 100 * r"\}", rf"\begin{{pmatrix}}{MATRIX}\end{{pmatrix}}",
    r"(1,2)\cup" * 50 + "(3,4)", 3000 * "*2", 3000 * "=1", 3000 * "^", r"\pm " * 50 + "1",
    # broken text
    r"\left( 1", r"\sqrt[", "$$$", r"\begin{matrix}", r"\end{matrix}", "%", "_", "^^", "$1$ " * 99,
    r"\circ" * 10000, r"\boxed" * 1000, "", "   \n\t ", "}}}", r"\frac{1}{",
    # other digits, invisible and impossible characters
    "١٢٣٤٥", "①②③④⑤",
    "12345\u202e", "\u206612345", "12\u200b345", "\x00", "12345\x00",
    "\ud800", "12345\udfff", "\x1b[31m12345\x1b[0m",
    # code
    TOUCH, f"1+{TOUCH}", rf"\text{{{TOUCH}}}", "lambda: 12345", "exit()", "sympify('12345')",
    "().__class__.__bases__[0].__subclasses__()", "raise SystemExit", "0x3039", "1_2345", "E",
    "nan", "None", "oo", r"\infty-\infty", "0/0", "0 = 0", "x = x", r"1 \in 2",
    # numbers
    "1e999999999", "1e-999999999", "10^{1e9}", "1" + 20000 * "0", "0." + 10000 * "3",
    "12344.99999999999", "12345i", "-12345", "12345 12345", "12345, 1", r"12345 \text{ or } 1",
    "[12345, 12346]", r"\{x | x>2\}", "9" * 5000, "1.2.3.4.5",
    # long runs
    "1" * 10**6, " " * 10**6, " " * 10**5 + "x", "(" * 10**6, r"\, " * 10**5 + "1", "a" * 10**6,
    "1," * 10**5,
)  # fmt: skip

_ATOMS = (
    ["0", "-1", "2", "3.5", "10", "99", ".5", "x", "y", "n", "e", "i", r"\pi", r"\infty", "C", "I",
     "", " ", r"\text{or}", r"\emptyset", "½", "√2", "\uff11", "\u202e", "\x00", "∞", "90°", "%",
     r"\%", r"\$", "$", "&", "#", "~", ",", ";", "=", "|", "{}", r"\\", r"\,", "!", "^", "_", "'",
     "os"]
)  # fmt: skip
_FORMS = (
    [r"\frac{A}{B}", r"\sqrt{A}", r"\sqrt[A]{B}", "A^{B}", "A_{B}", "A+B", "A-B", r"A \cdot B",
     "A/B", "(A)", "(A, B)", "[A, B)", r"\{A, B\}", r"\left(A\right)", r"\left[A, B\right)", "|A|",
     "A!", r"\binom{A}{B}", r"\sin A", r"\log_{A} B", r"A \cup B", r"A \times 10^{B}", "A=B",
     r"A \le B", r"\text{A}", r"\mathrm{A} B", r"\overline{A}", "AB", "A, B", r"A \pm B", "A B",
     r"\begin{pmatrix} A \\ B \end{pmatrix}", r"\lfloor A \rfloor", r"A \pmod{B}", r"\angle A",
     r"\left(A", "A}", "{A", r"\frac{A}", "A^B^A", r"$A$ and $B$", r"\boxed{A", r"A^\circ"]
)  # fmt: skip


def generated(count: int) -> list[str]:
    """The same distinct answers every time."""
    random = Random(0)

    def answer(depth: int) -> str:
        if not depth or random.random() < 0.5:
            return random.choice(_ATOMS)
        inner = {"A": answer(depth - 1), "B": answer(depth - 1)}
        # Not by `replace`: A and B may stand in what is filled in, and in \begin.
        return "".join(inner.get(c, c) for c in random.choice(_FORMS))

    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(answer(2))
    return list(found)


class Watch(threading.Thread):
    """Watches the memory of this process's next children until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.samples = 0
        self._over = threading.Event()
        self._others = set(psutil.Process().children())
        self._own = psutil.Process().cmdline()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for child in set(psutil.Process().children()) - self._others:
                try:
                    if child.cmdline() == self._own:  # still a copy of this process
                        continue
                    memory = child.memory_info()
                except psutil.NoSuchProcess:
                    continue
                self.most = max(self.most, memory.rss, memory.vms)
                self.samples += 1

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
def test_two_thousand_answers_made_to_break_the_grader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = [*FIXED, *EQUAL]
    answers += generated(COUNT - len(answers))
    rows = [Row("p", rf"\boxed{{{answer}}}", ANSWER, "stop") for answer in answers]
    assert len(rows) == COUNT
    began = time.monotonic()
    with Watch() as watch, CheckPool(SETTINGS) as pool:
        judged = judge(pool, SETTINGS, rows)
    wall = time.monotonic() - began

    verdicts = Counter(judgement.verdict for judgement in judged)
    assert len(judged) == COUNT and set(verdicts) <= {"correct", "wrong", "no_answer", "timeout"}
    check_error_share(judged, SETTINGS)
    right = [a for a, j in zip(answers, judged, strict=True) if j.verdict == "correct"]
    assert {"12345"} < set(right) <= set(EQUAL)  # that one alone needs no worker
    timeouts = verdicts["timeout"]
    assert timeouts > 0
    work = sum(judgement.seconds for judgement in judged)
    replacements = timeouts * START_SECONDS / SETTINGS.workers
    assert wall < work + replacements + 60
    assert watch.samples > 100 and watch.most <= SETTINGS.memory_gb * 2**30
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", ["12345", "0.5", r"\frac{65537}{1009}", "(2, 12345)"])
@pytest.mark.parametrize(
    "joker",
    [
        r"3.5^{\infty^{3.5}}",
        r"3.5^{\infty}",
        r"\infty^{-1/\infty}",
        r"x=3.5^{\infty^{3.5}}",
        r"3.5^{|\infty|^{3.5}}",
        r"3.5^{(\ln \infty)^{3.5}}",
        r"3.5^{(\infty!)^{3.5}}",
        r"3.5^{\max(1,\infty)^{3.5}}",
        r"3.5^{\sqrt{\infty}^{3.5}}",
        r"3.5^{(1/0)^{3.5}}",
        r"3.5^{(-\ln 0)^{3.5}}",
        r"3.5^{(-\infty)^{3.5}}",
        r"3.5^{(e^{\infty})^{3.5}}",
        r"3.5^{\tanh^{-1}(1)^{3.5}}",
        r"3.5^{(\lim_{x \to \infty} x)^{3.5}}",
        r"5 + 3.5^{|\infty|^{3.5}}",
        r"\infty - \infty",
        r"\frac{0}{0}",
    ],
)
def test_infinity_is_not_every_number(answer: str, joker: str) -> None:
    assert not grade(answer, joker)
    assert not grade(answer, rf"(2, {joker})")
    assert grade(r"(-\infty, 5]", r"(-\infty,5.0]") and grade(r"\infty", r"+\infty")


def test_a_crash_in_c_is_the_answers_not_an_error() -> None:
    # Arithmetic out of memory or stack ends a process by a signal; that must not stop a run.
    with CheckPool(SETTINGS) as pool:
        for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
            [outcome] = pool.run([(signal.raise_signal, (number,))])
            assert outcome.kind == "timeout"
            assert outcome.message == f"the worker died of signal {int(number)}"
        for number in (signal.SIGKILL, signal.SIGTERM):  # from outside: they tell nothing of it
            [outcome] = pool.run([(signal.raise_signal, (number,))])
            assert outcome.kind == "error"


def test_answers_that_cannot_be_printed_are_judged() -> None:
    texts = ["\ud800", "\udfff1", "\x00", "\x1b]52;c;aGk=\x07", "\u202e5", "5"]
    rows = [Row(text, rf"\boxed{{{text}}}", "5", "stop") for text in texts]
    with CheckPool(SETTINGS) as pool:
        judged: list[Judgement] = judge(pool, SETTINGS, rows)
    assert [judgement.verdict for judgement in judged] == ["wrong"] * 5 + ["correct"]
    assert [judgement.extracted for judgement in judged] == texts
