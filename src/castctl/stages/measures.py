"""What a step's shards say in numbers: read from the files, whoever made them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from castctl.errors import UserError, one_line
from castctl.methods.baselines import Baseline, GroupBaseline
from castctl.methods.correction import (
    Correction,
    NoCorrection,
    divergence_terms,
    effective_share,
)
from castctl.methods.groups import KINDS
from castctl.methods.method import Shaping
from castctl.methods.overlong import KeepOverlong, Overlong
from castctl.methods.shaping import NoShaping, Shaped
from castctl.ragged import offsets_of, spread
from castctl.shards.columns import (
    completion_lengths,
    nullable_floats,
    ragged_column,
    reward_values,
)
from castctl.shards.part import read_metadata
from castctl.shards.schema import PEER, REWARD, reward_weights
from castctl.shards.stage import StepFolder, check_aligned, joined
from castctl.stages.groups import reward_groups
from castctl.stages.signals import policy_read, signals_of

Measures = dict[str, float | list[float] | None]


class Slots(BaseModel):
    """The parts of a method that tell of their own work."""

    baseline: Baseline = GroupBaseline()
    shaping: Shaping = NoShaping()
    overlong: Overlong = KeepOverlong()
    correction: Correction = NoCorrection()
    longest: int | None = None
    skip_tokens: int = 0


STAGES = ("rollouts", "rewards", "signals", "advantages")
VERDICTS = ("correct", "wrong", "no_answer", "truncated", "timeout", "error")


def measure_rollouts(table: pa.Table) -> Measures:
    """Sizes and lengths (tokens) of the completions; None for lengths that nobody counted."""
    lengths = completion_lengths(table)
    reasons = np.array(table["finish_reason"].to_pylist())
    return {
        "prompts": len(set(table["prompt_id"].to_pylist())),
        "completions": table.num_rows,
        "completion_tokens": None if lengths is None else int(lengths.sum()),
        "length_mean": None if lengths is None else _mean(lengths),
        "length_max": None if lengths is None else int(lengths.max(initial=0)),
        "truncated_share": _mean(reasons == "length"),
    }


def measure_rewards(table: pa.Table) -> Measures:
    """Mean reward, that of each of several, and the share of each verdict."""
    names = ("reward", *(REWARD + name for name in reward_weights(table.schema)))
    rewards = {name: reward_values(table, name) for name in names}
    verdicts = np.array(table["verdict"].to_pylist())
    return {
        **{f"{name}_mean": _mean(known[~np.isnan(known)]) for name, known in rewards.items()},
        **{f"verdict_{name}": _mean(verdicts == name) for name in VERDICTS},
    }


def measure_signals(
    signals: pa.Table,
    rollouts: pa.Table | None,
    skip_tokens: int = 0,
    correction: Correction | None = None,
) -> Measures:
    """Entropy, the gap l_T - l_old, and sampler against scorer, in nats; the length of bilateral
    prompts, in tokens. Where the reference has read the completions `kl_reference`, KL(policy ||
    reference) in nats a token, by k3 over all tokens. Where a teacher is told peers, the share of
    completions that have one, and of those whose prompt with it was too long, which leaves them
    without a teacher. Of a gap whose first tokens are left out, their share of its size."""
    offsets = None
    if not policy_read(signals):
        whole = signals["policy_logprobs"].null_count < len(signals)
        lengths = None if rollouts is None or whole else completion_lengths(rollouts)
        if lengths is None:  # made elsewhere and not scored whole
            return {}
        offsets = offsets_of(lengths)
    read = signals_of(signals, skip_tokens, offsets=offsets)
    offsets, gap = read.tokens.offsets, read.tokens.gap_N
    measures: Measures = {}
    entropies = nullable_floats(signals, "entropies", offsets)
    if entropies is not None:
        measures["entropy_mean"] = _mean(entropies)
    if gap is not None and read.skipped_N is not None:
        heard = gap[~np.isnan(gap)]
        measures["gap_mean"] = _mean(heard)
        measures["gap_abs_mean"] = _mean(np.abs(heard))
        measures["gap_rms"] = float(np.sqrt(_mean(heard**2)))
        if skip_tokens:
            skipped = np.abs(read.skipped_N).sum()
            total = skipped + np.abs(heard).sum()
            measures["gap_skipped_share"] = float(skipped / total) if total else 0.0
    if (drift := read.tokens.drift_N) is not None:
        measures["kl_reference"] = _mean(divergence_terms(-drift[np.isfinite(drift)]))
    if signals[PEER].null_count < len(signals):
        told = signals[PEER].is_valid().to_numpy()
        asked = signals["teacher_prompt_token_ids"].is_valid().to_numpy()
        measures["peer_share"] = _mean(told)
        measures["peer_too_long_share"] = _mean(told & ~asked)
    for name in ("perturb", "grad"):
        scores = getattr(read.tokens, f"{name}_N")
        if scores is not None:
            read_N = spread(signals[f"importance_{name}"].is_valid().to_numpy(), offsets)
            measures[f"importance_{name}_scored_share"] = _mean(~np.isnan(scores[read_N]))
    prompts = signals["bilateral_prompt_token_ids"].combine_chunks().drop_null()
    if len(prompts):
        measures["bilateral_share"] = len(prompts) / signals.num_rows
        measures["bilateral_prompt_mean"] = _mean(prompts.value_lengths().to_numpy())
        measures["bilateral_prompt_max"] = int(prompts.value_lengths().to_numpy().max())
    if rollouts is not None:
        sampler = nullable_floats(rollouts, "sampler_logprobs", offsets)
        if sampler is not None and read.policy_N is not None:
            measures |= measure_sampler(
                read.policy_N, sampler, offsets, correction or NoCorrection()
            )
    return measures


def measure_sampler(
    policy_N: np.ndarray, sampler_N: np.ndarray, offsets: np.ndarray, correction: Correction
) -> Measures:
    """How far sampler and scorer are apart at the tokens drawn (N, nats), and what the correction
    makes of it.

    - `sampler_gap_max`: the largest |d|, d = l_old - l_sampler; `sampler_kl`: the mean of
      exp(d) - 1 - d, an estimate of KL(sampler || scorer) in nats a token (k3).
    - `correction_masked_share`, `correction_capped_share`: of all completion tokens, those that are
      masked or whose ratio is above the cap, alone or with their completion.
    - `correction_effective_share`: (sum w)^2 / (n sum w^2) of the correction's weights, n the
      completion tokens at level `token`, the completions that have tokens at the others.
    """
    gap = policy_N - sampler_N
    told = gap[np.isfinite(gap)]
    measures: Measures = {
        "sampler_gap_max": float(np.nanmax(np.abs(gap), initial=0)),
        "sampler_kl": _mean(divergence_terms(told)),
    }
    corrected = correction.corrected(policy_N, sampler_N, offsets)
    if corrected is not None:
        measures["correction_masked_share"] = _mean(corrected.masked_N)
        measures["correction_capped_share"] = _mean(corrected.capped_N)
        measures["correction_effective_share"] = effective_share(corrected.weights_U)
    return measures


def measure_advantages(
    advantages: pa.Table, rewards: pa.Table, signals: pa.Table | None, made: Slots
) -> Measures:
    """Group kinds, spread of the advantages, flips, the share of all completion tokens whose policy
    loss weighs 0 by whatever mask, and what baseline and shaping tell of themselves.

    Flips are shares of three different totals, which do not add up: of all completion tokens, down
    of those with a base advantage above 0, up of those below 0; None where there are none of them.
    """
    flat, offsets = ragged_column(advantages, "advantages")
    groups = reward_groups(rewards)
    first = np.unique(groups.of_row, return_index=True)[1]
    kinds = np.array(advantages["group_kind"].to_pylist())[first]
    base_R = advantages["base"].to_numpy().astype(np.float64)
    measures: Measures = {
        **{f"groups_{kind}": _mean(kinds == kind) for kind in KINDS},
        "kept_share": _mean(advantages["kept"].to_numpy(zero_copy_only=False)),
        "advantage_mean": _mean(flat),
        "advantage_abs_mean": _mean(np.abs(flat)),
        "signal_share": _mean(flat != 0),
    }
    flags, flipped = nullable_floats(advantages, "flipped", offsets), None
    if flags is not None:
        flipped = flags == 1
        base_N = spread(base_R, offsets)
        measures["flipped_share"] = _share(flipped, np.full(len(flipped), True))
        measures["flipped_down_share"] = _share(flipped, base_N > 0)
        measures["flipped_up_share"] = _share(flipped, base_N < 0)
    loss_weights = nullable_floats(advantages, "loss_weights", offsets)
    if loss_weights is not None:
        measures["masked_share"] = _mean(loss_weights == 0)
    weights = nullable_floats(advantages, "weights", offsets)
    shaped = Shaped(flat, weights, flipped)
    measures |= made.shaping.measures(base_R, shaped, offsets, groups)
    if signals is not None and (policy_read(signals) or not made.baseline.needs):
        if made.longest is not None:
            groups = made.overlong.penalised(groups, np.diff(offsets), made.longest)
        measures |= made.baseline.measures(groups, signals_of(signals, offsets=offsets).tokens)
    return measures


def measure_step(folder: StepFolder) -> Measures:
    """All measures of a step's stages; one that lacks parts, or was made from other parts than
    those that are there now, is left out.

    Raises `UserError` for lists of parts made elsewhere that do not fit one another.
    """
    try:
        return _measure(folder, _tables(folder))
    except ValueError as error:
        raise UserError(
            f"{folder.path}: {one_line(error)}; castctl inspect {folder.path} --verify says where"
        ) from None


def _measure(folder: StepFolder, tables: dict[str, pa.Table]) -> Measures:
    measures: Measures = {}
    if "rollouts" in tables:
        measures |= measure_rollouts(tables["rollouts"])
    if "rewards" in tables:
        measures |= measure_rewards(tables["rewards"])
    signals = tables.get("signals")
    made = slots_of(folder) if "advantages" in tables else Slots()
    if signals is not None:
        measures |= measure_signals(
            signals, tables.get("rollouts"), made.skip_tokens, made.correction
        )
    if "advantages" in tables and "rewards" in tables:
        measures |= measure_advantages(tables["advantages"], tables["rewards"], signals, made)
    return measures


def _tables(folder: StepFolder) -> dict[str, pa.Table]:
    complete = max((folder.parts(stage) for stage in STAGES), key=len)
    parts = {
        stage: [folder.read(stage, number) for number in complete]
        for stage in STAGES
        if complete and folder.parts(stage) == complete
    }
    for base in STAGES:
        for stage in [stage for stage in parts if base in parts and stage != base]:
            try:
                for first, second in zip(parts[base], parts[stage], strict=True):
                    check_aligned(first, [(stage, second)], base)
            except UserError:
                del parts[max(base, stage, key=STAGES.index)]
    return {stage: joined(made) for stage, made in parts.items()}


def slots_of(folder: StepFolder) -> Slots:
    """The slots that made `advantages/`, by its metadata; the plainest for parts made elsewhere.

    Raises `UserError` where the metadata has settings that are none.
    """
    first = folder.part_path("advantages", folder.parts("advantages")[0])
    settings = (read_metadata(first, "advantages") or {}).get("settings", {})
    known = {name: settings[name] for name in Slots.model_fields if name in settings}
    try:
        return Slots.model_validate(known)
    except ValidationError as error:
        keys = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise UserError(
            f"{first}: its metadata has {one_line(keys, 60)} of a kind that this castctl does not "
            "know; shape again with --overwrite"
        ) from None


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _share(flags: np.ndarray, among: np.ndarray) -> float | None:
    return float(flags[among].mean()) if among.any() else None
