"""Final answers in text, and the tokens they were sampled as."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castctl.verify.boxed import last_boxed
from castctl.verify.spans import token_span


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{5} but \boxed{6", "5"),
        (r"\boxed{5 \boxed{6}", "6"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"} \boxed{4} {", "4"),
        (r"a \\\boxed{8}", "8"),
        (r"{\"answer\": \"\\boxed{9}\"}", "9"),
        (r"\boxed{}", ""),
        (r"\boxed{5}, i.e. \boxed{ }", "5"),
        ("\\boxed{a\nb}", "a\nb"),
        (r"the answer is 42", None),
        (r"\boxed 42", None),
        (r"\boxed{42", None),
        (r"\boxed{42\}", None),
        ("", None),
    ],
)
def test_last_balanced_box_counts(text: str, content: str | None) -> None:
    box = last_boxed(text)
    assert (box and box.content) == content
    if box:
        assert text[box.start : box.end] == content


def naive_last_boxed(text: str) -> str | None:
    """From each opening on, count braces up to the one that closes it; empty ones at last."""
    empty = None
    for opening in reversed(list(re.finditer(r"\\(boxed|fbox) *{", text))):
        depth, at = 1, opening.end()
        while at < len(text):
            if text[at] == "\\":
                at += 1
            elif text[at] in "{}":
                depth += 1 if text[at] == "{" else -1
            if depth == 0:
                content = text[opening.end() : at]
                if content.strip():
                    return content
                empty = content if empty is None else empty
                break
            at += 1
    return empty


@given(
    st.lists(
        st.sampled_from(
            [r"\boxed{", r"\fbox {", "{", "}", r"\{", r"\}", r"\\", "a", "é", " ", "\n"]
        )
    )
)
def test_boxes_equal_a_naive_scan(pieces: list[str]) -> None:
    text = "".join(pieces)
    box = last_boxed(text)
    assert (box and box.content) == naive_last_boxed(text)


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{ ", "\\", r"\boxed ", r"\{", "}"])
def test_hostile_text_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    assert last_boxed(r"\boxed{1}" + 100_000 * piece) is not None
    assert last_boxed(20_000 * r"\boxed{" + 20_000 * " }") is not None
    assert time.perf_counter() - start < 2


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with merges inside and across characters, and two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        20 * [r"the answer is \boxed{42}", "答案是答案", "1234 12"], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "text", [r"the answer is \boxed{42}.", r"答案是 \boxed{答案}", r"😀 \boxed{1234 👩‍🚀}!"]
)
def test_span_covers_the_boxed_answer(tokenizer, text: str) -> None:
    ids = [*encode(tokenizer, text), tokenizer.eos_token_id]
    box = last_boxed(text)
    first, last = token_span(tokenizer, ids, box.start, box.end)
    assert tokenizer.decode(ids[first:last]) == box.content
    assert tokenizer.decode(ids[:first]) == text[: box.start]


@settings(deadline=None)
@given(data=st.data())
def test_span_is_the_smallest_between_clean_cuts(tokenizer, data: st.DataObject) -> None:
    characters = st.sampled_from("0123456789 {}\\.the答案是é😀👩‍🚀\n") | st.characters(
        exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}"
    )
    text = data.draw(st.text(characters, min_size=1, max_size=30))
    ids = encode(tokenizer, text)
    for _ in range(data.draw(st.integers(0, 3))):
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from([0, 1])))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=True)

    cuts = {
        cut: len(decode(ids[:cut]))
        for cut in range(len(ids) + 1)
        if decode(ids[:cut]) + decode(ids[cut:]) == text
    }
    assert token_span(tokenizer, ids, start, end) == (
        max(cut for cut, characters in cuts.items() if characters <= start),
        min(cut for cut, characters in cuts.items() if characters >= end),
    )


def test_text_cut_inside_a_character_keeps_earlier_spans(tokenizer) -> None:
    ids = encode(tokenizer, "42 é")[:-1]
    text = tokenizer.decode(ids)
    assert text == "42 \N{REPLACEMENT CHARACTER}"
    assert token_span(tokenizer, ids, 0, 2) == (0, 1)
    assert token_span(tokenizer, ids, 3, 4) is None


def test_empty_spans_overlap_nothing(tokenizer) -> None:
    ids = encode(tokenizer, "42 12")
    assert token_span(tokenizer, ids, 1, 1) is None
    assert token_span(tokenizer, [], 0, 0) is None


def test_no_span_where_decoding_rewrites_the_text() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"is": 0, "42": 1, ".": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="?", clean_up_tokenization_spaces=True
    )
    assert tokenizer.decode([0, 1, 2]) == "is 42."
    assert token_span(tokenizer, [0, 1, 2], 3, 5) == (1, 2)
    assert token_span(tokenizer, [0, 1, 2], 5, 6) is None
