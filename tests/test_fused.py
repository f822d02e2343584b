"""Kernels for packed rows against the SDPA calls that stand for them.

Where there is no GPU, flex attention computes its scores and gradients in full, which is slow and
the same; flash attention over segments is written out. What only a GPU has is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from castctl.errors import UserError
from castctl.models import fused
from castctl.models.attention import PackedMask, packed_attention
from castctl.models.language_model import LanguageModel
from castctl.models.loading import load_language_model
from castctl.models.packing import Segment
from castctl.recipe.model import ModelSettings
from models import CONFIGS, plain, plain_scores, random_ids, tiny

SEGMENTS = (
    Segment(150), Segment(1, ((0, 150),)), Segment(97, ((0, 150),)), Segment(140, ((0, 150),)),
    Segment(3), Segment(41, ((4, 3),)), Segment(29, ((0, 64), (2, 20))), Segment(270),
)  # fmt: skip
"""Rows alone, shared prompts, prefixes of several pieces; blocks within and across segments."""
WINDOW = 37
CAUSAL = PackedMask(SEGMENTS, None, causal_mask_function)
LOCAL = PackedMask(
    SEGMENTS, WINDOW, and_masks(sliding_window_overlay(WINDOW), causal_mask_function)
)
CASES = {"causal": (CAUSAL, None), "window": (LOCAL, None), "cap": (CAUSAL, 2.0)}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention has gradients on the CPU where it is not compiled, and refuses them there."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def states(dtype: torch.dtype, heads: tuple[int, int] = (4, 2)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(segment.length for segment in SEGMENTS)
    drawn = [
        torch.randn(1, count, tokens, 16, generator=generator)
        for count in (heads[0], heads[1], heads[1])
    ]
    return [x.to(dtype).requires_grad_() for x in drawn]


def segments(
    q: Tensor, k: Tensor, v: Tensor, mask: PackedMask, scaling: float | None, softcap: float | None
) -> Tensor:
    module = torch.nn.Identity()
    return packed_attention(module, q, k, v, mask, scaling=scaling, softcap=softcap)[0]


def results(run: Callable[..., Tensor], given: list[Tensor], *options: Any) -> list[Tensor]:
    """The output, and the gradients of one of its directions."""
    output = run(*given, *options)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, given, direction)]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        off = (one.double() - other.double()).abs().max()
        assert float(off) <= tolerance * float(other.abs().max())


def dense(mask: PackedMask) -> Tensor:
    """Who sees whom (L, L) in a packed row, by definition and a token at a time."""
    starts = np.cumsum([0, *(segment.length for segment in mask.segments)])
    total = int(starts[-1])
    found = torch.zeros(total, total, dtype=torch.bool)
    for number, segment in enumerate(mask.segments):
        row = [int(starts[other]) + i for other, count in segment.prefix for i in range(count)]
        for token in range(int(starts[number]), int(starts[number + 1])):
            row.append(token)
            found[token, row[-mask.window :] if mask.window else row] = True
    return found


@pytest.mark.parametrize("mask", [CAUSAL, LOCAL], ids=["causal", "window"])
def test_the_mask_of_blocks_is_that_of_the_segments(mask: PackedMask) -> None:
    made = fused.block_mask(mask, torch.device("cpu"))
    expected = dense(mask)
    places = torch.arange(len(expected))
    found = made.mask_mod(places[:, None] * 0, places * 0, places[:, None], places[None])
    assert torch.equal(found, expected)
    size = fused.BLOCK
    blocks = -(-len(expected) // size)
    padded = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
    padded[: len(expected), : len(expected)] = expected
    tiles = padded.unfold(0, size, size).unfold(1, size, size).flatten(2)
    lists = (made.kv_num_blocks, made.kv_indices), (made.full_kv_num_blocks, made.full_kv_indices)
    partly, wholly = (
        [set(i[:n].tolist()) for n, i in zip(numbers[0, 0], indices[0, 0], strict=True)]
        for numbers, indices in lists
    )
    for row in range(blocks):
        assert not partly[row] & wholly[row]
        needed = {column for column in range(blocks) if tiles[row, column].any()}
        assert needed <= partly[row] | wholly[row]
        assert all(bool(tiles[row, column].all()) for column in wholly[row])
    assert sum(map(len, partly + wholly)) < blocks * (blocks + 1) / 2
    assert any(wholly) == (mask.window is None)


def test_two_pieces_of_one_segment_are_no_prefix_of_blocks() -> None:
    mask = PackedMask((Segment(5), Segment(3, ((0, 5), (0, 2)))), None, causal_mask_function)
    with pytest.raises(ValueError, match="two pieces of one segment"):
        fused.block_mask(mask, torch.device("cpu"))


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
def test_flex_attention_is_that_of_the_segments(
    case: str, dtype: torch.dtype, heads: tuple[int, int]
) -> None:
    mask, softcap = CASES[case]
    given = states(dtype, heads)
    found = results(fused.flex, given, mask, 0.3, softcap)
    wide = [x.detach().double().requires_grad_() for x in given]
    assert_near(found, results(segments, wide, mask, 0.3, softcap), DTYPES[dtype])


def test_each_of_these_cases_is_another() -> None:
    given = states(torch.float64)
    outputs = [results(segments, given, mask, 0.3, cap)[0] for mask, cap in CASES.values()]
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert min(float((outputs[a] - outputs[b]).abs().max()) for a, b in pairs) > 0.1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_grouped_heads_are_repeated_ones(case: str, dtype: torch.dtype) -> None:
    mask, softcap = CASES[case]
    given = states(dtype)
    wide = [x.detach().double() for x in given]
    wide[1:] = [x.repeat_interleave(2, dim=1) for x in wide[1:]]
    repeated = [x.requires_grad_() for x in wide]
    found = results(segments, given, mask, 0.3, softcap)
    output, of_queries, *others = results(segments, repeated, mask, 0.3, softcap)
    summed = [x.unflatten(1, (2, 2)).sum(2) for x in others]
    assert_near(found, [output, of_queries, *summed], DTYPES[dtype])


def flash_by_definition(
    query: Tensor, key: Tensor, value: Tensor, own: Tensor, whole: Tensor, *longest: int,
    scale: float, window_size: tuple[int, int], enable_gqa: bool, num_splits: int,
) -> Tensor:  # fmt: skip
    """`varlen_attn` as its documentation has it, causal to the lower right."""
    assert window_size == (-1, 0) and num_splits == 1 and own.dtype == whole.dtype == torch.int32
    assert longest == tuple(int(x.diff().max()) for x in (own, whole))
    outputs = []
    for number in range(len(own) - 1):
        rows, columns = (slice(int(x[number]), int(x[number + 1])) for x in (own, whole))
        q, k, v = (x.transpose(0, 1)[None] for x in (query[rows], key[columns], value[columns]))
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=mask.tril(k.shape[2] - q.shape[2]), scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_segments_reach_flash_attention_with_what_they_see(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", flash_by_definition)
    given = states(dtype)
    found = results(fused.varlen, given, CAUSAL, 0.3, None)
    wide = [x.detach().double().requires_grad_() for x in given]
    assert_near(found, results(segments, wide, CAUSAL, 0.3, None), DTYPES[dtype])


# The check of a model


def checked(monkeypatch: pytest.MonkeyPatch, name: str, kernel: fused.Kernel) -> LanguageModel:
    """A model whose kernel is this one, on the CPU too, after its check."""
    model = tiny(name)
    model.model.set_attn_implementation(fused.NAME)
    monkeypatch.setattr(fused, "kernel_for", lambda *given: kernel)
    fused.check_fused(model)
    return model


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_model_over_flex_attention_scores_as_plain_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checked(monkeypatch, name, fused.flex)
    rng = np.random.default_rng(0)
    prompt, other = random_ids(rng, 40), random_ids(rng, 3)
    prompts = [prompt, prompt, other]
    rows = [random_ids(rng, length) for length in (100, 4, 30)]
    found, _ = model.score(prompts, rows, 1.0, 10**6, 64)
    with torch.no_grad():
        expected = plain_scores(plain(tiny(name)), prompts, rows, 1.0).logprobs
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def one_token_off(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    """Every query sees the neighbours of its own keys."""
    return segments(q, k.roll(1, 2), v, *options)


def no_prefix(q: Tensor, k: Tensor, v: Tensor, mask: PackedMask, *options: Any) -> Tensor:
    alone = tuple(Segment(segment.length) for segment in mask.segments)
    return segments(q, k, v, PackedMask(alone, mask.window, mask.sees), *options)


def wrong_backwards(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
    """The right output, with a part of dK missing."""
    return segments(q, 0.9 * k + 0.1 * k.detach(), v, *options)


def not_there(*given: Any) -> Tensor:
    raise RuntimeError("no kernel image\nis available")


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (one_token_off, "output is"),
        (no_prefix, "output is"),
        (wrong_backwards, "dK is 0.1 of its size off in layer 0"),
        (not_there, "RuntimeError: no kernel image is available"),
    ],
)
def test_a_wrong_kernel_is_refused(
    kernel: fused.Kernel, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"set model\.attention=segments") as refused:
        checked(monkeypatch, "qwen3-tied", kernel)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_check_takes_kernels_that_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CONFIGS:
        checked(monkeypatch, name, segments)


def test_the_cpu_has_the_segments(tmp_path: Path) -> None:
    model = tiny("gemma3-softcap")
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    rows = [[random_ids(np.random.default_rng(seed), 9) for seed in (1, 2)] for _ in range(2)]
    found = [
        load_language_model(tmp_path, ModelSettings(device="cpu", attention=way)).score(
            *rows, 1.0, 10**6, 64
        )[0]
        for way in ("segments", "fused")
    ]
    np.testing.assert_array_equal(*found)


# On a GPU


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernels_of_a_gpu_are_the_segments(case: str, dtype: torch.dtype) -> None:
    mask, softcap = CASES[case]
    given = [x.detach().cuda().requires_grad_() for x in states(dtype)]
    kernel = fused.kernel_for(given[0], given[2], mask, softcap)
    assert kernel is (fused.varlen if case == "causal" and dtype.itemsize == 2 else fused.flex)
    found = [x.cpu() for x in results(kernel, given, mask, 0.3, softcap)]
    wide = [x.detach().cpu().double().requires_grad_() for x in given]
    assert_near(found, results(segments, wide, mask, 0.3, softcap), DTYPES[dtype])


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_models_pass_their_check_on_a_gpu(name: str, dtype: str) -> None:
    model = tiny(name)
    model.model.to("cuda").set_attn_implementation(fused.NAME)
    fused.check_fused(LanguageModel(model.model, model.tokenizer, getattr(torch, dtype)))
