"""Divergences and their slopes, alone and in the fused head, against probabilities and autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from castctl.methods import divergence as module
from castctl.methods.divergence import Divergence, divergences
from castctl.models.head import OutputHead, TeacherSide, fused_loss

FORMS = [
    Divergence(beta, top_k, tail)
    for beta in (0.0, 1.0, 0.5, 0.1, 0.9)
    for top_k, tail in ((None, False), (7, False), (7, True))
]
CLIPPED = [
    Divergence(beta, top_k, tail, clip)
    for beta, clip in ((0.0, 0.05), (1.0, 0.05), (0.5, 0.05), (0.3, 0.002))
    for top_k, tail in ((None, False), (7, False), (7, True))
]
"""Bounds that hold about one entry in ten of the logits below, and leave others alone."""


def naive(form: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """By definition, out of the probabilities of logits over T; autograd gives the slope."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if form.top_k is not None:
        tokens = q.topk(form.top_k).indices
        rest = torch.ones_like(q, dtype=torch.bool).scatter(-1, tokens, False)
        p_rest, q_rest = (p * rest).sum(-1, keepdim=True), (q * rest).sum(-1, keepdim=True)
        p, q = p.gather(-1, tokens), q.gather(-1, tokens)
        if form.tail:
            p, q = torch.cat([p, p_rest], -1), torch.cat([q, q_rest], -1)
        else:
            p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    terms = terms_of(form.beta, p, q)
    return terms.clamp(max=form.clip).sum(-1) if form.clip else terms.sum(-1)


def terms_of(beta: float, p: Tensor, q: Tensor) -> Tensor:
    """What is summed over the outcomes, student p and teacher q."""
    if beta == 0:
        return torch.xlogy(q, q / p)
    if beta == 1:
        return torch.xlogy(p, p / q)
    m = beta * q + (1 - beta) * p
    return beta * torch.xlogy(q, q / m) + (1 - beta) * torch.xlogy(p, p / m)


def ours(form: Divergence, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """What is trained on: the clipped values, and their slope."""
    # torch's own log-softmax in float32 would be the largest error here.
    logprobs = student.double().log_softmax(-1).to(student.dtype)
    _, clipped, slope = divergences(form, logprobs, teacher.clone())
    return clipped, slope


def with_slope(form: Divergence, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.double().clone().requires_grad_()
    values = naive(form, leaf, teacher.double())
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slope


def error(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest error over the largest expected value, which counts as at least `floor`."""
    if expected.numel() == 0:
        return 0.0
    scale = max(float(expected.abs().max()), floor)
    return float((found.double() - expected).abs().max()) / scale


def logits(rows: int, vocabulary: int, spread: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, rows, vocabulary)
    student, teacher = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return student, teacher


# Alone


@given(
    rows=st.integers(0, 6),
    vocabulary=st.integers(2, 40),
    beta=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99)),
    top_k=st.none() | st.integers(1, 40),
    tail=st.booleans(),
    clip=st.none() | st.sampled_from([1e-4, 0.01, 0.05, 1.0]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_values_and_slopes_are_those_of_the_definition(
    rows: int,
    vocabulary: int,
    beta: float,
    top_k: int | None,
    tail: bool,
    clip: float | None,
    spread: float,
    seed: int,
) -> None:
    top_k = None if top_k is None else min(top_k, vocabulary - 1)
    form = Divergence(beta, top_k, tail and top_k is not None, clip)
    student, teacher = logits(rows, vocabulary, spread, seed)
    values, slope = ours(form, student, teacher)
    expected, expected_slope = with_slope(form, student, teacher)
    assert values.dtype == slope.dtype == torch.float64
    assert error(values, expected, 1e-3) < 1e-9
    assert error(slope, expected_slope, 1e-3) < 1e-9
    if rows:  # a common shift of all logits changes nothing, and no whole divergence is negative
        assert float(slope.sum(-1).abs().max()) < 1e-12
        assert clip is not None or float(values.min()) > -1e-14


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_float32_is_exact_to_float32(form: Divergence) -> None:
    student, teacher = (side.float() for side in logits(40, 500))
    values, slope = ours(form, student, teacher)
    expected, expected_slope = with_slope(form, student, teacher)
    assert values.dtype == slope.dtype == torch.float32
    assert error(values, expected) < 1e-5
    assert error(slope, expected_slope) < 1e-5


def test_float32_at_a_real_vocabulary() -> None:
    student, teacher = (side.float() for side in logits(4, 151_936, 3.0))
    for form in (
        *(Divergence(beta, clip=clip) for beta in (0.0, 0.5, 1.0) for clip in (None, 0.05)),
        Divergence(0.5, 100, True),
    ):
        values, slope = ours(form, student, teacher)
        expected, expected_slope = with_slope(form, student, teacher)
        assert error(values, expected) < 1e-5
        assert error(slope, expected_slope) < 1e-5


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_large_logits_keep_their_differences(form: Divergence) -> None:
    student, teacher = (side.float() for side in logits(10, 60))
    values, slope = ours(form, student - 2000, teacher + 2000)
    expected, expected_slope = with_slope(form, student - 2000, teacher + 2000)
    assert error(values, expected) < 1e-5
    assert error(slope, expected_slope) < 1e-5


def test_the_student_is_only_read_and_the_slope_is_in_the_teachers_buffer() -> None:
    student, teacher = logits(3, 11)
    logprobs = student.log_softmax(-1)
    before = logprobs.clone()
    *_, slope = divergences(Divergence(0.5), logprobs, teacher)
    assert torch.equal(logprobs, before)
    assert slope.data_ptr() == teacher.data_ptr()


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_blocks_change_nothing(form: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = logits(9, 20)
    whole = ours(form, student, teacher)
    for elements in (1, 50):
        monkeypatch.setattr(module, "CPU_BLOCK", elements)
        for part, all_of_it in zip(ours(form, student, teacher), whole, strict=True):
            torch.testing.assert_close(part, all_of_it, rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_equal_distributions_have_none(form: Divergence) -> None:
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        student = logits(5, 60)[0].to(dtype)
        values, slope = ours(form, student, student + 3)
        assert float(values.abs().max()) < bound
        assert float(slope.abs().max()) < bound


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_clip_takes_the_gradient_of_entries_and_of_no_whole_token(beta: float) -> None:
    """A token far beyond the clip is still pulled by its entries below it."""
    student, teacher = logits(50, 40, 3.0)
    whole, _ = ours(Divergence(beta), student, teacher)
    values, slope = ours(Divergence(beta, clip=0.05), student, teacher)
    assert (whole > 0.05).all()  # a bound of the sum would leave no gradient at all
    leaf = student.clone().requires_grad_()
    terms = terms_of(beta, leaf.softmax(-1), teacher.softmax(-1))
    over = terms > 0.05
    assert over.any(-1).all() and over.float().mean() < 0.2
    (expected,) = torch.autograd.grad(terms[~over].sum(), leaf)
    assert (expected.abs().sum(-1) > 1e-3).all()
    assert error(slope, expected) < 1e-9
    kept = torch.where(over, 0.05, terms).sum(-1)
    torch.testing.assert_close(values, kept.detach())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_clip_that_holds_nothing_changes_no_bit(form: Divergence) -> None:
    for dtype in (torch.float64, torch.float32):
        student, teacher = (side.to(dtype) for side in logits(10, 60, 0.1))
        free, wide = ours(form, student, teacher), ours(replace(form, clip=5.0), student, teacher)
        for one, other in zip(free, wide, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("form", CLIPPED, ids=str)
def test_the_whole_divergence_is_told_beside_the_clipped_one(form: Divergence) -> None:
    student, teacher = logits(20, 50, 3.0)
    logprobs = student.log_softmax(-1)
    whole, clipped, _ = divergences(form, logprobs, teacher.clone())
    torch.testing.assert_close(whole, naive(replace(form, clip=None), student, teacher))
    torch.testing.assert_close(clipped, naive(form, student, teacher))
    assert (clipped < whole).any() and (clipped <= whole).all()


def test_a_clipped_sum_may_be_negative() -> None:
    """The upper bound takes of the terms above 0 alone; by hand, over two tokens."""
    student = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.1, 0.9]], dtype=torch.float64).log()
    values, slope = ours(Divergence(1.0, clip=0.05), student, teacher)
    below = 0.1 * math.log(1 / 9)
    assert float(values) == pytest.approx(0.05 + below)
    pull = 0.9 * 0.1 * (math.log(1 / 9) + 1)  # p_1 p_2 of the slope of the second term alone
    assert slope[0].tolist() == pytest.approx([-pull, pull])


def test_the_ends_are_the_two_kullback_leibler_divergences() -> None:
    student, teacher = logits(20, 50)
    logp, logq = student.log_softmax(-1), teacher.log_softmax(-1)
    divergence_of = torch.nn.functional.kl_div  # of its second argument from its first
    teacher_student = divergence_of(logp, logq, reduction="none", log_target=True).sum(-1)
    student_teacher = divergence_of(logq, logp, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours(Divergence(0), student, teacher)[0], teacher_student)
    torch.testing.assert_close(ours(Divergence(1), student, teacher)[0], student_teacher)


def test_near_the_ends_the_formula_leans_towards_them() -> None:
    """L / beta tends to KL(q || p), and L / (1 - beta) to KL(p || q): no end is exchanged."""
    student, teacher = logits(20, 50, 0.5)
    tiny = 1e-6
    for end, beta in ((0.0, tiny), (1.0, 1 - tiny)):
        values, slope = ours(Divergence(beta), student, teacher)
        limit, limit_slope = ours(Divergence(end), student, teacher)
        torch.testing.assert_close(values / tiny, limit, rtol=1e-4, atol=0)
        assert error(slope / tiny, limit_slope) < 1e-4


far_apart = st.tuples(st.sampled_from([0.1, 3.0, 300.0]), st.integers(0, 2**32 - 1))


@given(far_apart, st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_a_jsd_is_bounded_by_the_entropy_of_beta(how: tuple[float, int], beta: float) -> None:
    student, teacher = logits(6, 12, *how)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        values, _ = ours(Divergence(beta), student.to(dtype), teacher.to(dtype))
        assert -slack < float(values.min()) <= float(values.max()) <= bound + slack
    mirrored, _ = ours(Divergence(1 - beta), teacher, student)
    values, _ = ours(Divergence(beta), student, teacher)
    torch.testing.assert_close(values, mirrored, rtol=1e-9, atol=1e-12)


@given(far_apart, st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 11))
@settings(max_examples=100, deadline=None)
def test_a_tail_of_one_bucket_tells_less(how: tuple[float, int], beta: float, k: int) -> None:
    """Merging outcomes never raises a divergence (data processing)."""
    student, teacher = logits(6, 12, *how)
    full, _ = ours(Divergence(beta), student, teacher)
    merged, _ = ours(Divergence(beta, k, tail=True), student, teacher)
    assert bool((merged <= full * (1 + 1e-12) + 1e-12).all())


@pytest.mark.parametrize("tail", [False, True])
def test_all_tokens_as_the_top_are_the_full_vocabulary(tail: bool) -> None:
    student, teacher = logits(5, 30)
    full = ours(Divergence(0.5), student, teacher)
    for k in (30, 31):
        for found, expected in zip(
            ours(Divergence(0.5, k, tail), student, teacher), full, strict=True
        ):
            assert torch.equal(found, expected)


def test_outside_the_renormalised_top_there_is_no_gradient() -> None:
    student, teacher = logits(8, 30)
    _, slope = ours(Divergence(0.5, 4), student, teacher)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, teacher.topk(4).indices, False)
    assert not slope[outside].any() and slope[~outside].all()


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_distributions_that_share_nothing_overflow_nowhere(form: Divergence) -> None:
    student, teacher = (side.float() for side in logits(6, 30))
    student[:, 0] += 3000
    teacher[:, 1] += 3000
    values, slope = ours(form, student, teacher)
    assert values.isfinite().all() and slope.isfinite().all()
    if form.beta == 0.5 and form.top_k is form.clip is None:
        assert values.tolist() == pytest.approx([math.log(2)] * 6, rel=1e-6)
    if form.beta == 1.0 and form.top_k is form.clip is None:
        expected = teacher.double().log_softmax(-1)[:, 0].neg()
        assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_tail_too_small_for_one_minus_the_rest_counts() -> None:
    """The teacher's rest is 1e-13: in float32 one minus the others would be 0 or 1e-7."""
    student = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0, -30.0, -31.0]])
    form = Divergence(1.0, 2, tail=True)
    values, slope = ours(form, student, teacher)
    expected, expected_slope = with_slope(form, student, teacher)
    assert error(values, expected) < 1e-6 and error(slope, expected_slope) < 1e-6
    assert float(values) > 10


@pytest.mark.parametrize(
    "wrong", [{"beta": -0.1}, {"beta": 1.1}, {"beta": math.nan}, {"beta": 1, "top_k": 0},
              {"beta": 1, "tail": True}, {"beta": 1, "clip": 0.0}, {"beta": 1, "clip": math.nan}],
)  # fmt: skip
def test_what_is_no_divergence_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"beta is|top_k|clip is"):
        Divergence(**wrong)


# In the fused head


@dataclass(frozen=True)
class Head:
    """Float64 leaves of one side."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    temperature: float

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def to(self, dtype: torch.dtype) -> Head:
        def leaf(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(dtype).requires_grad_()

        return replace(
            self, hidden=leaf(self.hidden), weight=leaf(self.weight), bias=leaf(self.bias)
        )

    def output(self, chunk: int) -> OutputHead:
        return OutputHead(self.weight, self.bias, self.softcap, self.temperature, chunk)

    def logits(self) -> Tensor:
        """Over T."""
        raw = self.hidden @ self.weight.T
        raw = raw if self.bias is None else raw + self.bias
        capped = raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)
        return capped / self.temperature


TOKENS, VOCABULARY, HIDDEN = 13, 300, 6
SIDES = {  # the student's soft-cap, whether there are biases, the teacher's hidden size (or tied)
    "tied": (None, False, None),
    "tied, capped": (5.0, True, None),
    "untied": (None, True, HIDDEN),
    "wider, capped": (5.0, False, 9),
}


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def sides(kind: str) -> tuple[Head, Head]:
    softcap, bias, wide = SIDES[kind]
    student = Head(
        draw(TOKENS, HIDDEN, seed=1),
        draw(VOCABULARY, HIDDEN, seed=2),
        draw(VOCABULARY, seed=3) if bias else None,
        softcap,
        temperature=0.7,
    ).to(torch.float64)
    if wide is None:
        return student, replace(student, hidden=draw(TOKENS, HIDDEN, seed=4))
    weight, other = draw(VOCABULARY, wide, seed=5), draw(VOCABULARY, seed=7) if not bias else None
    return student, Head(draw(TOKENS, wide, seed=6), weight, other, 4.0, 1.3).to(torch.float64)


TARGETS = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(8))
SHARES = draw(3, TOKENS, seed=9)
"""Weights of the policy term, the divergence and the entropy, of both signs."""


def token_loss(part: slice, logprobs: Tensor, entropies: Tensor, distances: Tensor) -> Tensor:
    """Policy term, distillation and entropy, linear in none of them."""
    policy, distill, entropy = SHARES[:, part].to(logprobs.dtype)
    value = policy * logprobs.exp() + distill * (distances + distances.square() / 4)
    return value + entropy * entropies.sin()


def naive_fused(
    form: Divergence, student: Head, teacher: Head, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss, over clipped divergences, and the whole divergences."""
    logits = student.logits()
    logprobs = logits.log_softmax(-1)
    distances = naive(form, logits, teacher.logits().detach())
    distances = distances if keep is None else distances * keep
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    picked = logprobs.gather(1, TARGETS[:, None])[:, 0]
    total = token_loss(slice(None), picked, entropies, distances).sum()
    whole = naive(replace(form, clip=None), logits, teacher.logits().detach())
    return total, whole if keep is None else whole * keep


def fused(
    form: Divergence, student: Head, teacher: Head, chunk: int = 5, keep: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    side = TeacherSide(teacher.output(99), teacher.hidden, form, keep)
    return fused_loss(student.output(chunk), student.hidden, TARGETS, token_loss, True, side)


def gradients(total: Tensor, student: Head) -> list[Tensor]:
    return list(torch.autograd.grad(total, student.leaves))


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_the_fused_head_is_the_naive_sum(form: Divergence, kind: str) -> None:
    student, teacher = sides(kind)
    expected, expected_distances = naive_fused(form, student, teacher)
    total, _, distances = fused(form, student, teacher)
    assert not distances.requires_grad
    assert error(total.detach(), expected.detach()) < 1e-9
    assert error(distances, expected_distances.detach()) < 1e-9
    for found, truth in zip(gradients(total, student), gradients(expected, student), strict=True):
        assert error(found, truth) < 1e-9


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_the_fused_head_is_the_naive_sum_in_float32(form: Divergence, kind: str) -> None:
    student, teacher = (side.to(torch.float32) for side in sides(kind))
    # The reference sees the numbers as rounded, so that only the arithmetic is compared.
    exact, exact_teacher = student.to(torch.float64), teacher.to(torch.float64)
    expected, expected_distances = naive_fused(form, exact, exact_teacher)
    total, _, distances = fused(form, student, teacher)
    assert distances.dtype == torch.float32
    assert error(distances, expected_distances.detach()) < 1e-5
    for found, truth in zip(gradients(total, student), gradients(expected, exact), strict=True):
        assert found.dtype == torch.float32 and error(found, truth) < 1e-5


@pytest.mark.parametrize("form", [Divergence(0.0), Divergence(1.0), Divergence(0.5)], ids=str)
def test_bfloat16_hidden_states_over_float32_weights(form: Divergence) -> None:
    """Products in bfloat16 on both sides, divergences in float32: 3 % of the largest."""
    exact, exact_teacher = sides("untied")
    student, teacher = exact.to(torch.float32), exact_teacher.to(torch.float32)
    student = replace(student, hidden=student.hidden.detach().bfloat16().requires_grad_())
    teacher = replace(teacher, hidden=teacher.hidden.detach().bfloat16())
    expected, expected_distances = naive_fused(form, exact, exact_teacher)
    total, _, distances = fused(form, student, teacher)
    assert distances.dtype == torch.float32
    assert error(distances, expected_distances.detach()) < 0.03
    for found, truth in zip(gradients(total, student), gradients(expected, exact), strict=True):
        assert error(found, truth) < 0.03


@pytest.mark.parametrize("form", FORMS + CLIPPED, ids=str)
def test_the_chunk_size_changes_nothing(form: Divergence) -> None:
    student, teacher = sides("wider, capped")
    whole = fused(form, student, teacher, chunk=100)
    together = gradients(whole[0], student)
    for chunk in (1, 4, 13):
        found = fused(form, student, teacher, chunk)
        assert error(found[2], whole[2]) < 1e-12
        for part, all_of_it in zip(gradients(found[0], student), together, strict=True):
            assert error(part, all_of_it) < 1e-12


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = sides("untied")
    fused(Divergence(0.5), student, teacher)[0].backward()
    assert all(leaf.grad is not None for leaf in student.leaves)
    assert all(leaf.requires_grad and leaf.grad is None for leaf in teacher.leaves)


def test_a_teacher_that_is_the_student_pulls_nowhere() -> None:
    student, _ = sides("tied")
    side = TeacherSide(student.output(5), student.hidden, Divergence(0.5))
    total, _, distances = fused_loss(
        student.output(5), student.hidden, TARGETS, lambda *numbers: numbers[-1], teacher=side
    )
    assert float(distances.abs().max()) < 1e-14
    assert all(float(gradient.abs().max()) < 1e-14 for gradient in gradients(total, student))


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_only_wanted_tokens_are_compared(chunk: int) -> None:
    """The others are 0 without gradient, and what the teacher makes of them is never seen."""
    student, teacher = sides("untied")
    keep = torch.zeros(TOKENS, dtype=torch.bool)
    keep[[0, 6, 7]] = True
    expected, expected_distances = naive_fused(Divergence(0.5), student, teacher, keep)
    teacher.hidden.data[~keep] = math.nan
    total, _, distances = fused(Divergence(0.5), student, teacher, chunk, keep)
    assert not distances[~keep].any()
    assert error(distances, expected_distances.detach()) < 1e-9
    for found, truth in zip(gradients(total, student), gradients(expected, student), strict=True):
        assert error(found, truth) < 1e-9


def test_chunks_without_a_wanted_token_need_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(form: Divergence, logprobs: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(teacher))
        return divergences(form, logprobs, teacher)

    monkeypatch.setattr("castctl.models.head.divergences", note)
    student, teacher = sides("untied")
    keep = torch.arange(TOKENS) >= 10
    fused(Divergence(0.5), student, teacher, 5, keep)
    assert seen == [3]


def test_what_cannot_be_compared_is_refused() -> None:
    student, teacher = sides("untied")
    smaller = replace(teacher, weight=teacher.weight[:-1])
    with pytest.raises(ValueError, match="vocabulary is 299 tokens, the student's 300"):
        fused(Divergence(0.5), student, smaller)
    shorter = replace(teacher, hidden=teacher.hidden[:-1])
    with pytest.raises(ValueError, match="hidden states of 12 tokens, the student of 13"):
        fused(Divergence(0.5), student, shorter)
