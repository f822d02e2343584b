"""Stop strings: found whatever the tokens, in the completion alone, and nothing kept after them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from castctl.embedded.model import make_tokenizer
from castctl.engines import Completion, Request
from castctl.engines.sampling import row_key
from castctl.engines.stops import MOST_WINDOWS, StopSearch, check_stops, spelled
from castctl.engines.transformers_engine import TransformersEngine
from castctl.errors import UserError
from castctl.progress import Silent
from castctl.recipe.recipe import SamplingSettings
from castctl.runs.run import Run, create_run
from castctl.stages.evaluate.runner import eval_sampling
from castctl.stages.one_step import rollout_stage, score_stage
from castctl.stages.policies import policy_at
from models import EOS, random_ids, tiny, tokenizer
from runs import small_recipe

# The search against decoding everything


@cache
def byte_level() -> Any:
    return make_tokenizer()


@cache
def byte_fallback() -> Any:
    """As SentencePiece has it: words with their space, and a byte each of what is none of them."""
    pieces = ["<unk>", "\u2581", "\u2581a", "a", "b", "Q", ":", "b:", "\u2581Q:", "ab", "\u00e9"]
    vocabulary = [*pieces, *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(vocabulary)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@cache
def word_piece() -> Any:
    words = ["[UNK]", "q", "##q", "a", "##a", ":", "##:", "##\u20ac", "stop", "##stop"]
    pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece("##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]")


TOKENIZERS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "word piece": word_piece,
    "words": cache(tokenizer),
}


def first_end(known: Any, ids: np.ndarray, stops: tuple[str, ...]) -> int | None:
    """By definition: the tokens it takes until the text of them all holds a stop."""
    return next(
        (
            count
            for count in range(1, len(ids) + 1)
            if any(stop in spelled(known, ids[:count]) for stop in stops)
        ),
        None,
    )


def found_end(known: Any, ids: np.ndarray, stops: tuple[str, ...]) -> int | None:
    search = StopSearch(known, stops, 1)
    return next((n for n in range(1, len(ids) + 1) if search.ends(0, ids[:n])), None)


def encoded(known: Any, text: str) -> np.ndarray:
    return np.array(known.encode(text, add_special_tokens=False), np.int32)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_search_finds_what_decoding_everything_does(name: str, data: st.DataObject) -> None:
    known = TOKENIZERS[name]()
    beyond = len(known) + 1  # models have ids that their tokenizer does not know: no text
    few = data.draw(st.lists(st.integers(0, beyond), min_size=2, max_size=8))
    longest = MOST_WINDOWS * 12 - 1  # from there on a window may be cut whatever its text
    picks = st.lists(st.sampled_from(few), min_size=1, max_size=longest)
    ids = np.array(data.draw(picks), np.int32)
    text = spelled(known, ids)
    begin = data.draw(st.integers(0, len(text)))
    stop = text[begin : begin + data.draw(st.integers(1, 12))]
    stops = tuple(s for s in (stop, "Q:") if s and "\ufffd" not in s)
    if stops:
        assert found_end(known, ids, stops) == first_end(known, ids, stops)


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
@pytest.mark.parametrize("filler", ["ab ", "\u20ac", "\U0001f600", "\u00e9a\U0001f600"])
def test_a_stop_is_found_far_into_any_text(name: str, filler: str) -> None:
    known = TOKENIZERS[name]()
    for stop in ("\n", "\n\n", "\u20acQ:", "\U0001f600\U0001f601", "a" + "b" * 40 + ":"):
        for times in (0, 1, *range(7, 60), 151):
            ids = np.concatenate([encoded(known, filler * times), encoded(known, stop)])
            assert found_end(known, np.append(ids, ids[:9]), (stop,)) == len(ids)


def test_special_tokens_count_as_they_are_written() -> None:
    known = byte_level()
    ids = np.append(encoded(known, "so 4"), known.eos_token_id).astype(np.int32)
    for stop, end in (
        ("<|im_end|>", len(ids)),
        ("4<|", len(ids)),
        ("o", len(encoded(known, "so"))),
    ):
        assert found_end(known, ids, (stop,)) == first_end(known, ids, (stop,)) == end


def test_tokens_without_text_hide_no_stop() -> None:
    """A model may have ids that its tokenizer does not know."""
    known = byte_level()
    nothing = [len(known) + 1] * 30
    assert spelled(known, np.array(nothing)) == ""
    ids = np.concatenate([encoded(known, "Q"), nothing, encoded(known, ":")])
    assert found_end(known, ids, ("Q:",)) == len(ids)


def test_broken_bytes_stay_broken_in_what_is_decoded_again() -> None:
    """A run of bytes of which one is wrong is no text to such a tokenizer, however long."""
    known = byte_fallback()
    e2, x, y = known.convert_tokens_to_ids(["<0xE2>", "<0x78>", "<0x79>"])
    ids = np.array([e2, *[x] * 60, y], np.int32)
    assert first_end(known, ids, ("y",)) is None
    assert found_end(known, ids, ("y",)) is None


def test_a_stop_may_begin_and_end_in_the_middle_of_tokens() -> None:
    known = tokenizer()
    ids = np.array([12, 34, 56, 7], np.int32)
    assert spelled(known, ids) == "12 34 56 7"
    for stop, end in (("2 3", 2), ("34", 2), ("4 56", 3), ("4 5", 3), (" 7", 4), ("8", None)):
        assert found_end(known, ids, (stop,)) == end
    assert found_end(known, ids, ("56 7", "4 5")) == 3  # the first that there is


def test_the_work_of_a_step_does_not_grow_with_the_completion() -> None:
    """Not even in endless bytes that are no text."""
    known = byte_level()
    decoded: list[int] = []

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            decoded.append(len(ids))
            return known.decode(ids, **options)

    broken = known.convert_tokens_to_ids("\u00e2")
    for ids, windows in ((encoded(known, "ab " * 700), 1), (np.full(2000, broken), MOST_WINDOWS)):
        decoded.clear()
        assert found_end(Counting(), np.array(ids, np.int32), ("\n\nQ:",)) is None
        assert max(decoded) <= windows * (2 * len("\n\nQ:") + 8) + 1


# The engine


@cache
def model() -> Any:
    return tiny()


def generate(asked: list[Request], **wanted: Any) -> list[Completion]:
    sampling = SamplingSettings(temperature=1.3, max_tokens=40, **wanted)
    finished: list[int] = []
    ((_, made),) = TransformersEngine(model()).generate({0: asked}, sampling, finished.append)
    assert sum(finished) == len(asked)
    return made


@cache
def asked() -> list[Request]:
    rng = np.random.default_rng(5)
    rows = [random_ids(rng, 3 + i % 9) for i in range(12)]
    return [Request(row, row_key(0, 0, "x", i)) for i, row in enumerate(rows * 2)]


def text(completion: Completion) -> str:
    return spelled(model().tokenizer, completion.token_ids)


@cache
def free() -> list[Completion]:
    return generate(asked())


def common_stop() -> str:
    """Five characters across tokens that some completions hold, not all of them at their start."""
    texts = [text(completion) for completion in free()]
    pieces = {t[i : i + 5] for t in texts for i in range(8, len(t) - 5) if " " in t[i : i + 5][1:4]}
    return max(sorted(pieces), key=lambda piece: sum(piece in t for t in texts))


def test_a_completion_is_cut_behind_its_stop_and_is_else_the_same() -> None:
    stop = common_stop()
    stopped = generate(asked(), stop=[stop])
    ended = 0
    for before, after in zip(free(), stopped, strict=True):
        end = first_end(model().tokenizer, before.token_ids, (stop,))
        length = end or len(before.token_ids)
        assert after.token_ids.tolist() == before.token_ids[:length].tolist()
        assert after.finish_reason == ("stop" if end else before.finish_reason)
        np.testing.assert_allclose(after.logprobs, before.logprobs[:length], atol=1e-4)
        ended += end is not None and end < len(before.token_ids)
    assert ended >= 2
    check_stops(stopped, [stop], model().tokenizer)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_neighbours_do_not_move_a_stop(max_rows: int) -> None:
    stop = common_stop()
    together = generate(asked(), stop=[stop])
    apart = generate(asked(), stop=[stop], max_rows=max_rows)
    assert [c.token_ids.tolist() for c in apart] == [c.token_ids.tolist() for c in together]
    assert [c.finish_reason for c in apart] == [c.finish_reason for c in together]


def test_a_stop_across_the_prompts_end_or_in_it_stops_nothing() -> None:
    request, completion = next(
        (r, c) for r, c in zip(asked(), free(), strict=True) if len(c.token_ids) > 5
    )
    across = f"{request.prompt[-1]} {completion.token_ids[0]}"
    inside = spelled(model().tokenizer, request.prompt)
    stops = [stop for stop in (across, inside) if stop not in text(completion)]
    assert stops
    (again,) = generate([request], stop=stops)
    assert again.token_ids.tolist() == completion.token_ids.tolist()


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    request, completion = next(
        (r, c) for r, c in zip(asked(), free(), strict=True) if len(c.token_ids) == 40
    )
    stop = text(completion)[-6:]
    assert first_end(model().tokenizer, completion.token_ids, (stop,)) == 40
    (again,) = generate([request], stop=[stop])
    assert again.finish_reason == "stop" and len(again.token_ids) == 40
    assert completion.finish_reason == ("stop" if completion.token_ids[-1] == EOS else "length")


def test_an_engine_that_goes_on_after_a_stop_is_refused() -> None:
    stop, known = common_stop(), model().tokenizer
    with pytest.raises(UserError, match=r"went on after .* of sampling\.stop"):
        check_stops(free(), [stop], known)
    ids = np.array([12, 34], np.int32)
    check_stops([Completion(ids, None, "stop")], ["2 3"], known)
    with pytest.raises(UserError, match="went on after"):  # it stopped by chance, and says so
        check_stops([Completion(ids, None, "length")], ["2 3"], known)


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = small_recipe("grpo", 'sampling.stop=["\\n", "= 4"]')
    made = create_run(recipe, str(tmp_path_factory.mktemp("stops") / "run"), "test")
    rollout_stage(made, 0, policy_at(made, 0), progress=Silent())
    return made


def test_rollouts_end_at_a_stop_and_are_judged_as_any_that_stopped(run: Run) -> None:
    stops = run.recipe.sampling.stop
    table = run.step(0).table("rollouts")
    texts, reasons = (table[name].to_pylist() for name in ("completion", "finish_reason"))
    by_stop = [t for t in texts if any(stop in t for stop in stops)]
    assert len(by_stop) > 4 and {reasons[texts.index(t)] for t in by_stop} == {"stop"}
    for ids, logprobs in zip(
        table["completion_token_ids"].to_pylist(),
        table["sampler_logprobs"].to_pylist(),
        strict=True,
    ):
        assert len(ids) == len(logprobs) and all(np.isfinite(logprobs))
    score_stage(run, 0, policy_at(run, 0), None, progress=Silent())
    verdicts = run.step(0).table("rewards")["verdict"].to_pylist()
    ended = {v for t, v in zip(texts, verdicts, strict=True) if t in by_stop}
    assert ended and ended <= {"correct", "wrong", "no_answer"}  # and none is `truncated`


def test_another_stop_makes_other_rollouts(run: Run) -> None:
    """Parts that are there say their stops, and are not taken for those of others."""
    metadata = run.step(0).read("rollouts", 0).metadata
    assert metadata is not None and metadata["sampling"]["stop"] == ["\n", "= 4"]
    other = run.recipe.model_copy(
        update={"sampling": run.recipe.sampling.model_copy(update={"stop": ("\n",)})}
    )
    changed = Run(run.path, other)
    with pytest.raises(UserError, match=r"sampling\.stop"):
        rollout_stage(changed, 0, policy_at(changed, 0), progress=Silent())


def test_an_engine_that_ignores_stops_makes_no_part(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TransformersEngine.generate

    def deaf(self: Any, requests: Any, sampling: SamplingSettings, advance: Any) -> Any:
        return plain(self, requests, sampling.model_copy(update={"stop": ()}), advance)

    monkeypatch.setattr(TransformersEngine, "generate", deaf)
    other = create_run(run.recipe, str(tmp_path / "deaf"), "test")
    with pytest.raises(UserError, match="went on after"):
        rollout_stage(other, 0, policy_at(other, 0), progress=Silent())
    assert other.step(0).parts("rollouts") == []


def test_evaluations_have_the_rollouts_stops(run: Run) -> None:
    assert eval_sampling(run.recipe).stop == ("\n", "= 4")
