"""Diagnostic `flips`: which tokens CAST turned against their completion's verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castctl.diagnosis.agreement import add_agreement, agreement
from castctl.diagnosis.clusters import PromptSums, tenths, trend
from castctl.diagnosis.data import Flags, Floats, StepData
from castctl.diagnosis.diagnosis import Context, Numbers
from castctl.diagnosis.spelled import Extremes, TokenTally
from castctl.methods.cast import CastShaping
from castctl.methods.shaping import Shaped
from castctl.ragged import means, spread, sums

DIRECTIONS = ("down", "up")
"""From a positive base to a negative advantage, and the other way."""

TOKENS, CONTEXTS = 20, 10
"""Tokens of the vocabulary, and occurrences, told of each direction."""

TO_END = (0, 1, 2, 4, 8, 16, 32, 64)
"""Where bins of the distance to a completion's last token begin, in tokens."""


def measure(steps: Iterator[StepData], context: Context) -> Numbers:
    """Flipped tokens of these steps, `down` (base above 0, advantage below) and `up`.

    Every estimate is `{mean, low, high}` with a 95 % interval over prompts, or None. Of each
    direction the shares are of the tokens that could flip so: those with that sign of the base.

    - `prompts`, `tokens`: how many were read; `settings`: CAST's, as the parts say them, or None.
    - `down`, `up`: `candidates`, `flipped` (tokens); `share`; `by_correct`, by the number correct
      in the group; `by_position`, by tenth of the completion; `by_distance`, by tokens to its end
      in bins from `to_end`; `by_entropy`, by tenth of the step's entropies, None without them;
      `before`, mean |A'| of the flipped tokens, shaped but not flipped, and `after`, their mean
      |A|; `lost`, the share of all |A'| of that side that flipping took from the verdict's
      direction, (|A'| + |A|) / sum |A'|.
    - `agreement`: by verdict, how often the advantage has the sign of the gap, see `agreement`.
    - `completions`: share of the completions with a base that have a flip.
    - `entropy`: mean entropy (nats) of each tenth, None without entropies.
    - `tokens_down`, `tokens_up`: `id`, `text`, how often it was `flipped`, of how many
      `candidates`; `contexts_down`, `contexts_up`: those with the largest |gap|, one a prompt,
      with `step`, `prompt_id`, `sample`, `position`, `before`, `token`, `after`, `gap` and
      `advantage`.
    - `clamp_removed`: by number correct, the share of shaped tokens whose shaping the clamp undid
      (`CastShaping.measures`), mean over steps.
    - `trend`: change of the share `down` and `up` a step, by least squares over steps.
    - `by_step`: `step`, `down`, `up`, `completions`, `rms` of the gap (nats), `smallest`, the
      smallest |gap| that flipped, `floored`, the share of groups in which the floor decides.
    """
    total = PromptSums()
    by_step: list[dict[str, Any]] = []
    tallies = {way: TokenTally("flipped", "candidates") for way in DIRECTIONS}
    extremes = {way: Extremes(CONTEXTS) for way in DIRECTIONS}
    removed: list[list[float]] = []
    settings: dict[str, Any] | None = None
    tokens = 0
    for data in steps:
        tokens += len(data.ids_N)
        cast = _settings(data)
        settings = settings or (None if cast is None else cast.model_dump(mode="json"))
        own = total.fresh()
        flipped = _flipped(data)
        _add(own, data, flipped, cast)
        assert data.shaped is not None
        add_agreement(own, data, data.shaped.advantages_N)
        for way, (candidates_N, flipped_N) in flipped.items():
            tallies[way].add(
                data.ids_N[candidates_N],
                flipped=flipped_N[candidates_N],
                candidates=np.ones(int(candidates_N.sum())),
            )
            _keep_largest(extremes[way], data, flipped_N, context)
        if cast is not None:
            removed.append(_removed(data, cast))
        by_step.append(_step(own, data, flipped, cast))
        total.merge(own)
    return {
        "prompts": total.prompts,
        "tokens": tokens,
        "settings": settings,
        "to_end": list(TO_END),
        **{way: _direction(total, way) for way in DIRECTIONS},
        "agreement": agreement(total),
        "completions": total.share("completions_flipped", "completions"),
        "entropy": _entropies(total),
        **{f"tokens_{w}": tallies[w].top("flipped", TOKENS, context.texts) for w in DIRECTIONS},
        **{f"contexts_{way}": extremes[way].told() for way in DIRECTIONS},
        "clamp_removed": _mean_by_place(removed),
        "trend": {
            way: trend([step["step"] for step in by_step], [step[way] for step in by_step])
            for way in DIRECTIONS
        },
        "by_step": by_step,
    }


def _settings(data: StepData) -> CastShaping | None:
    """The shaping that made the advantages, where their metadata say it was CAST's."""
    shaping = None if data.slots is None else data.slots.shaping
    return shaping if isinstance(shaping, CastShaping) else None


def _flipped(data: StepData) -> dict[str, tuple[Flags, Flags]]:
    """Of each direction the tokens that could flip (N), and those that did (N)."""
    assert data.shaped is not None and data.shaped.flipped_N is not None, "flips were asked for"
    base_N = spread(data.shaped.base_R, data.offsets)
    sides = {"down": base_N > 0, "up": base_N < 0}
    return {way: (side, side & data.shaped.flipped_N) for way, side in sides.items()}


def _add(
    own: PromptSums, data: StepData, flipped: dict[str, tuple[Flags, Flags]],
    cast: CastShaping | None,
) -> None:  # fmt: skip
    assert data.shaped is not None
    prompt_R, row_N = own.numbers(data.prompt_ids), data.row_N
    prompt_N = prompt_R[row_N]
    before_N, after_N = _unflipped(data, cast), np.abs(data.shaped.advantages_N)
    places = _places(data)
    for way, (candidates_N, flipped_N) in flipped.items():
        for name, chosen_N in ((f"{way}_candidates", candidates_N), (f"{way}_flipped", flipped_N)):
            own.add(name, prompt_N[chosen_N])
            for by, (bin_N, bins) in places.items():
                own.add(f"{name}_{by}", prompt_N[chosen_N], None, bin_N[chosen_N], bins)
        own.add(f"{way}_mass", prompt_N[candidates_N], before_N[candidates_N])
        own.add(f"{way}_before", prompt_N[flipped_N], before_N[flipped_N])
        own.add(f"{way}_after", prompt_N[flipped_N], after_N[flipped_N])
        own.add(f"{way}_lost", prompt_N[flipped_N], (before_N + after_N)[flipped_N])
    if "entropy" in places:
        bin_N, bins = places["entropy"]
        own.add("entropy", prompt_N, data.entropies_N, bin_N, bins)
        own.add("tenth", prompt_N, None, bin_N, bins)
    directed_R = (data.shaped.base_R != 0) & (data.lengths_R > 0)
    any_N = flipped["down"][1] | flipped["up"][1]
    any_R = sums(any_N, row_N, len(prompt_R)) > 0
    own.add("completions", prompt_R[directed_R])
    own.add("completions_flipped", prompt_R[any_R])


def _unflipped(data: StepData, cast: CastShaping | None) -> Floats:
    """|A'| of each token (N), shaped and clamped but not flipped (CAST, arXiv 2606.00172)."""
    assert data.shaped is not None
    weights_N = data.shaped.weights_N
    before_N = np.abs(spread(data.shaped.base_R, data.offsets))
    before_N = before_N if weights_N is None else before_N * weights_N
    return before_N if cast is None or cast.clamp is None else np.minimum(before_N, cast.clamp)


def _places(data: StepData) -> dict[str, tuple[NDArray[np.int64], int]]:
    """The bin of each token (N), and how many bins there are, by number correct, position,
    distance to the end, and entropy within the step."""
    right_G = _right(data)
    row_N = data.row_N
    distance_N = spread(data.offsets[1:], data.offsets) - 1 - np.arange(len(data.ids_N))
    places = {
        "correct": (right_G[data.groups.of_row[row_N]], int(right_G.max(initial=0)) + 1),
        "position": (tenths(data.position_N), 10),
        "distance": (np.searchsorted(TO_END, distance_N, side="right") - 1, len(TO_END)),
    }
    if data.entropies_N is not None and len(data.ids_N) and not np.isnan(data.entropies_N).any():
        edges = np.quantile(data.entropies_N, np.arange(1, 10) / 10)
        places["entropy"] = (np.searchsorted(edges, data.entropies_N, side="right"), 10)
    return places


def _right(data: StepData) -> NDArray[np.int64]:
    """How many completions of each group (G) are correct."""
    return sums(data.correct_R, data.groups.of_row, data.groups.count).astype(np.int64)


def _keep_largest(extremes: Extremes, data: StepData, flipped_N: Flags, context: Context) -> None:
    assert data.shaped is not None and data.signals is not None
    gap_N = data.signals.tokens.gap_N
    assert gap_N is not None, "a gap was asked for"
    places = np.flatnonzero(flipped_N)
    extremes.add(
        data, places, np.abs(gap_N[places]), context.texts,
        gap=gap_N, advantage=data.shaped.advantages_N,
    )  # fmt: skip


def _removed(data: StepData, cast: CastShaping) -> list[float]:
    assert data.shaped is not None
    shaped = Shaped(data.shaped.advantages_N, data.shaped.weights_N, data.shaped.flipped_N)
    told = cast.measures(data.shaped.base_R, shaped, data.offsets, data.groups)
    shares = told["clamp_removed_share"]
    return shares if isinstance(shares, list) else [shares]


def _entropies(total: PromptSums) -> list[float | None] | None:
    if not total.total("tenth"):
        return None
    return [None if each is None else each["mean"] for each in total.ratios("entropy", "tenth")]


def _mean_by_place(rows: list[list[float]]) -> list[float | None]:
    """Mean of the numbers at each place, of those that are any; None without one."""
    columns = itertools.zip_longest(*rows, fillvalue=math.nan)
    known = [[value for value in column if not math.isnan(value)] for column in columns]
    return [sum(column) / len(column) if column else None for column in known]


def _direction(sums_of: PromptSums, way: str) -> dict[str, Any]:
    told: dict[str, Any] = {
        "candidates": int(sums_of.total(f"{way}_candidates")),
        "flipped": int(sums_of.total(f"{way}_flipped")),
        "share": sums_of.share(f"{way}_flipped", f"{way}_candidates"),
        "before": sums_of.ratio(f"{way}_before", f"{way}_flipped"),
        "after": sums_of.ratio(f"{way}_after", f"{way}_flipped"),
        "lost": sums_of.ratio(f"{way}_lost", f"{way}_mass"),
    }
    for by in ("correct", "position", "distance", "entropy"):
        told[f"by_{by}"] = sums_of.shares(f"{way}_flipped_{by}", f"{way}_candidates_{by}")
    if not sums_of.total("tenth"):
        told["by_entropy"] = None
    return told


def _step(
    own: PromptSums, data: StepData, flipped: dict[str, tuple[Flags, Flags]],
    cast: CastShaping | None,
) -> dict[str, Any]:  # fmt: skip
    assert data.signals is not None and data.signals.tokens.gap_N is not None
    gap_N = data.signals.tokens.gap_N
    any_N = flipped["down"][1] | flipped["up"][1]
    return {
        "step": data.step,
        **{way: own.share(f"{way}_flipped", f"{way}_candidates") for way in DIRECTIONS},
        "completions": own.share("completions_flipped", "completions"),
        "rms": float(np.sqrt(np.nanmean(gap_N**2))) if (~np.isnan(gap_N)).any() else None,
        "smallest": float(np.abs(gap_N[any_N]).min()) if any_N.any() else None,
        "floored": None if cast is None else _floored(data, gap_N, cast),
    }


def _floored(data: StepData, gap_N: Floats, cast: CastShaping) -> float | None:
    """The share of groups with a gap whose threshold is the floor, not the spread of their gap."""
    if cast.tau_nats is not None:
        return None
    counted = ~np.isnan(gap_N) & data.known_R[data.row_N]
    group = data.groups.of_row[data.row_N][counted]
    rms_G = np.sqrt(means(gap_N[counted] ** 2, group, data.groups.count))
    there = np.bincount(group, minlength=data.groups.count) > 0
    return float((cast.tau_rms * rms_G < cast.tau_floor)[there].mean()) if there.any() else None
