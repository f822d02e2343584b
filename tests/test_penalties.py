"""Penalties on tokens that a row holds already: vLLM's definitions, held in every engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castctl.engines import Completion, Request, transformers_engine
from castctl.engines.exchange import Asked
from castctl.engines.sampling import Penalties, RowUniforms, row_key
from castctl.engines.transformers_engine import TransformersEngine
from castctl.models.language_model import LanguageModel
from castctl.recipe.recipe import Recipe, SamplingSettings
from castctl.shards.metadata import parse_metadata
from castctl.shards.part import read_json, write_json
from castctl.shards.stage import StepFolder
from castctl.stages.evaluate.results import read_result
from castctl.stages.evaluate.runner import eval_sampling
from conftest import Cli
from models import penalised, plain, plain_logits, random_ids, tiny

BOTH = {"presence_penalty": 1.5, "repetition_penalty": 1.3}
KINDS = [BOTH, {"presence_penalty": -0.7}, {"repetition_penalty": 0.8}, {**BOTH, "top_p": 0.9}]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("qwen3-tied")


def sampling(**changed: Any) -> SamplingSettings:
    return SamplingSettings.model_validate({"temperature": 1.3, "max_tokens": 30, **changed})


def requests() -> list[Request]:
    """Prompts of several lengths, some more than once."""
    rng = np.random.default_rng(5)
    prompts = [random_ids(rng, length) for length in (4, 21, 1, 9, 2)]
    return [Request(prompts[n % 5], row_key(0, 0, "x", n)) for n in range(20)]


def generate(
    model: LanguageModel, asked: list[Request], settings: SamplingSettings
) -> list[Completion]:
    ((_, done),) = TransformersEngine(model).generate({0: asked}, settings, lambda count: None)
    return done


def reference(
    model: LanguageModel, request: Request, done: Completion, asked: SamplingSettings
) -> torch.Tensor:
    """Scores (T, V, float64) from the plain model's logits, before temperature and truncation."""
    with torch.no_grad():
        logits = plain_logits(plain(model), request.prompt, done.token_ids)
    return penalised(
        logits, request.prompt, done.token_ids, asked.presence_penalty, asked.repetition_penalty
    )


# The scores


@given(
    seed=st.integers(0, 2**32 - 1),
    presence=st.floats(-2, 2),
    repetition=st.floats(0.1, 10),
    sampled=st.integers(0, 12),
)
@settings(max_examples=150, deadline=None)
def test_scores_are_vllms(seed: int, presence: float, repetition: float, sampled: int) -> None:
    """Of any of the rows, in any order, with tokens that occur once, often, in both or not."""
    rng = np.random.default_rng(seed)
    vocabulary = int(rng.integers(2, 20))
    prompts = [rng.integers(vocabulary, size=rng.integers(1, 15)).astype(np.int32)
               for _ in range(6)]  # fmt: skip
    tokens = rng.integers(vocabulary, size=(6, sampled)).astype(np.int32)
    logits = torch.from_numpy(rng.normal(0, 5, (6, vocabulary))).float()
    logits[rng.random(logits.shape) < 0.1] = 0.0
    rows = rng.permutation(6)[: rng.integers(1, 7)]
    penalise = Penalties(prompts, presence, repetition, torch.device("cpu"))
    found = penalise(logits[torch.from_numpy(rows)], rows, tokens[rows])
    for row, scores in zip(rows, found, strict=True):
        every = logits[row].expand(sampled + 1, -1)
        expected = penalised(every, prompts[row], tokens[row], presence, repetition)[-1]
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)


def test_logits_in_half_precision_are_penalised_in_float32() -> None:
    logits = torch.tensor([[3.0, -3.0, 1.0]], dtype=torch.bfloat16)
    penalise = Penalties([np.array([0, 1], np.int32)], 0.1, 1.1, torch.device("cpu"))
    found = penalise(logits, np.array([0]), np.array([[1]], np.int32))
    assert found.tolist() == [pytest.approx([3 / 1.1, -3.3 - 0.1, 1.0], abs=1e-6)]


# The decode loop


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tokens_are_drawn_from_the_penalised_distribution(
    model: LanguageModel, kind: dict[str, float]
) -> None:
    """Also after rows have ended and were dropped; the log-probs are that distribution's."""
    asked, settings = requests(), sampling(**kind)
    done = generate(model, asked, settings)
    assert len({len(completion.token_ids) for completion in done}) > 3
    decided = total = 0
    for request, completion in zip(asked, done, strict=True):
        probs = torch.softmax(reference(model, request, completion, settings) / 1.3, dim=-1)
        uniforms = RowUniforms([request.key])
        for position, (token, row) in enumerate(zip(completion.token_ids, probs, strict=True)):
            ordered, order = row.sort(descending=True)
            row[order[ordered.cumsum(0) - ordered >= settings.top_p]] = 0.0
            row /= row.sum()
            assert completion.logprobs is not None
            assert completion.logprobs[position] == pytest.approx(float(row[token].log()), abs=1e-4)
            uniform, sums = uniforms.at(position, np.zeros(1, np.int64))[0], row.cumsum(0).numpy()
            total += 1
            if np.abs(sums - uniform).min() > 1e-4:
                decided += 1
                assert token == np.searchsorted(sums, uniform, side="right")
    assert decided > 0.9 * total > 100


@pytest.mark.parametrize("kind", [BOTH, {"presence_penalty": 2.0}], ids=str)
def test_a_request_alone_gives_what_it_gives_in_a_batch(
    model: LanguageModel, kind: dict[str, float]
) -> None:
    asked, settings = requests(), sampling(**kind)
    together = generate(model, asked, settings)
    for index in (0, 1, 2, 8, 14):
        (alone,) = generate(model, [asked[index]], settings)
        assert alone.token_ids.tolist() == together[index].token_ids.tolist()
        np.testing.assert_allclose(alone.logprobs, together[index].logprobs, atol=1e-4)
    split = generate(model, asked, sampling(**kind, max_rows=3))
    assert [c.token_ids.tolist() for c in split] == [c.token_ids.tolist() for c in together]


def test_greedy_decoding_takes_the_highest_penalised_logit(model: LanguageModel) -> None:
    asked, settings = requests()[:5], sampling(temperature=0, **BOTH)
    done = generate(model, asked, settings)
    decided = total = 0
    for request, completion in zip(asked, done, strict=True):
        assert completion.logprobs is None
        scores = reference(model, request, completion, settings)
        best = scores.topk(2, dim=-1)
        clear = (best.values[:, 0] - best.values[:, 1] > 1e-4).numpy()
        assert (best.indices[:, 0].numpy() == completion.token_ids)[clear].all()
        decided, total = decided + int(clear.sum()), total + len(clear)
    assert decided > 0.9 * total
    plainly = generate(model, asked, sampling(temperature=0))
    assert any(a.token_ids.tolist() != b.token_ids.tolist()
               for a, b in zip(done, plainly, strict=True))  # fmt: skip


def test_off_they_cost_nothing(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "Penalties", None)
    assert generate(model, requests()[:2], sampling(presence_penalty=0.0, repetition_penalty=1.0))
    with pytest.raises(TypeError):
        generate(model, requests()[:2], sampling(presence_penalty=0.1))


def test_an_engine_in_a_process_is_sent_them(model: LanguageModel) -> None:
    asked = Asked({0: requests()}, sampling(**BOTH), [1], model.tokenizer)
    assert BOTH.items() <= asked.message().facts["sampling"].items()


# Evaluations


def test_an_evaluation_takes_its_own_alone() -> None:
    recipe = Recipe.model_validate({"sampling": {"presence_penalty": 1}, "eval": BOTH})
    assert BOTH.items() <= eval_sampling(recipe).model_dump().items()
    assert eval_sampling(Recipe.model_validate({"sampling": BOTH})).presence_penalty == 0


def test_eval_samples_with_them_and_says_so(castctl: Cli, tmp_path: Path) -> None:
    castctl("eval", "--tiny", "--limit", "4", "-k", "2", "--run", "here")
    castctl("eval", "--presence-penalty", "1.5", "--repetition-penalty", "1.3", "--run", "here")
    names = sorted(folder.name for folder in (tmp_path / "runs/here/eval").iterdir())
    assert names == ["embedded", "embedded-presence1.5-repetition1.3"]
    plain, changed = (StepFolder(tmp_path / f"runs/here/eval/{n}/step-00000") for n in names)
    result = read_json(changed.path / "results.json")
    assert BOTH.items() <= result["sampling"].items()
    made = changed.read("rollouts", 0).metadata
    assert made is not None and BOTH.items() <= made["sampling"].items()
    assert not plain.table("rollouts").equals(changed.table("rollouts"))


def test_an_older_evaluation_had_none(tmp_path: Path) -> None:
    older = {"sampling": {"temperature": 0.7, "stop": ["Q"]}, "k": 1}
    write_json(tmp_path / "results.json", older)
    read = read_result(StepFolder(tmp_path))
    assert read is not None and read["sampling"] == {
        "temperature": 0.7, "stop": ["Q"], "presence_penalty": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    write_json(tmp_path / "results.json", {"sampling": {"n": 4}, "k": 4})  # of another tool
    read = read_result(StepFolder(tmp_path))
    assert read is not None and read["sampling"] == {"n": 4}


# Parts


def test_older_parts_were_sampled_without() -> None:
    read = parse_metadata(b'{"sampling": {"top_p": 0.9}}')["sampling"]
    assert read == {"top_p": 0.9, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    assert "sampling" not in parse_metadata(b"{}")


@pytest.mark.parametrize("broken", ['{"presence_penalty": 3}', '{"repetition_penalty": 0}'])
def test_metadata_with_a_penalty_that_is_none(broken: str) -> None:
    with pytest.raises(ValueError, match="sampling"):
        parse_metadata(f'{{"sampling": {broken}}}'.encode())
