"""What is drawn lies inside its axes, which end where the steps end, on ticks of few digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from castctl.report.axes import drawn, round_ticks, settle, tick_texts
from castctl.report.document import Picture
from castctl.report.html.curves import curve_pictures, measures_sheet

Row = dict[str, Any]

MEASURES = ("reward_mean", "length_mean", "entropy_mean", "gap_rms", "grad_norm", "groups_mixed",
            "groups_all_correct", "groups_all_wrong", "flipped_share", "flipped_down_share",
            "flipped_up_share", "seconds_rollout", "seconds_train", "seconds")  # fmt: skip

SIX = [0.53125, 0.8125, 0.25, 0.625, 0.75, 0.53125]
"""Rewards of six steps that went beyond the last tick of their axis."""


def result(step: int, mean: float, low: float | None, high: float | None) -> Any:
    return {"step": step, "task": "t", "k": 2, "avg": {"mean": mean, "low": low, "high": high}}


def random_course(seed: int) -> tuple[list[Row], list[Any]]:
    """Steps whose measures are constant, huge, tiny, missing or no numbers, and evaluations."""
    rng = np.random.default_rng(seed)
    first, count = int(rng.integers(0, 4)), int(rng.choice([2, 2, 3, 6, 50]))
    rows: list[Row] = [{"step": first + n} for n in range(count)]
    for name in MEASURES:
        share = name.startswith(("groups", "flipped"))
        size = 1.0 if share else 10.0 ** rng.integers(-9, 9)
        values = size * (rng.random(count) if share else rng.normal(size=count))
        if name.startswith("seconds"):
            values = np.abs(values)
        if name == "reward_mean" and rng.random() < 0.3:
            values = rng.choice([0.0, 1.0, -2.0, 1.0 + 1e-12], size=count)
        if rng.random() < 0.3:
            values[:] = values[0]
        for row, value in zip(rows, values, strict=True):
            odd = rng.random()
            row[name] = None if odd < 0.1 else math.nan if odd < 0.15 else float(value)
            if 0.15 < odd < 0.2:
                row[name] = math.inf
    kinds = [name for name in MEASURES if name.startswith("groups")]
    for row in rows:  # shares of one whole
        known = [row[kind] if row[kind] and math.isfinite(row[kind]) else 0.0 for kind in kinds]
        for kind, share in zip(kinds, known, strict=True):
            row[kind] = share / (sum(known) or 1.0)
    evaluations = [
        result(step, mean := float(rng.random()), None if rng.random() < 0.3 else mean - 0.1,
               None if rng.random() < 0.3 else mean + 0.1)
        for step in sorted({0, first + count})
    ]  # fmt: skip
    return rows, evaluations


def points(figure: Any) -> list[tuple[Any, np.ndarray]]:
    """Every finite point that is drawn, by its axes, in data coordinates."""
    found = []
    for axes in figure.axes:
        held = [line.get_xydata() for line in axes.lines if len(line.get_xdata())]
        held += [path.vertices for each in axes.collections for path in each.get_paths()]
        held += [np.array(segment) for each in axes.collections
                 if hasattr(each, "get_segments") for segment in each.get_segments()]  # fmt: skip
        for xy in held:
            xy = np.asarray(xy, np.float64)
            found.append((axes, xy[np.isfinite(xy).all(1)]))
    return found


def check(figure: Any) -> None:
    for axes, xy in points(figure):
        for column, limits in enumerate((axes.get_xlim(), axes.get_ylim())):
            low, high = sorted(limits)
            room = 1e-6 * (high - low)
            assert (xy[:, column] >= low - room).all() and (xy[:, column] <= high + room).all()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            texts = [label.get_text() for label in axis.get_ticklabels()]
            assert len(texts) == len(set(texts)) and 2 <= len(texts) <= 12, texts
            assert all(sum(map(str.isdigit, text)) <= 6 for text in texts), texts
            assert axis.get_major_formatter().get_offset() == ""
        low, high = axes.get_ylim()
        ticks = axes.yaxis.get_majorticklocs()
        assert ticks[0] == pytest.approx(low, abs=1e-9 * (high - low))
        assert ticks[-1] == pytest.approx(high, abs=1e-9 * (high - low))


@pytest.mark.parametrize("seed", range(12))
def test_every_point_of_every_curve_lies_inside_its_axes(seed: int) -> None:
    rows, evaluations = random_course(seed)
    for picture in curve_pictures(rows, evaluations):
        figure = drawn(picture)
        figure.canvas.draw()
        check(figure)


@pytest.mark.parametrize("count", [2, 6, 50])
def test_axes_end_where_the_steps_of_the_log_end(count: int) -> None:
    rows = [{"step": n, **{name: 0.1 + n / 1000 for name in MEASURES}} for n in range(count)]
    pictures = curve_pictures(rows, [result(0, 0.2, 0.1, 0.3), result(count, 0.4, 0.3, 0.5)])
    assert len(pictures) == 9
    for picture in pictures:
        [axes] = drawn(picture).axes
        first = 0 if picture.name == "curve-accuracy" else 1
        assert axes.get_xlim() == (first, count), picture.name
        ticks = axes.xaxis.get_majorticklocs()
        assert (ticks == ticks.round()).all()


def test_six_rewards_stay_below_the_last_tick() -> None:
    rows = [{"step": n, "reward_mean": reward} for n, reward in enumerate(SIX)]
    [picture] = curve_pictures(rows)
    [axes] = drawn(picture).axes
    ticks = axes.yaxis.get_majorticklocs()
    assert ticks[0] <= min(SIX) and max(SIX) <= ticks[-1] == axes.get_ylim()[1]


def test_accuracy_and_shares_are_in_per_cent_and_reward_is_a_number() -> None:
    rows = [{"step": n, "reward_mean": 0.5 + n / 4, "groups_mixed": 0.5 + n / 4} for n in (0, 1)]
    reward, accuracy, groups = curve_pictures(rows, [result(0, 0.25, 0.2, 0.3)])
    tops = [drawn(each).axes[0].get_ylim()[1] for each in (reward, accuracy, groups)]
    assert tops[0] <= 1 and 30 <= tops[1] <= 40 and tops[2] == 100
    assert "from 0.5 to 0.75" in reward.description
    assert "from 25.0% to 25.0%" in accuracy.description
    assert "from 50.0% to 75.0%" in groups.description
    [sheet] = [measures_sheet(rows)]
    assert [row[0] for row in sheet.rows] == ["1", "2"], "steps are counted as the log counts"
    assert [row[sheet.headings.index("groups mixed")] for row in sheet.rows] == ["50.0%", "75.0%"]


def test_a_value_alone_between_unknown_ones_is_a_mark() -> None:
    rows = [{"step": n, "gap_rms": 0.1 if n % 2 else None} for n in range(5)]
    [picture] = curve_pictures(rows)
    lines = drawn(picture).axes[0].lines
    marked = [line for line in lines if line.get_marker() not in (None, "None", "")]
    assert sum(len(line.get_xdata()) for line in marked) == 2


def test_a_step_that_nothing_is_known_of_is_a_gap_in_the_kinds() -> None:
    rows = [{"step": n, "groups_mixed": 0.5, "groups_all_wrong": 0.5} for n in range(4)]
    rows[1] = {"step": 1, "groups_mixed": None, "groups_all_wrong": None}
    [picture] = curve_pictures(rows)
    assert {x for _, xy in points(drawn(picture)) for x in xy[:, 0]} == {1.0, 3.0, 4.0}


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.25, 0.8125, ["0.2", "0.4", "0.6", "0.8", "1.0"]),
        (1 / 3, 2 / 3, ["0.3", "0.4", "0.5", "0.6", "0.7"]),
        (0.0, 0.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (1.0, 1.0, ["0.97", "0.98", "0.99", "1.00", "1.01", "1.02", "1.03"]),
        (-1.5, 2.5, ["-2", "-1", "0", "1", "2", "3"]),
        (34.4, 55.1, ["30", "35", "40", "45", "50", "55", "60"]),
        (0.0, 3e7, ["0", "1e+07", "2e+07", "3e+07"]),
        (0.0, 4.5e-6, ["0", "1e-06", "2e-06", "3e-06", "4e-06", "5e-06"]),
        (0.0, 2500.0, ["0", "500", "1,000", "1,500", "2,000", "2,500"]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, texts: list[str]) -> None:
    ticks = round_ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1]
    assert [text.replace("\N{MINUS SIGN}", "-") for text in tick_texts(ticks)] == texts


def test_figures_of_diagnoses_are_settled_too() -> None:
    """Whatever draws: bars, bands, points with intervals, an axis whose ends were set."""
    from castctl.report.diagnostics.figures import along_steps, curve, from_zero, panels
    from castctl.report.diagnostics.figures import points as estimates

    rng = np.random.default_rng(0)
    told = [{"mean": m, "low": m - 0.7, "high": m + 1.3} for m in 100 * rng.random(6)]
    by_step = [{"step": n} for n in range(6)]

    def draw() -> Any:
        figure, (first, second, third) = panels(1, 3)
        curve(first, range(1, 7), told, "", "#000000")
        along_steps(first, by_step)
        estimates(second, [10.0 * n for n in range(6)], told, "", "#000000")
        third.bar(range(3), [3.3, 1.0, 2.0])
        for axes in (first, second, third):
            from_zero(axes)
        return figure

    figure = drawn(Picture("p", "p", "p", draw))
    figure.canvas.draw()
    check(figure)
    assert figure.axes[0].get_xlim() == (1, 6)
    assert all(axes.get_ylim()[0] == 0 for axes in figure.axes)


def test_ends_that_were_set_stay() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([0.2, 0.7], [0.1, 0.9])
    axes.set_ylim(0, 1)
    settle(figure)
    assert axes.get_ylim() == (0, 1) and axes.yaxis.get_majorticklocs()[-1] == 1
