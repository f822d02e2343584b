"""`verifier.box_within_last`: a box must begin within the last share of the completion's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.recipe import Recipe
from castctl.recipe.verifier import VerifierSettings
from castctl.shards.metadata import parse_metadata
from castctl.stages.evaluate.rescore import rescore
from castctl.stages.score.rewards import rows_to_judge
from castctl.verify.judge import Judgement, Row, grader_name, judge, judging_pool
from castctl.verify.pool import CheckPool
from castctl.verify.spans import last_begins
from conftest import Cli
from servers import Server, adds
from test_answer_spans import TOKENIZERS, encode

SETTINGS = VerifierSettings(workers=1, timeout=20, box_within_last=0.25)
EOS = 0


@pytest.fixture(scope="module")
def pool() -> Iterator[CheckPool]:
    with judging_pool(SETTINGS) as pool:
        yield pool


def judged(
    pool: CheckPool, text: str, finish_reason: str = "stop", settings: VerifierSettings = SETTINGS
) -> Judgement:
    """The judgement of a completion of bytes, each of which is a token, and no stop token."""
    ids = encode(TOKENIZERS["bytes"], text)
    assert len(ids) == len(text.encode())
    table = pa.table(
        {
            "problem": ["p"], "completion": [text], "answer": ["5"],
            "finish_reason": [finish_reason], "prompt_token_ids": [[1]],
            "completion_token_ids": pa.array([ids], pa.list_(pa.int32())),
        }
    )  # fmt: skip
    return judge(pool, settings, rows_to_judge(table, TOKENIZERS["bytes"], settings))[0]


@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.text("a é答😀{}\n", max_size=30),
    st.text("a é答😀 ", max_size=30),
    st.floats(0.01, 1),
    st.booleans(),
)
def test_where_the_last_share_begins(
    name: str, before: str, after: str, share: float, stops: bool
) -> None:
    """Against the number of the token that holds the box's backslash, by the tokenizer itself."""
    tokenizer = TOKENIZERS[name]
    text = rf"{before}\boxed{{5}}{after}"
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [*read["input_ids"], *([EOS] if stops else [])]
    holds = [start <= len(before) < end for start, end in read["offset_mapping"]]
    place = holds.index(True)
    late = len(ids) - place <= share * len(ids) + 1e-6
    assert (len(before) >= last_begins(tokenizer, ids, share)) == late


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (27, 0, "correct"),  # 9 of 36 tokens
        (26, 0, "wrong"),  # 9 of 35
        (27, 1, "wrong"),
        (0, 0, "wrong"),  # nothing but the box
    ],
)
def test_the_edges(pool: CheckPool, before: int, after: int, verdict: str) -> None:
    text = "a" * before + r"\boxed{5}" + "b" * after
    found = judged(pool, text)
    assert (found.verdict, found.reward) == (verdict, float(verdict == "correct"))
    assert found.extracted == "5" and text[found.start : found.end] == "5"
    assert judged(pool, text, settings=VerifierSettings(workers=1)).verdict == "correct"


def test_the_box_is_what_begins_late_not_its_content(pool: CheckPool) -> None:
    r"""Of `\boxed  {5}` the content begins where it would be late enough."""
    assert judged(pool, "a" * 36 + r"\boxed   {5}").verdict == "correct"
    assert judged(pool, "a" * 35 + r"\boxed   {5}").verdict == "wrong"
    assert judged(pool, "a" * 20 + r"\boxed{\fbox{5}}").verdict == "correct", "the inner one"
    assert judged(pool, "a" * 19 + r"\boxed{\fbox{5}}").verdict == "wrong"


def test_the_last_box_counts_and_what_has_none_is_as_ever(pool: CheckPool) -> None:
    early = r"\boxed{5}" + "a" * 30
    assert judged(pool, early, "length").verdict == "wrong"
    assert judged(pool, early + r"\boxed{5}").verdict == "correct"
    assert judged(pool, early + r"\boxed{6}").verdict == "wrong"
    assert judged(pool, "a" * 30, "length").verdict == "truncated"
    assert judged(pool, "a" * 30).verdict == "no_answer"
    assert judged(pool, early, "error").verdict == "error"


def test_text_alone_is_refused_in_one_line(
    pool: CheckPool, castctl: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="counts tokens, and these completions are text alone"):
        judge(pool, SETTINGS, [Row("p", r"\boxed{5}", "5", "stop")])
    Path("made.jsonl").write_text('{"problem": "p", "completion": "\\\\boxed{5}", "answer": 5}\n')
    with pytest.raises(UserError, match="box_within_last=null"):
        rescore(Path("made.jsonl"), Recipe(verifier=SETTINGS), progress=Silent())
    assert not list(Path().glob("runs/*"))
    Path("sums.jsonl").write_text('{"problem": "1+1?", "answer": 2}\n')
    with Server(adds) as server:
        done = castctl("eval", "sums.jsonl", "--endpoint", server.url, "-k", "1",
                       "--set", "verifier.box_within_last=0.05", code=2)  # fmt: skip
        assert "a server gives text alone" in done.stderr
        assert not [request for request in server.requests if "completions" in request.path]


def test_a_verifier_of_ones_own_reads_no_box() -> None:
    with pytest.raises(ValidationError, match="leave box_within_last out"):
        VerifierSettings(function="mine.py:grade", box_within_last=0.05)
    for share in (0.0, 1.5):
        with pytest.raises(ValidationError, match="box_within_last"):
            VerifierSettings(box_within_last=share)


def test_the_record_says_it_and_older_parts_are_as_without_it() -> None:
    assert grader_name(SETTINGS).endswith("a box within the last 0.25 of the tokens")
    assert "box" not in grader_name(VerifierSettings())
    older = parse_metadata(b'{"stage": "rewards", "verifier": {"function": null}}')
    assert older["verifier"] == {"function": None, "box_within_last": None}
