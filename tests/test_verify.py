"""Checks in killable workers, and the verdicts they lead to."""

from __future__ import annotations

import ast
import math
import operator
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.verifier import VerifierSettings
from castctl.verify.custom import CustomVerifier, load_verifier
from castctl.verify.golds import gold_notes
from castctl.verify.grader import UnparsableAnswer, grade
from castctl.verify.judge import (
    Judgement,
    Row,
    check_error_share,
    equivalent,
    grader_name,
    judge,
)
from castctl.verify.plain import same_plainly
from castctl.verify.pool import CheckPool

SETTINGS = VerifierSettings(workers=2, timeout=1.5)
ONE_WORKER = VerifierSettings(workers=1, timeout=10)


@pytest.fixture(scope="module")
def pool() -> Iterator[CheckPool]:
    with CheckPool(SETTINGS) as pool:
        yield pool


@pytest.fixture
def verifier(tmp_path: Path) -> Callable[[str], str]:
    """Writes a verifier file with this source and gives its `function` setting."""

    def write(source: str) -> str:
        file = tmp_path / "my_verifier.py"
        file.write_text(source)
        return f"{file}:check"

    return write


@pytest.mark.parametrize(
    ("answer", "extracted", "equal"),
    [
        ("204", "204", True),
        ("204", " 204. ", True),
        ("204", "240", False),
        ("1000", "1{,}000", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"(x+1)^2", "x^2+2x+1", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(\pi/2, 3)", False),
        (r"[-2,7]", r"x \in [-2,7]", True),
        (r"\{1, 2\}", "2, 1", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{(C)}", "C", True),
        ("C", "D", False),
        (r"90^\circ", "90", True),
        (r"\$18.90", "18.9", True),
        ("7", "", False),
        ("7", "}{", False),
        ("答案", "答案", True),
    ],
)
def test_grade(answer: str, extracted: str, equal: bool) -> None:
    assert grade(answer, extracted) is equal


WHOLE = st.integers(-(10**40), 10**40) | st.integers(-20, 20)


@settings(max_examples=60)
@given(one=WHOLE, near=st.sampled_from([0, 1, -1, 10, 10**9]), negate=st.booleans())
def test_whole_numbers_are_one_where_math_verify_says_so(one: int, near: int, negate: bool) -> None:
    other = (-1 if negate else 1) * (one + near)
    first, second = (parse(rf"\boxed{{{n}}}", parsing_timeout=None) for n in (one, other))
    same = verify(first, second, timeout_seconds=None)
    assert same_plainly(str(one), f" {other} ") is same is (one == other)


def test_other_texts_are_left_to_math_verify() -> None:
    for one, other in [
        ("7", "07"),
        ("0", "-0"),
        ("7", "7.0"),
        ("7", "+7"),
        ("7", "\u0667"),
        ("x", "y"),
    ]:
        assert same_plainly(one, other) is None and same_plainly(other, one) is None
    assert same_plainly(r"\sqrt{2}", r" \sqrt{2}") is True


def test_whole_numbers_start_no_worker() -> None:
    before = set(psutil.Process().children())
    rows = [Row("p", rf"\boxed{{{n}}}", "7", "stop") for n in (7, 8)]
    with CheckPool(SETTINGS) as pool:
        assert [each.verdict for each in judge(pool, SETTINGS, rows)] == ["correct", "wrong"]
        assert set(psutil.Process().children()) == before


def test_an_answer_that_cannot_be_read_is_only_equal_to_itself() -> None:
    assert grade("}", "}")
    with pytest.raises(UnparsableAnswer, match="cannot read"):
        grade("}", "5")


def test_outcomes_keep_the_order_of_calls(pool: CheckPool) -> None:
    done: list[None] = []
    outcomes = pool.run(
        [(time.sleep, (0.3,)), *((operator.mul, (n, n)) for n in range(50))],
        on_done=lambda: done.append(None),
    )
    assert [outcome.value for outcome in outcomes] == [None, *(n * n for n in range(50))]
    assert {outcome.kind for outcome in outcomes} == {"value"}
    assert outcomes[0].seconds == pytest.approx(0.3, abs=0.2)
    assert len(done) == 51


def test_every_way_to_fail_is_an_outcome(pool: CheckPool) -> None:
    exception, leaving, death, memory, stack, fine = pool.run(
        [
            (operator.truediv, (1, 0)),
            (sys.exit, (0,)),
            (os._exit, (3,)),
            (bytearray, (2**40,)),
            (eval, ("(lambda f: f(f))(lambda f: f(f))",)),
            (operator.add, (1, 1)),
        ]
    )
    assert (exception.kind, exception.message) == ("error", "ZeroDivisionError: division by zero")
    assert (leaving.kind, leaving.message) == ("error", "SystemExit: 0")
    assert (death.kind, death.message) == ("error", "the worker died (exit code 3)")
    assert memory.kind == stack.kind == "timeout"
    assert "MemoryError" in memory.message and "RecursionError" in stack.message
    assert fine.value == 2


def test_a_slow_call_is_killed_and_holds_up_no_other(pool: CheckPool) -> None:
    start = time.perf_counter()
    moments: list[float] = []
    slow, *others = pool.run(
        [(time.sleep, (60,)), *((operator.neg, (n,)) for n in range(200))],
        on_done=lambda: moments.append(time.perf_counter() - start),
    )
    assert (slow.kind, slow.message) == ("timeout", "no verdict in 1.5 s")
    assert 1.5 <= slow.seconds < 2.5
    assert [outcome.value for outcome in others] == [-n for n in range(200)]
    assert moments[-2] < 1.5 <= moments[-1] < 4


def test_each_call_has_the_whole_time(pool: CheckPool) -> None:
    outcomes = pool.run([(time.sleep, (0.6 + n / 1000,)) for n in range(6)])
    assert {outcome.kind for outcome in outcomes} == {"value"}


def test_equal_calls_run_once_and_are_remembered() -> None:
    with CheckPool(ONE_WORKER) as pool:
        first, second = pool.run([(time.perf_counter_ns, ())] * 2)
        [third] = pool.run([(time.perf_counter_ns, ())])
        assert first == second == third
        errors = [pool.run([(eval, ("1 / 0",))])[0] for _ in range(2)]
        assert errors[0].seconds != errors[1].seconds
        power, exponential = pool.run([(math.pow, (2, 3)), (operator.pow, (2, 3))])
        assert [type(outcome.value) for outcome in (power, exponential)] == [float, int]


def test_a_worker_that_keeps_memory_is_replaced(verifier: Callable[[str], str]) -> None:
    # Kept memory would make later checks fail: every check must have its share.
    source = "kept = []\ndef check(p, c, a):\n    kept.append(bytearray(200 * 2**20))\n    return 1"
    hoard = CustomVerifier(verifier(source))
    with CheckPool(VerifierSettings(workers=1, memory_gb=0.5)) as pool:
        outcomes = pool.run([(hoard, (str(n), "", None)) for n in range(3)])
    assert [outcome.value for outcome in outcomes] == [1.0] * 3


def test_workers_stay_light() -> None:
    watched = {"math_verify", "torch", "transformers", "pydantic"}
    loaded = f"{watched} & set(__import__('sys').modules)"
    with CheckPool(ONE_WORKER) as pool:
        pool.run([(grade, ("1", "2"))])
        assert pool.run([(eval, (loaded,))])[0].value == {"math_verify"}


def test_importing_the_room_is_light() -> None:
    code = (
        "import castctl.recipe.recipe, castctl.verify.judge, sys;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_leaving_and_errors_end_the_workers() -> None:
    def stop() -> None:
        raise RuntimeError("stop")

    before = set(psutil.Process().children())
    with CheckPool(SETTINGS) as pool:
        with pytest.raises(RuntimeError, match="stop"):
            pool.run([(time.sleep, (0,)), (time.sleep, (60,))], on_done=stop)
        assert set(psutil.Process().children()) == before
        assert pool.run([(operator.add, (1, 2))])[0].value == 3
        assert set(psutil.Process().children()) > before
    assert set(psutil.Process().children()) == before


SCRIPT = """
import psutil, signal, time
from castctl.recipe.verifier import VerifierSettings
from castctl.verify.pool import CheckPool

def workers():
    print([child.pid for child in psutil.Process().children()], flush=True)

# No main guard: workers do not import the script.
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
with CheckPool(VerifierSettings(timeout={timeout})) as pool:
    pool.run([(time.sleep, (0,)), (time.sleep, (60,)), (time.sleep, (61,))], on_done=workers)
"""


DYING = """
import os, sys
def end(number, frame):
    print("ended", file=sys.stderr, flush=True)
    os._exit(1)
signal.signal(signal.SIGTERM, end)
"""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def interrupt(
    script: Path, timeout: float, stop: Callable[[int], None], text: str = SCRIPT
) -> tuple[str, float]:
    """Stop the script while its two workers are busy: its stderr, and how long they outlive it."""
    script.write_text(text.format(timeout=timeout))
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        workers = [psutil.Process(pid) for pid in ast.literal_eval(parent.stdout.readline())]
        assert len(workers) == 2
        time.sleep(0.5)  # until both are at their long calls
        stop(parent.pid)
        start = time.perf_counter()
        errors = parent.communicate(timeout=30)[1]
        while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
            assert time.perf_counter() - start < 10
            time.sleep(0.05)
        return errors, time.perf_counter() - start


def test_ctrl_c_ends_parent_and_workers(tmp_path: Path) -> None:
    errors, seconds = interrupt(
        tmp_path / "script.py", 60, lambda pid: os.killpg(pid, signal.SIGINT)
    )
    assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt")
    assert seconds < 3


def test_workers_of_a_killed_parent_end(tmp_path: Path) -> None:
    """One sleeps and one computes in C, where no Python of its own could end it."""
    script = SCRIPT.replace("(time.sleep, (61,))", "(pow, (3, 10**9))")
    _, seconds = interrupt(tmp_path / "script.py", 60, kill, script)
    assert seconds < 2


def test_a_call_is_not_failed_where_a_signal_ends_worker_and_parent(tmp_path: Path) -> None:
    """The worker is told first; its call would be an error in a part that is whole."""
    script = SCRIPT.replace("with CheckPool", DYING + "with CheckPool")

    def stop(pid: int) -> None:
        psutil.Process(pid).children()[0].terminate()
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)

    errors, seconds = interrupt(tmp_path / "script.py", 60, stop, script)
    assert errors.strip() == "ended" and seconds < 2


def test_a_worker_that_cannot_start_is_the_users_to_mend() -> None:
    with (
        CheckPool(VerifierSettings(memory_gb=0.001)) as pool,
        pytest.raises(UserError, match=r"verifier\.memory_gb"),
    ):
        pool.run([(grade, ("1", "2"))])


@pytest.mark.slow
def test_hostile_answers_end_and_delay_nothing(pool: CheckPool, tmp_path: Path) -> None:
    touch = f"__import__('os').system('touch {tmp_path}/touched')"
    hostile = [
        "9^{9^{9}}",
        "10000000!",
        2000 * "(" + "1" + 2000 * ")",
        r"\int_0^1 \frac{\sin(x^x) \ln(1+x^{\pi})}{\sqrt{1+x^7+e^{x^3}}} dx",
        touch,
        rf"\text{{{touch}}}",
        f"1+{touch}",
    ]
    rows = [Row("p", rf"\boxed{{{text}}}", "12345", "stop") for text in hostile]
    easy = [Row("p", rf"\boxed{{{n}.5}}", f"{n + 1}.5", "stop") for n in range(20)]
    start = time.perf_counter()
    judgements = judge(pool, SETTINGS, rows + easy)
    # A worker that is killed takes seconds to replace on a busy machine.
    assert time.perf_counter() - start < len(hostile) * (SETTINGS.timeout + 6)
    assert {judgement.verdict for judgement in judgements[: len(hostile)]} <= {"timeout", "wrong"}
    assert {judgement.verdict for judgement in judgements[len(hostile) :]} == {"wrong"}
    assert {judgement.reward for judgement in judgements} == {0.0}
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("completion", "answer", "finish_reason", "verdict", "reward"),
    [
        (r"so \boxed{1/2}", "0.5", "stop", "correct", 1.0),
        (r"so \boxed{1/3}", "0.5", "stop", "wrong", 0.0),
        (r"so \boxed{1/2} and", "0.5", "length", "correct", 1.0),
        ("so 1/2", "0.5", "stop", "no_answer", 0.0),
        (r"so \boxed{ }", "0.5", "stop", "no_answer", 0.0),
        (r"so \boxed{1/", "0.5", "length", "truncated", 0.0),
        ("", "0.5", "stop", "no_answer", 0.0),
        (r"so \boxed{9^{9^{9}}}", "0.5", "stop", "timeout", 0.0),
        (r"so \boxed{1/2}", "0.5", "error", "error", None),
        (r"so \boxed{1/2}", None, "stop", "error", None),
        (r"so \boxed{1/2}", "}", "stop", "error", None),
    ],
)
def test_verdicts(
    pool: CheckPool,
    completion: str,
    answer: str | None,
    finish_reason: str,
    verdict: str,
    reward: float | None,
) -> None:
    [judgement] = judge(pool, SETTINGS, [Row("p", completion, answer, finish_reason)])
    assert (judgement.verdict, judgement.reward) == (verdict, reward)
    assert (judgement.message is not None) == (verdict in ("timeout", "error"))
    if verdict in ("correct", "wrong", "timeout"):
        assert completion[judgement.start : judgement.end] == judgement.extracted
    else:
        assert judgement.extracted is None or verdict == "error"


def test_progress_counts_every_row(pool: CheckPool) -> None:
    done: list[None] = []
    completions = [r"\boxed{1}", r"\boxed{1.0}", "none", r"\boxed{2}", r"\boxed{2.5}"]
    rows = [Row("p", completion, "1", "stop") for completion in completions]
    judgements = judge(pool, SETTINGS, rows, on_done=lambda: done.append(None))
    assert [judgement.reward for judgement in judgements] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert len(done) == 5


def test_equivalent_pairs(pool: CheckPool) -> None:
    pairs = [("1/2", "0.5"), ("1", "2"), ("}", "1"), ("0.5", "9^{9^{9}}")]
    assert equivalent(pool, pairs) == [True, False, False, False]


def test_a_custom_verifier_gives_the_reward(verifier: Callable[[str], str]) -> None:
    spec = verifier(
        "import time\n"
        "def check(problem, completion, answer):\n"
        "    if completion == 'hang': time.sleep(60)\n"
        "    return {'half': 0.5, 'yes': True, 'minus': -1, 'nan': float('nan')}[completion]\n"
    )
    settings = VerifierSettings(workers=2, timeout=1, function=spec)
    completions = ["half", "yes", "minus", "nan", "hang", r"\boxed{unknown}"]
    with CheckPool(settings) as pool:
        rows = [Row("p", completion, None, "stop") for completion in completions]
        judgements = judge(pool, settings, rows)
    assert [(judgement.verdict, judgement.reward) for judgement in judgements] == [
        ("wrong", 0.5),
        ("correct", 1.0),
        ("wrong", -1.0),
        ("error", None),
        ("timeout", 0.0),
        ("error", None),
    ]
    assert judgements[-1].extracted == "unknown"
    assert "KeyError" in judgements[-1].message


def test_imports_of_a_custom_verifier_are_not_on_the_clock(verifier: Callable[[str], str]) -> None:
    source = "import time\ntime.sleep(0.6)\ndef check(p, c, a):\n    return 1"
    settings = VerifierSettings(workers=1, timeout=0.5, function=verifier(source))
    with CheckPool(settings) as pool:
        [judgement] = judge(pool, settings, [Row("p", "c", None, "stop")])
    assert judgement.verdict == "correct"


def test_a_relative_path_is_read_from_here(
    verifier: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(verifier("def check(p, c, a):\n    return 1")).parent
    monkeypatch.chdir(folder)
    settings = VerifierSettings(workers=1, function="my_verifier.py:check")
    with CheckPool(settings) as pool:
        [judgement] = judge(pool, settings, [Row("p", "c", None, "stop")])
    assert judgement.reward == 1.0


def test_an_installed_verifier_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_checks.py").write_text("def check(p, c, a):\n    return len(c)")
    metadata = tmp_path / "some_checks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-checks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[castctl.verifiers]\nlong = some_checks:check\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = VerifierSettings(workers=1, function="long")
    with CheckPool(settings) as pool:
        [judgement] = judge(pool, settings, [Row("p", "four", None, "stop")])
    assert judgement.reward == 4.0
    assert grader_name(settings) == "long 1.0"


def test_the_record_tells_an_edited_verifier_from_what_it_was(
    verifier: Callable[[str], str],
) -> None:
    source = "def check(p, c, a):\n    return 1"
    before = grader_name(VerifierSettings(function=verifier(source)))
    assert re.fullmatch(r"my_verifier\.py:check [0-9a-f]{8}", before)
    assert grader_name(VerifierSettings(function=verifier(source))) == before
    assert grader_name(VerifierSettings(function=verifier(source + "0"))) != before


def test_the_record_names_math_verify_and_the_rules_around_it() -> None:
    assert re.fullmatch(r"math-verify [0-9.]+, rules [0-9]+", grader_name(VerifierSettings()))


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        ("def check(p, c, a): return 1", "other", "has no function 'other'"),
        ("check = 3", "check", "is not a function"),
        ("def check(p): return 1", "check", r"must take \(problem, completion, answer\)"),
        ("def check(:", "check", "does not load: SyntaxError"),
        ("import no_such_module", "check", "does not load: ModuleNotFoundError"),
    ],
)
def test_a_bad_verifier_file_is_named_in_one_line(
    verifier: Callable[[str], str], source: str, name: str, problem: str
) -> None:
    spec = verifier(source).replace(":check", f":{name}")
    with pytest.raises(UserError, match=problem) as caught:
        load_verifier(spec)
    assert "my_verifier.py" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["missing.py:check", "no-such-entry-point", "notes.txt:check"])
def test_a_verifier_that_does_not_exist(spec: str) -> None:
    with pytest.raises(UserError, match=spec.partition(":")[0]):
        load_verifier(spec)


def test_too_many_errors_stop_the_stage() -> None:
    judgements = [
        *(Judgement(1.0, "correct") for _ in range(8)),
        Judgement(None, "error", message="rare"),
        *(Judgement(None, "error", message="common") for _ in range(2)),
    ]
    check_error_share(judgements, VerifierSettings(max_error_share=3 / 11))
    check_error_share([], VerifierSettings(max_error_share=0))
    with pytest.raises(UserError, match=r"27\.3%.*verifier\.max_error_share=0\.2.*common"):
        check_error_share(judgements, VerifierSettings(max_error_share=0.2))


def test_part_of_the_credit_is_not_correct_unless_said_so(
    verifier: Callable[[str], str],
) -> None:
    spec = verifier("def check(problem, completion, answer):\n    return float(completion)\n")
    rows = [Row("p", text, None, "stop") for text in ("0.1", "0.5", "1", "-1", "1.5")]
    for least, expected in ((1.0, "wwcwc"), (0.5, "wccwc"), (2.0, "wwwww"), (0.1, "cccwc")):
        settings = VerifierSettings(workers=1, function=spec, correct_from=least)
        with CheckPool(settings) as pool:
            judged = judge(pool, settings, rows)
        assert "".join(each.verdict[0] for each in judged) == expected
        assert [each.reward for each in judged] == [0.1, 0.5, 1.0, -1.0, 1.5]


def test_answers_that_nothing_can_meet_are_counted_and_named() -> None:
    prose = "She has 16 - 3 - 4 eggs left and sells every one of them for two dollars"
    good = ["18", "3/4", "2:30", r"\frac{1}{2}", "$18", "1e-05", "(C)", "yes", "x>2", None]
    assert gold_notes(good, VerifierSettings(workers=1), Silent()) == []
    [note] = gold_notes([*good, prose, "}", "{", "{", prose], VerifierSettings(), Silent())
    assert note.startswith("5 of 15 answers cannot be read as an answer")
    assert all(repr(answer[:60]) in note for answer in (prose, "}", "{"))
    assert gold_notes(["}"], VerifierSettings(function="f.py:f"), Silent()) == []
