"""Refusing models whose log-probs castctl would get wrong.

Packing, the output head and the recomputing of activations each presume something of a model,
and an architecture that breaks a presumption gives wrong numbers without a word. What is compared
here are log-probs, through castctl's head, with those of the model's own plain forward pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castctl.errors import UserError, one_line
from castctl.models import attention
from castctl.models.language_model import LanguageModel
from castctl.models.packing import Ids
from castctl.models.twin import WINDOW, twin_of

TOLERANCE = 2e-3
"""Nats between two right ways to a log-prob: float32 makes 1e-5 of them, in peaked models 1e-4."""
LONG, SHORT = 40, WINDOW + 3
"""Tokens of the check's rows: beyond every boundary of a twin, and just beyond its window."""

ATTENTION = frozenset({"full_attention", "sliding_attention"})


class _Wrong(Exception):
    """Why a model is refused, as the end of a sentence that begins with its name."""


def refuse_unpackable(config: Any) -> None:
    """Raise `UserError` for architectures whose configuration alone says that layers would mix
    packed rows, or that logits are rescaled."""
    kinds = set(getattr(config, "layer_types", None) or []) - ATTENTION
    if kinds:
        raise UserError(
            f"{config.model_type} has {', '.join(sorted(kinds))} layers, which would mix the rows "
            "of a packed batch; use a model with attention layers only"
        )
    for name in ("logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1.0):
            raise UserError(f"{config.model_type} sets {name}, which castctl does not apply")


def check_architecture(kind: type, config: Any) -> None:
    """Raise `UserError` unless castctl gets the log-probs of a causal class right.

    Long rows tell: whatever depends on a window, on a boundary of the rotary embedding or on a
    neighbour shows beyond it only. In a model of 8 billion weights a row of 4,100 tokens takes
    minutes on a CPU, and a window may be longer still. So a twin is asked, a small model of the
    same class and configuration whose windows and boundaries are a few tokens (`twin`), under
    the architecture's own attention as the truth. It takes a second at most, whatever the size.
    """
    name = config.model_type
    try:
        ours, theirs = twin_of(kind, config)
    except Exception as error:  # an architecture that breaks here breaks in ways of its own
        refuse_own_attention(name, error)
        raise UserError(
            f"castctl cannot check {name} models, whose small copy does not run: "
            f"{one_line(error, 200, named=True)}"
        ) from None
    try:
        with torch.no_grad():
            _compare(LanguageModel(ours, None, torch.float32), theirs)
    except _Wrong as wrong:
        raise UserError(f"castctl cannot pack {name} models: {wrong}") from None
    except Exception as error:
        raise UserError(f"castctl cannot pack {name} models: {one_line(error)}") from None


def refuse_own_attention(name: str, error: Exception) -> None:
    """Raise `UserError` where an error says that a model's attention cannot be replaced."""
    if attention.NAME in str(error):
        raise UserError(
            f"castctl cannot pack {name} models: their attention is their own and is not replaced"
        ) from None


def check_weights(model: Any) -> None:
    """Raise `UserError` unless the weights give numbers, and a short packed row those of a plain
    one: the configuration and the device are the model's own, as no twin's are."""
    name = model.config.model_type
    prompt, rows = np.array([1, 2, 3]), [np.array([4, 5]), np.array([5, 4, 6])]
    language_model = LanguageModel(model, None, torch.float32)
    try:
        with torch.no_grad():
            packed = _packed(language_model, [prompt, prompt], rows)[len(rows[0]) :]
            plain = _plain(model, prompt, rows[1])
    except Exception as error:
        raise UserError(f"castctl cannot pack {name} models: {one_line(error)}") from None
    if not bool(torch.isfinite(plain).all()):
        raise UserError(f"the weights of the {name} model are broken: its outputs are not numbers")
    if not _fits(packed, plain):
        raise UserError(
            f"castctl cannot pack {name} models: packed, log-probs are {_off(packed, plain)} off"
        )


def _compare(ours: LanguageModel, theirs: Any) -> None:
    """Raise `_Wrong` with the reason where `ours` gives other log-probs than `theirs`."""
    rng = np.random.default_rng(0)
    room = min(LONG, ours.context_tokens)
    vocabulary = min(ours.vocabulary, ours.model.get_input_embeddings().weight.shape[0])
    long, short = (rng.integers(1, vocabulary, length) for length in (room, min(SHORT, room)))
    prompt, other, lone = long[:3], long[3:], short[:2]
    plain_long, plain_short = _plain(theirs, prompt, other), _plain(theirs, lone, short[2:])
    if not bool(torch.isfinite(plain_long).all()):
        raise _Wrong("its small copy gives no numbers")
    cut = min(SHORT, room) - len(prompt)  # within every boundary of the rotary embedding
    if not _fits(_plain(theirs, prompt, other[:cut]), plain_long[:cut]):
        raise _Wrong("its log-probs depend on what follows")
    own_head = _plain(ours.model, prompt, other)
    if not _fits(own_head, plain_long):
        raise _Wrong(
            f"its own attention gives log-probs {_off(own_head, plain_long)} off those of SDPA"
        )
    read = _read(ours, prompt, other)
    if not _fits(read, own_head):
        raise _Wrong(
            "between its layers and its logits stands more than a linear map and a soft-cap "
            f"(log-probs {_off(read, own_head)} off)"
        )
    alone = _packed(ours, [prompt], [other])
    if not _fits(alone, plain_long):
        raise _Wrong(f"a packed row's log-probs are {_off(alone, plain_long)} off")
    # A shared prompt, a neighbour that is longer, and one that is shorter.
    beside = _packed(ours, [lone, prompt, prompt], [short[2:], other[:cut], other])
    expected = torch.cat([plain_short, plain_long[:cut], plain_long])
    if not _fits(beside, expected):
        raise _Wrong(f"its rows change their neighbours' log-probs ({_off(beside, expected)})")
    if ours.model.supports_gradient_checkpointing:
        ours.recompute_activations()
    with ours.recomputing():
        once, again = (_packed(ours, [prompt], [other]) for _ in range(2))
    if not torch.equal(once, again) or not _fits(once, alone):
        raise _Wrong(f"in train mode its log-probs are {_off(once, alone)} off")


def _packed(model: LanguageModel, prompts: list[Ids], completions: list[Ids]) -> Tensor:
    """Log-probs (N) as castctl has them."""
    logprobs, _ = model.score(prompts, completions, 1.0, 10**6, 64, with_entropies=False)
    return torch.from_numpy(logprobs)


def _plain(model: Any, prompt: Ids, completion: Ids) -> Tensor:
    """Log-probs (length) by the model's own logits."""
    ids = torch.from_numpy(np.concatenate([prompt, completion])).to(model.device)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return _at(logits, completion)


def _read(model: LanguageModel, prompt: Ids, completion: Ids) -> Tensor:
    """Log-probs (length) by castctl's head over the base model's plain hidden states."""
    ids = torch.from_numpy(np.concatenate([prompt, completion])).to(model.device)[None]
    output = model.model.base_model(input_ids=ids, use_cache=False)
    hidden = output.last_hidden_state[0, len(prompt) - 1 : -1]
    return _at(model.head(1.0, 64).logits(hidden), completion)


def _at(logits: Tensor, completion: NDArray[np.integer]) -> Tensor:
    targets = torch.from_numpy(completion).to(logits.device)[:, None]
    return logits.log_softmax(-1).gather(1, targets)[:, 0].cpu()


def _fits(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def _off(found: Tensor, expected: Tensor) -> str:
    return f"{float((found - expected).abs().max()):.2g} nats"
