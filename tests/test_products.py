"""Matrix products of a CPU: as exact as torch's, and torch's own wherever oneDNN does not serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import models
from castctl.engines.sampling import draw
from castctl.models import products

ROWS, WIDTH, OUTPUTS = 64, 192, 512


@pytest.fixture(params=["AuthenticAMD", "GenuineIntel"])
def cpu(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A CPU that is said to be of this maker."""
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {request.param}\n")
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    products.is_faster.cache_clear()
    yield request.param
    monkeypatch.undo()
    products.is_faster.cache_clear()


def given(*shape: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape, WIDTH), torch.randn(OUTPUTS, WIDTH), torch.randn(OUTPUTS)]


@pytest.mark.parametrize("shape", [(ROWS,), (4, ROWS // 4), (1, ROWS)])
def test_products_and_gradients_are_those_of_float64(cpu: str, shape: tuple[int, ...]) -> None:
    tensors = [each.requires_grad_() for each in given(*shape)]
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    product, exact = products.linear(*tensors), torch.nn.functional.linear(*doubles)
    torch.testing.assert_close(product.double(), exact, rtol=0, atol=1e-4)
    slope = torch.randn(exact.shape)
    found = torch.autograd.grad(product, tensors, slope, create_graph=True)
    expected = torch.autograd.grad(exact, doubles, slope.double(), create_graph=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-4)
    twice = torch.autograd.grad(found[0].square().sum(), tensors[1])[0]
    torch.testing.assert_close(
        twice.double(), torch.autograd.grad(expected[0].square().sum(), doubles[1])[0],
        rtol=1e-4, atol=1e-1,
    )  # fmt: skip


def test_one_maker_alone_has_slow_products(cpu: str) -> None:
    rows, weight, _ = given(ROWS)
    by_torch = torch.equal(products.linear(rows, weight), torch.nn.functional.linear(rows, weight))
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        assert not products.is_faster()
    else:
        assert products.is_faster() == (cpu == "AuthenticAMD")
    assert by_torch or products.is_faster()


def test_what_onednn_does_not_serve_is_torchs_to_the_bit(cpu: str) -> None:
    rows, weight, bias = given(ROWS)
    linear = torch.nn.functional.linear
    cases = {
        "small": (rows[:2], weight, bias),
        "float64": (rows.double(), weight.double(), bias.double()),
        "bfloat16": (rows.bfloat16(), weight.bfloat16(), bias.bfloat16()),
    }
    for name, tensors in cases.items():
        assert torch.equal(products.linear(*tensors), linear(*tensors)), name
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(rows, weight).dtype == torch.bfloat16


def test_a_torch_without_the_product_is_served_as_before(
    cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(products, "_product", gone)
    products.is_faster.cache_clear()
    assert not products.is_faster()
    rows, weight, bias = given(ROWS)
    expected = torch.nn.functional.linear(rows, weight, bias)
    assert torch.equal(products.linear(rows, weight, bias), expected)


def test_wrong_products_are_not_taken(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_product", lambda rows, weight: rows @ weight.T + 1e-2)
    products.is_faster.cache_clear()
    assert not products.is_faster()


def test_a_loaded_model_takes_them_and_stays_a_model_of_linear_layers(cpu: str) -> None:
    model = models.tiny().model
    names = {name for name, each in model.named_modules() if type(each) is torch.nn.Linear}
    keys = list(model.state_dict())
    products.speed_up(model)
    taken = {name for name, each in model.named_modules() if type(each) is products.Linear}
    assert taken == (names if products.is_faster() else set()) and names
    assert list(model.state_dict()) == keys
    assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in names)


def test_a_draw_is_the_inverse_of_the_exact_distribution() -> None:
    """Of a vocabulary that is no whole number of blocks; uniforms next to a step are left out."""
    torch.manual_seed(0)
    scores = torch.randn(64, 5_000) * 3
    uniforms = torch.rand(64, dtype=torch.float64)
    reached = torch.softmax(scores.double(), -1).cumsum(-1)
    token, logprobs = draw(scores, uniforms)
    clear = (reached - uniforms[:, None]).abs().amin(-1) > 1e-6
    expected = torch.searchsorted(reached, uniforms[:, None], right=True)[:, 0]
    assert clear.sum() > 60 and torch.equal(token[clear], expected[clear])
    exact = torch.log_softmax(scores.double(), -1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-5)
