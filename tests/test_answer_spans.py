"""Where a completion's reasoning ends, in the tokens that were sampled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from castctl.verify.boxed import last_boxed
from castctl.verify.spans import AnswerSpan, answer_parts, token_span

CONCLUDE = "The final answer is"
CORPUS = [r"so 6*7=42. The final answer is \boxed{42}.", r"\boxed{\frac{1}{2}}", "答案是答案 42"]


def byte_level(vocabulary: int, split: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the corpus; unsplit, its tokens run across words and braces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(20 * CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


TOKENIZERS = {
    "bytes": byte_level(258, split=True),
    "words": byte_level(330, split=True),
    "runs": byte_level(300, split=False),
}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def parts_of(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], conclude: str | None
) -> AnswerSpan | None:
    """The parts of a completion whose answer is what the verifier extracts."""
    box = last_boxed(tokenizer.decode(ids, skip_special_tokens=True))
    span = box and token_span(tokenizer, ids, box.start, box.end)
    return answer_parts(tokenizer, ids, *(span or (None, None)), conclude)


@pytest.mark.parametrize("name", ["bytes", "words"])
@pytest.mark.parametrize(
    ("text", "conclude", "reasoning"),
    [
        (r"6*7=42. The final answer is \boxed{42}.", CONCLUDE, "6*7=42. "),
        (r"6*7=42. The final answer is \boxed{42}.", None, "6*7=42. The final answer is "),
        (r"6*7=42. So \boxed{42}. The final answer is it.", CONCLUDE, "6*7=42. So "),
        (
            r"The final answer is 4. No. The final answer is 5: \boxed{5}",
            CONCLUDE,
            "The final answer is 4. No. ",
        ),
        (r"\boxed{1}? No: \fbox {\frac{1}{2}}", CONCLUDE, r"\boxed{1}? No: "),
        (r"答案是 é😀 \boxed{\frac{答案}{2}}😀", "答案是", ""),
        (r"é😀答案是 \boxed{答案}", "答案是", "é😀"),
        (r"\boxed{5 \boxed{6}", None, r"\boxed{5 "),
        (r"\boxed{42}", CONCLUDE, ""),
    ],
)
def test_reasoning_ends_at_the_conclusion_or_the_box(
    name: str, text: str, conclude: str | None, reasoning: str
) -> None:
    tokenizer = TOKENIZERS[name]
    # Encoded apart, so that no token runs across the border.
    ids = [*encode(tokenizer, reasoning), *encode(tokenizer, text[len(reasoning) :]), 0]
    box = last_boxed(text)
    assert box is not None
    parts = parts_of(tokenizer, ids, conclude)
    assert parts is not None
    assert tokenizer.decode(ids[: parts.reasoning_end]) == reasoning
    assert box.content in tokenizer.decode(ids[parts.answer_start : parts.answer_end])
    assert parts.answer_start >= parts.reasoning_end


def test_a_token_across_the_border_is_no_reasoning() -> None:
    tokenizer = TOKENIZERS["runs"]
    ids = encode(tokenizer, r"1+1 is \boxed{\frac{1}{2}}")
    pieces = [tokenizer.decode([id]) for id in ids]
    [across] = [i for i, piece in enumerate(pieces) if "\\boxed" in piece or piece == r" \bo"]
    assert pieces[across].startswith(" "), pieces
    parts = parts_of(tokenizer, ids, None)
    assert parts is not None and parts.reasoning_end == across


def test_a_token_may_hold_the_box_and_the_answer() -> None:
    """One token for each of these words; the answer's own token opens its box."""
    words = ["<eos>", "so ", "yes ", r"\boxed{4", r"it is \boxed{4", "2", "}"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    assert tokenizer.decode([1, 3, 5, 6]) == r"so \boxed{42}"
    assert parts_of(tokenizer, [1, 3, 5, 6], None) == AnswerSpan(1, 1, 3)
    assert parts_of(tokenizer, [1, 3, 5, 6], r"so \boxed{") == AnswerSpan(0, 1, 3)
    assert parts_of(tokenizer, [1, 2, 4, 5, 6], None) == AnswerSpan(2, 2, 4)
    assert parts_of(tokenizer, [1, 2, 4, 5, 6], "yes") == AnswerSpan(1, 2, 4)
    assert parts_of(tokenizer, [1, 2, 4, 5, 6], "it is") == AnswerSpan(2, 2, 4)
    assert parts_of(tokenizer, [1, 2, 4, 5, 6], "42") == AnswerSpan(2, 2, 4)


def test_no_box_leaves_the_answer_itself() -> None:
    """As after a verifier of one's own that finds its answer elsewhere."""
    tokenizer = TOKENIZERS["bytes"]
    ids = encode(tokenizer, "6*7=42")
    assert answer_parts(tokenizer, ids, 4, 6, CONCLUDE) == AnswerSpan(4, 4, 6)
    assert answer_parts(tokenizer, ids, 4, 6, "=") == AnswerSpan(3, 4, 6)
    assert answer_parts(tokenizer, ids, 4, 6, "4") == AnswerSpan(4, 4, 6)
    assert answer_parts(tokenizer, ids, 4, 6, "") == AnswerSpan(4, 4, 6)


def test_no_answer_has_no_parts() -> None:
    tokenizer = TOKENIZERS["words"]
    ids = encode(tokenizer, r"So 42. \boxed{42")
    assert parts_of(tokenizer, ids, CONCLUDE) is None
    assert parts_of(tokenizer, [], CONCLUDE) is None
    for start, end in ((None, 3), (2, None), (2, 2), (3, 2), (-1, 2), (0, len(ids) + 1)):
        assert answer_parts(tokenizer, ids, start, end, CONCLUDE) is None


def test_no_parts_where_decoding_rewrites_the_text_before_the_answer() -> None:
    backend = Tokenizer(models.WordLevel({"is": 0, "42": 1, ".": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="?", clean_up_tokenization_spaces=True
    )
    assert tokenizer.decode([0, 2, 1]) == "is. 42"
    assert answer_parts(tokenizer, [0, 1, 2], 1, 2) == AnswerSpan(1, 1, 2)
    assert answer_parts(tokenizer, [0, 2, 1], 2, 3) is None


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_the_border_is_the_last_clean_cut_before_it(data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from(list(TOKENIZERS.values())))
    fragments = st.sampled_from(
        [
            CONCLUDE,
            r"\boxed{",
            r"\fbox{",
            "}",
            "{",
            "42",
            " ",
            "答案",
            "😀",
            "is",
            ". ",
            r"\frac{1}",
        ]
    )
    pieces = data.draw(st.lists(fragments, max_size=9))
    text = "".join(
        [*pieces, r"\boxed{", data.draw(st.sampled_from(["4", "答", r"\frac{1}{2}"])), "}"]
    )
    cut = data.draw(st.integers(0, len(text)))
    ids = encode(tokenizer, text[:cut]) + encode(tokenizer, text[cut:])
    for _ in range(data.draw(st.integers(0, 2))):
        ids.insert(data.draw(st.integers(0, len(ids))), data.draw(st.sampled_from([0, 1])))
    conclude = data.draw(st.sampled_from([None, CONCLUDE, "is"]))

    box = last_boxed(text)
    assert box is not None
    before = text[: box.start]
    border = max(before.rfind("\\boxed"), before.rfind("\\fbox"))
    if conclude and conclude in before:
        border = before.rindex(conclude)

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=True)

    cuts = [n for n in range(len(ids) + 1) if decode(ids[:n]) + decode(ids[n:]) == text]
    parts = parts_of(tokenizer, ids, conclude)
    assert parts is not None
    assert (parts.answer_start, parts.answer_end) == token_span(tokenizer, ids, box.start, box.end)
    assert parts.reasoning_end == max(n for n in cuts if len(decode(ids[:n])) <= border)
