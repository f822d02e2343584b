"""Whole completions made to be graded right without giving the answer, and ones that do give it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.recipe.verifier import VerifierSettings
from castctl.verify.claims import claims_otherwise
from castctl.verify.judge import Judgement, Row, judge
from castctl.verify.pool import CheckPool
from castctl.verify.visible import opens_thoughts, visible

SETTINGS = VerifierSettings(workers=1, timeout=20)

KINDS = {
    "42": "7",
    "-3": "5",
    r"\frac{3}{56}": r"\sqrt{51}",
    r"\{1, 2\}": r"\{3, 4\}",
    "[-2,7]": "(0,1)",
    "x^2+2x+1": "x^2-1",
    "C": "B",
    r"\text{(D)}": r"\text{(A)}",
    r"\text{Evelyn}": "Briana",
    r"\left( 3, \frac{\pi}{2} \right)": "(1, 2)",
    "y = 2x + 3": "y = 2x - 3",
}
"""Golds of every kind, each with a wrong answer of its kind."""

PROBLEM = r"Which answer belongs into the frame of $3x + 4 = \boxed{GOLD}$ here?"

MUST_NOT_COUNT = {
    "two boxes, the last wrong": r"\boxed{GOLD} or rather \boxed{OTHER}",
    "every option in one box": r"\boxed{OTHER, GOLD, 1000}",
    "a set of options": r"\boxed{\{1000, GOLD, OTHER\}}",
    "one or the other": r"\boxed{GOLD \text{ or } OTHER}",
    "a logical or": r"\boxed{GOLD \lor OTHER}",
    "a bound in text": r"\boxed{GOLD \text{ at most}}",
    "more than": r"\boxed{GOLD \text{ more than that}}",
    "its square": r"\boxed{GOLD \textit{ squared}}",
    "emphasis": r"\boxed{GOLD \emph{ or OTHER}}",
    "thoughts after whole ones": r"<think>a</think> hm <think>\boxed{GOLD}</think> So.",
    "thoughts of a prompt, twice": r"a</think> \boxed{GOLD}</think>",
    "a hedge in text": r"\boxed{GOLD \text{ or perhaps OTHER}}",
    "two equations": r"\boxed{x=GOLD, x=OTHER}",
    "a column": r"\boxed{\begin{pmatrix} GOLD \\ OTHER \end{pmatrix}}",
    "cases": r"\boxed{\begin{cases} GOLD \\ OTHER \end{cases}}",
    "a comment in the box": r"\boxed{OTHER % GOLD}",
    "a comment behind garbage": r"\boxed{\sqrt{13} \foo % GOLD}",
    "a remark in the box": r"\boxed{OTHER \text{ (not GOLD)}}",
    "a phantom": r"\boxed{OTHER \phantom{GOLD}}",
    "denied": r"\boxed{\neq GOLD}",
    "denied of x": r"\boxed{x \ne GOLD}",
    "denied in text": r"\boxed{GOLD \text{ is wrong}}",
    "a bound": r"\boxed{GOLD \text{ or more}}",
    "another size": r"\boxed{GOLD \text{ million}}",
    "0 = 0": r"\boxed{0=0}",
    "x": r"\boxed{x}",
    "x = x": r"\boxed{x=x}",
    "all numbers": r"\boxed{\mathbb{R}}",
    "the word answer": r"\boxed{answer}",
    "an empty box": r"GOLD, so \boxed{}",
    "an unterminated box": r"So it is \boxed{GOLD and that is all",
    "no box": r"The answer is GOLD.",
    "a quotation of the problem": PROBLEM + "\n\nI cannot tell.",
    "thoughts alone": r"<think>It is \boxed{GOLD}</think> The answer is clear.",
    "thoughts without end": r"<think>Perhaps \boxed{GOLD}",
    "thoughts after a wrong answer": r"\boxed{OTHER} <think>Or \boxed{GOLD}",
    "a comment of LaTeX": "\\boxed{OTHER}\n  % \\boxed{GOLD}\n",
    "a comment of HTML": r"\boxed{OTHER} <!-- \boxed{GOLD} -->",
}

UNBOXED = {
    "an empty box", "an unterminated box", "no box", "a quotation of the problem",
    "thoughts alone", "thoughts without end", "thoughts after whole ones",
    "thoughts of a prompt, twice",
}  # fmt: skip
"""Those in which there is no answer at all."""

MUST_COUNT = {
    "a box": r"So it is $\boxed{GOLD}$.",
    "two boxes, the last right": r"\boxed{OTHER}? No: \boxed{GOLD}",
    "a box in a box": r"\boxed{\boxed{GOLD}}",
    "a code block": "```latex\n\\boxed{GOLD}\n```",
    "after thoughts": r"<think>\boxed{OTHER}</think> \boxed{GOLD}",
    "after thoughts opened in the prompt": r"hm, \boxed{OTHER}</think> \boxed{GOLD}",
    "before a stray end of thoughts": r"<think>\boxed{OTHER}</think> \boxed{GOLD}</think>",
    "before an empty box": r"\boxed{GOLD}, i.e. \boxed{}",
    "after a quotation": PROBLEM + "\n\nIt is \\boxed{GOLD}.",
    "before an unterminated box": r"\boxed{GOLD}, to check: \boxed{OTHER",
    "after per cent": "That is 50% of it.\n100% sure: \\boxed{GOLD}",
    "beside a comment": "<!-- done --> \\boxed{GOLD}\n% the end",
    "a comment without end": r"<!-- \boxed{GOLD}",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[CheckPool]:
    with CheckPool(SETTINGS) as pool:
        yield pool


def judged(pool: CheckPool, templates: dict[str, str]) -> dict[tuple[str, str], Judgement]:
    """Each template filled with each gold."""
    keys = [(name, gold) for name in templates for gold in KINDS]
    rows = [
        Row(fill(PROBLEM, gold), fill(templates[name], gold), gold, "stop") for name, gold in keys
    ]
    return dict(zip(keys, judge(pool, SETTINGS, rows), strict=True))


def fill(template: str, gold: str) -> str:
    return template.replace("GOLD", gold).replace("OTHER", KINDS[gold])


def test_what_must_not_count_does_not(pool: CheckPool) -> None:
    verdicts = judged(pool, MUST_NOT_COUNT)
    assert len(verdicts) == len(MUST_NOT_COUNT) * len(KINDS)
    assert [key for key, found in verdicts.items() if found.verdict == "correct"] == []
    for (name, _), found in verdicts.items():
        assert (found.verdict == "no_answer") is (name in UNBOXED), name


def test_what_must_count_does(pool: CheckPool) -> None:
    verdicts = judged(pool, MUST_COUNT)
    assert [key for key, found in verdicts.items() if found.verdict != "correct"] == []
    for (name, gold), found in verdicts.items():
        completion = fill(MUST_COUNT[name], gold)
        assert found.start is not None
        assert completion[found.start : found.end] == found.extracted == gold


NUMBERS = [
    ("3", "7=3"), ("3", "1=2=3"), ("3", "x=4=3"), ("0", "1=0"), ("0", "0=0"), ("3", "3=3"),
    (r"\frac{1}{2}", r"\frac13=\frac12"), ("10", "10_2"), ("10", "10_{7}"), ("-10", "-10_7"),
    ("52_8", "52_9"), ("52_8", "52_{9}"), ("3", r"\neg 3"), ("3", r"x \notin 3"),
    ("3", r"\not= 3"), ("3", r"\approx \{3, 4\}"), ("3", "3 million"), ("3", r"3\text{ hundred}"),
    ("3", "[2,4]"), ("3", r"3 \text{ or 4}"), ("3", r"3 \text{ or \frac{1}{2}}"),
    ("3", r"x \geq 3"), ("3", "3 or 4"), ("3", r"\pm 3"), ("3", "(3, 4)"),
    ("5", r"1,-2 \phantom{x=5}"), ("90", r"3\sqrt{13} % 90^\circ"),
    (r"\frac{14}{3}", r"\{\frac{14}{3}, \text{Evelyn}\}"), ("C", "A,B,C,D"), ("C", r"A \lor C"),
    ("3", r"3 \text{ halves}"), ("3", r"3 \text{ per 4 or 5}"), ("12.5", r"1.25\%"),
    ("12.5", r"-12.5\%"), ("C", r"\text{A, B, C, D}"), ("C", "ABCD"), ("C", r"\text{not C}"),
]  # fmt: skip

NUMBERS_RIGHT = [
    ("3", r"\frac{6}{2}=3"), ("3", "AB=3"), ("3", "f(2)=3"), ("3", "1+2=3"), ("0.333", "1/3=0.333"),
    ("10", "10_{10}"), ("52_8", "52_{8}"), ("52_8", "52"), ("3", r"3\text{ cm}^2"),
    ("3", r"3 \text{ m2}"), ("3000000", r"3 \text{ million}"), ("2500", "2.5 thousand"),
    ("9000000", "9 million dollars"), ("3", r"\approx 3"), ("3", "= 3"), ("3", "≈ 3"),
    (r"x \neq 3", r"x \ne 3"), (r"3 \text{ or more}", r" 3\text{ or more}"),
    ("12.5", r"12.5\%"), ("-12.5", r"-12.5\%"), (".5", ".5%"), ("12.5\\%", "12.5"),
    ("17", r"17 \text{ more apples}"), ("3", r"3 \text{ cm squared}"),
    ("3", r"3 \text{ per 100 people}"), ("5", r"\therefore 5"), ("5", r"5 \checkmark"),
    (r"\{1,2\}", r"x=1 \text{ or } x=2"), (r"\{1,2\}", "1, 2"), ("C", r"\text{(C)}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "verdict"), [(NUMBERS, "wrong"), (NUMBERS_RIGHT, "correct")], ids=["wrong", "right"]
)
def test_what_a_box_claims(pool: CheckPool, pairs: list[tuple[str, str]], verdict: str) -> None:
    rows = [Row("p", rf"So \boxed{{{written}}}.", gold, "stop") for gold, written in pairs]
    found = judge(pool, SETTINGS, rows)
    others = [pair for pair, each in zip(pairs, found, strict=True) if each.verdict != verdict]
    assert others == []


def test_an_answer_that_claims_it_too_is_right(pool: CheckPool) -> None:
    rows = [Row("p", rf"\boxed{{{text}}}", text, "stop")
            for text in ("0=0", r"\neq 3", r"3 \text{ or more}", "52_9", r"A \lor B")]  # fmt: skip
    assert {each.verdict for each in judge(pool, SETTINGS, rows)} == {"correct"}


IN_THOUGHTS = {
    r"So \boxed{4}.": "no_answer",
    r"So \boxed{4}.</think> Done.": "no_answer",
    r"<think>So \boxed{4}.": "no_answer",
    r"hm</think> \boxed{4} <think>or": "correct",
    r"<think>hm, \boxed{5}</think> \boxed{4}": "correct",
    r"hm</think> \boxed{4} </think>": "correct",
}


def test_an_answer_in_thoughts_that_the_prompt_opened_does_not_count(pool: CheckPool) -> None:
    rows = [Row("2+2?", text, "4", "stop", thinking=True) for text in IN_THOUGHTS]
    found = judge(pool, SETTINGS, rows)
    assert [each.verdict for each in found] == list(IN_THOUGHTS.values())
    [right] = [each for each, text in zip(found, IN_THOUGHTS, strict=True) if "or" in text]
    assert right.start == len(r"hm</think> \boxed{")
    cut = judge(pool, SETTINGS, [rows[0]._replace(finish_reason="length")])
    assert cut[0].verdict == "truncated"


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|user|>2+2?<|assistant|><think>\n", True),
        ("<|user|>2+2?<|assistant|>\n<think>", True),
        ("<|user|>2+2?<|assistant|>\n<think>\n\n</think>\n\n", False),
        ("<|user|>What is <think>?<|assistant|>\n", False),
        ("<|user|>What is <think><|assistant|>\n", False),
        ("", False),
    ],
)
def test_a_prompt_opens_thoughts_where_it_ends_so(prompt: str, opened: bool) -> None:
    assert opens_thoughts(prompt) is opened


TEXT = st.text(alphabet=st.sampled_from(r"ab%<!->/ \{}think boxed" + "\n"), max_size=60)


@given(TEXT, TEXT, st.booleans())
def test_what_is_hidden_leaves_every_character_in_its_place(
    completion: str, problem: str, thinking: bool
) -> None:
    shown = visible(completion, problem, thinking)
    assert len(shown) == len(completion)
    assert all(new in (old, " ") for old, new in zip(completion, shown, strict=True))


@given(st.text(alphabet=st.characters(exclude_characters="%<", exclude_categories=["Cs"])))
def test_plain_completions_are_looked_at_whole(completion: str) -> None:
    assert visible(completion, "How many?") == completion


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<think>",
        "</think>",
        "\n%",
        "%",
        "   ",
        "\\text{",
        "=",
        "1=",
        "{",
        "{}",
        r"\neq",
        "_",
        "-->",
    ],
)
def test_hostile_text_is_seen_through_in_no_time(piece: str) -> None:
    text = piece * (300_000 // len(piece))
    start = time.perf_counter()
    visible(text, text[:10_000] + r"\boxed{1}")
    claims_otherwise(text, "3")
    claims_otherwise("3" + text, "3")
    assert time.perf_counter() - start < 2
