"""The chunked output head against the naive form: all logits at once, and autograd."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from castctl.models.head import OutputHead, TokenLoss, fused_loss, score_tokens


@dataclass(frozen=True)
class Case:
    """Shapes and settings of a head, and a seed for its numbers."""

    tokens: int
    vocabulary: int
    hidden: int
    chunk: int
    temperature: float
    softcap: float | None
    bias: bool
    entropies: bool
    seed: int


cases = st.builds(
    Case,
    tokens=st.integers(0, 9),
    vocabulary=st.integers(1, 40),
    hidden=st.integers(1, 6),
    chunk=st.integers(1, 12),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    bias=st.booleans(),
    entropies=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@dataclass
class Inputs:
    """Float64 leaves of one case."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    coefficients: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_()

        bias = None if self.bias is None else leaf(self.bias)
        return Inputs(
            leaf(self.hidden), leaf(self.weight), bias, self.targets, self.coefficients.to(dtype)
        )

    @property
    def gradients(self) -> list[Tensor]:
        leaves = [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]
        return [leaf.grad for leaf in leaves if leaf.grad is not None]


def inputs_of(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, generator=generator)

    return Inputs(
        hidden=(2 * draw(case.tokens, case.hidden)).requires_grad_(),
        weight=draw(case.vocabulary, case.hidden).requires_grad_(),
        bias=draw(case.vocabulary).requires_grad_() if case.bias else None,
        targets=torch.randint(case.vocabulary, (case.tokens,), generator=generator),
        coefficients=draw(case.tokens, 2),
    )


def token_loss(coefficients: Tensor, entropies: bool) -> TokenLoss:
    """A loss that is linear in neither, so that each token's own coefficient matters."""

    def loss(part: slice, logprobs: Tensor, entropy: Tensor, divergence: Tensor) -> Tensor:
        by_logprob, by_entropy = coefficients[part].unbind(1)
        value = by_logprob * (logprobs.exp() + logprobs)
        return value + by_entropy * entropy.sin() if entropies else value

    return loss


def head_of(case: Case, inputs: Inputs) -> OutputHead:
    return OutputHead(inputs.weight, inputs.bias, case.softcap, case.temperature, case.chunk)


def naive(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies, by definition."""
    logits = inputs.hidden @ inputs.weight.T
    if inputs.bias is not None:
        logits = logits + inputs.bias
    if case.softcap is not None:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    log_softmax = torch.log_softmax(logits / case.temperature, dim=-1)
    entropies = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_softmax.gather(1, inputs.targets[:, None])[:, 0], entropies


def naive_loss(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    logprobs, entropies = naive(case, inputs)
    loss = token_loss(inputs.coefficients, case.entropies)
    none = torch.zeros_like(logprobs)
    return loss(slice(None), logprobs, entropies, none).sum(), logprobs


def fused(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    total, logprobs, divergences = fused_loss(
        head_of(case, inputs),
        inputs.hidden,
        inputs.targets,
        token_loss(inputs.coefficients, case.entropies),
        with_entropies=case.entropies,
    )
    assert divergences.shape == logprobs.shape and not divergences.any()
    return total, logprobs


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected value; absolute where that is below one."""
    if expected.numel() == 0:
        return 0.0
    error = (found.double() - expected.double()).abs().max()
    return float(error / expected.abs().max().clamp(min=1.0))


def compare(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    exact = inputs_of(case)
    low = exact.to(dtype)
    # The reference sees the numbers as rounded, so that only the arithmetic is compared.
    reference = low.to(torch.float64)
    expected, expected_logprobs = naive_loss(case, reference)
    expected.backward()
    found, logprobs = fused(case, low)
    found.backward()
    assert found.shape == () and logprobs.shape == (case.tokens,)
    assert not logprobs.requires_grad
    # Where a case cancels so badly that the naive form in the same dtype misses, ours may too.
    rounded = exact.to(dtype)
    naive, naive_logprobs = naive_loss(case, rounded)
    naive.backward()

    def close(mine: Tensor, plain: Tensor, truth: Tensor) -> bool:
        return relative(mine, truth) < max(tolerance, 4 * relative(plain, truth))

    assert close(found.detach(), naive.detach(), expected.detach())
    assert close(logprobs, naive_logprobs.detach(), expected_logprobs.detach())
    assert len(low.gradients) == len(reference.gradients)
    for mine, plain, truth in zip(
        low.gradients, rounded.gradients, reference.gradients, strict=True
    ):
        assert mine.dtype == dtype
        assert close(mine, plain, truth)


NO_TOKENS = Case(0, 5, 3, 4, 1.0, None, True, True, 0)
ONE_CHUNK = Case(9, 40, 6, 100, 0.7, 2.0, True, True, 1)


@given(cases)
@settings(max_examples=150, deadline=None)
@example(NO_TOKENS)
@example(ONE_CHUNK)
def test_the_fused_loss_is_the_naive_one_in_float64(case: Case) -> None:
    compare(case, torch.float64, 1e-9)


@given(cases)
@settings(max_examples=100, deadline=None)
@example(NO_TOKENS)
@example(ONE_CHUNK)
def test_the_fused_loss_is_the_naive_one_in_float32(case: Case) -> None:
    compare(case, torch.float32, 1e-5)


@pytest.mark.parametrize("entropies", [False, True])
def test_bfloat16_hidden_states_over_float32_weights(entropies: bool) -> None:
    """As training has them: the products in bfloat16, probabilities and sums in float32."""
    case = Case(64, 300, 32, 17, 1.0, None, False, entropies, 3)
    exact = inputs_of(case)
    exact.weight.data *= 0.2
    reference = exact.to(torch.float64)
    expected, expected_logprobs = naive_loss(case, reference)
    expected.backward()
    low = exact.to(torch.float32)
    hidden = low.hidden.detach().bfloat16().requires_grad_()
    found, logprobs, _ = fused_loss(
        head_of(case, low),
        hidden,
        low.targets,
        token_loss(low.coefficients, entropies),
        with_entropies=entropies,
    )
    found.backward()
    assert hidden.grad is not None and low.weight.grad is not None
    assert hidden.grad.dtype == torch.bfloat16 and low.weight.grad.dtype == torch.float32
    assert logprobs.dtype == torch.float32
    assert (logprobs - expected_logprobs).abs().max() < 0.1
    assert relative(hidden.grad, reference.gradients[0]) < 0.03
    assert relative(low.weight.grad, reference.gradients[1]) < 0.03


@pytest.mark.parametrize("entropies", [False, True])
def test_the_gradient_scales_with_what_comes_from_above(entropies: bool) -> None:
    case = Case(7, 11, 4, 3, 0.9, None, True, entropies, 5)
    once, scaled = inputs_of(case), inputs_of(case)
    fused(case, once)[0].backward()
    ((fused(case, scaled)[0] - 3.0).square() / 2).backward()
    above = fused(case, once)[0].item() - 3.0
    for gradient, other in zip(once.gradients, scaled.gradients, strict=True):
        torch.testing.assert_close(other, gradient * above, rtol=1e-12, atol=1e-12)


def test_gradients_of_several_losses_add_up() -> None:
    """A tied embedding gets a gradient from the head and one from the body."""
    case = Case(6, 9, 4, 4, 1.0, None, False, False, 6)
    inputs = inputs_of(case)
    fused(case, inputs)[0].backward()
    alone = inputs.weight.grad
    assert alone is not None
    tied = inputs.to(torch.float64)
    (fused(case, tied)[0] + 2 * tied.weight.sum()).backward()
    torch.testing.assert_close(tied.weight.grad, alone + 2)


def test_frozen_inputs_get_no_gradient() -> None:
    case = Case(6, 9, 4, 4, 1.0, None, False, True, 7)
    for frozen in ("hidden", "weight"):
        inputs, reference = inputs_of(case), inputs_of(case)
        getattr(inputs, frozen).requires_grad_(False)
        fused(case, inputs)[0].backward()
        naive_loss(case, reference)[0].backward()
        moving = "weight" if frozen == "hidden" else "hidden"
        assert getattr(inputs, frozen).grad is None
        torch.testing.assert_close(getattr(inputs, moving).grad, getattr(reference, moving).grad)


def test_without_entropies_and_teacher_the_loss_sees_zeros() -> None:
    case = Case(5, 9, 4, 2, 1.0, None, False, False, 8)
    inputs, seen = inputs_of(case), []

    def note(part: slice, logprobs: Tensor, entropies: Tensor, divergences: Tensor) -> Tensor:
        assert torch.equal(entropies, divergences)
        seen.append((part.start, part.stop, divergences.tolist()))
        return logprobs

    fused_loss(head_of(case, inputs), inputs.hidden, inputs.targets, note)
    assert seen == [(0, 2, [0, 0]), (2, 4, [0, 0]), (4, 5, [0])]


# Scores without gradients


@given(cases)
@settings(max_examples=100, deadline=None)
@example(NO_TOKENS)
@example(ONE_CHUNK)
def test_scores_are_the_naive_ones(case: Case) -> None:
    exact = inputs_of(case)
    for dtype in (torch.float32, torch.float64):
        inputs = exact.to(dtype)
        logprobs, entropies = score_tokens(head_of(case, inputs), inputs.hidden, inputs.targets)
        expected_logprobs, expected_entropies = naive(case, inputs.to(torch.float64))
        assert logprobs.dtype == entropies.dtype == torch.float32
        assert logprobs.shape == entropies.shape == (case.tokens,)
        assert relative(logprobs, expected_logprobs.detach()) < 1e-5
        assert relative(entropies, expected_entropies.detach()) < 1e-5
        assert not logprobs.requires_grad and not entropies.requires_grad


def test_huge_logits_overflow_nowhere() -> None:
    case = Case(4, 6, 3, 2, 0.5, None, False, True, 9)
    inputs = inputs_of(case)
    inputs.hidden.data *= 1000
    inputs.targets[0] = int((inputs.hidden[0] @ inputs.weight.T).argmax())
    low = inputs.to(torch.float32)
    logprobs, entropies = score_tokens(head_of(case, low), low.hidden, low.targets)
    expected, _ = naive(case, low.to(torch.float64))
    torch.testing.assert_close(logprobs.double(), expected.detach(), rtol=1e-5, atol=1e-2)
    assert logprobs[0].abs() < 1e-2 and entropies.isfinite().all()
    fused(case, low)[0].backward()
    assert all(gradient.isfinite().all() for gradient in low.gradients)


PEAK_SCRIPT = """
import torch
from castctl.methods.divergence import Divergence
from castctl.models.head import OutputHead, TeacherSide, fused_loss, score_tokens

torch.set_num_threads(1)
N, V, H = 2048, 50_000, 32

def peak():
    # Unlike ru_maxrss, which starts at the parent's, this is the process's own.
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20

hidden = torch.randn(N, H, requires_grad=True)
weight = torch.randn(V, H, requires_grad=True)
targets = torch.randint(V, (N,))
head = OutputHead(weight, None, None, 1.0, chunk_tokens=128)
fused_loss(head, hidden[:1], targets[:1], lambda _, l, e, d: l + e, True)[0].backward()
before = peak()
score_tokens(head, hidden, targets)
scored = peak()
fused_loss(head, hidden, targets, lambda _, l, e, d: l + e, True)[0].backward()
fused = peak()
teacher = TeacherSide(head, hidden.detach(), Divergence(0.5))
fused_loss(head, hidden, targets, lambda _, l, e, d: l + e + d, True, teacher)[0].backward()
distilled = peak()
torch.log_softmax(hidden.detach() @ weight.detach().T, dim=-1)
print(*(value - before for value in (scored, fused, distilled, peak())), N * V * 4 / 2**30)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_logits_are_never_there_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT], capture_output=True, text=True, check=True
    )
    scored, fused_peak, distilled, naive_peak, logits = map(float, done.stdout.split())
    assert naive_peak > logits, "the measurement would not notice all logits"
    assert scored < logits / 2
    assert fused_peak < logits / 2
    assert distilled < logits / 2


def test_entropies_of_a_real_vocabulary_are_exact() -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(151_936, 64) * 0.2, torch.randn(4, 64) * 3
    head = OutputHead(weight, None, None, 1.0, 3)
    targets = torch.tensor([0, 1, 2, 3])
    _, entropies = score_tokens(head, hidden, targets)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    assert entropies is not None
    assert torch.allclose(entropies.double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=5e-6)
    alone, none = score_tokens(head, hidden, targets, with_entropies=False)
    assert none is None and torch.equal(alone, score_tokens(head, hidden, targets)[0])
