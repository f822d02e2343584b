"""Positive has one colour, and a run has one scale, on the terminal, in plots and on the page."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from castctl.inspection.scales import PALE, ROUNDING, color_scales
from castctl.report.colors import FULL, GROUPS, NEGATIVE, POSITIVE, rgb
from castctl.report.html.curves import curve_pictures
from castctl.report.html.payload import collect_completions
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder
from conftest import Cli
from test_report import page_of, write_step

SEEN_AS = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""Linear RGB as the eyes of dichromats see it (Machado, Oliveira and Fernandes 2009)."""


def step(path: Path, gap: float, dtype: str = "float32", tokens: int = 8) -> StepFolder:
    """A step whose gaps are `gap` in turn above and below 0."""
    folder = write_step(path, ["a", "b"], [list(range(1, tokens + 1))])
    rows = folder.read("signals", 0).table.to_pylist()
    for row in rows:
        row["policy_logprobs"] = [-1.0] * tokens
        row["teacher_logprobs"] = [-1.0 + (gap if n % 2 else -gap) for n in range(tokens)]
    table = pa.Table.from_pylist(rows, folder.read("signals", 0).table.schema)
    made = {"policy_logprobs": {"dtype": dtype}}
    metadata = {"step": folder.step, "signals": made}
    write_part(folder.part_path("signals", 0), "signals", table, metadata)
    return folder


def scale_of(steps: list[StepFolder]) -> float:
    """Full colour of the gap on a page of these steps."""
    [found] = [each["scale"] for each in collect_completions(steps, None).index["quantities"]
               if each["name"] == "gap"]  # fmt: skip
    return found


def backgrounds(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch, folder: StepFolder
) -> list[list[int]]:
    """The colours behind the tokens of a completion and of the legend, as a terminal shows them."""
    for key, value in {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    name = ("--sample", "000000/0", "--color", "gap")
    shown = castctl("inspect", str(folder.path), *name).stdout
    return [list(map(int, each)) for each in re.findall(r"48;2;(\d+);(\d+);(\d+)", shown)]


def test_positive_is_one_colour_on_the_terminal_and_on_the_page(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = step(tmp_path / "step-00000", 1.0)
    *legend, first, second = backgrounds(castctl, monkeypatch, folder)[:13]
    for there, color in ((legend[0], NEGATIVE), (legend[-1], POSITIVE),
                         (first, NEGATIVE), (second, POSITIVE)):  # fmt: skip
        full = [245 + (each - 245) * FULL for each in rgb(color)]
        assert np.abs(np.subtract(there, full)).max() <= 1.5
    page = page_of(tmp_path).source
    assert f"--above: {POSITIVE};" in page and f"--below: {NEGATIVE};" in page
    assert rgb(POSITIVE)[2] > rgb(POSITIVE)[0], "positive is blue"


def test_directions_have_the_colours_of_their_sign_in_plots() -> None:
    shares = {"flipped_share": 0.1, "flipped_down_share": 0.2, "flipped_up_share": 0.05}
    [picture] = curve_pictures([{"step": n, **shares} for n in range(2)])
    colors = {line.get_label(): line.get_color() for line in picture.draw().axes[0].lines}
    assert (colors["of praised"], colors["of blamed"]) == (POSITIVE, NEGATIVE)


@pytest.mark.parametrize("eyes", SEEN_AS)
def test_colours_that_mean_opposites_differ_for_all_eyes(eyes: str) -> None:
    def seen(color: str) -> np.ndarray:
        linear = (np.array(rgb(color)) / 255) ** 2.2
        return (np.array(SEEN_AS[eyes]) @ linear).clip(0, 1) ** (1 / 2.2)

    for one, other in ((POSITIVE, NEGATIVE), *itertools.combinations(GROUPS.values(), 2)):
        assert np.abs(seen(one) - seen(other)).max() > 0.14, (one, other)


def test_a_run_has_one_scale_whatever_is_shown_of_it(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dead, alive = step(tmp_path / "step-00000", 1e-3), step(tmp_path / "step-00001", 1.0)
    assert scale_of([dead]) == scale_of([alive]) == scale_of([dead, alive]) == 1.0
    shown = backgrounds(castctl, monkeypatch, dead)[11:]
    assert min(min(each) for each in shown) > 240, "a small gap is pale beside the run's large one"
    assert min(min(each) for each in backgrounds(castctl, monkeypatch, alive)[11:]) < 120


@pytest.mark.parametrize("dtype", ROUNDING)
def test_what_rounding_makes_is_pale(
    castctl: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: str
) -> None:
    folder = step(tmp_path / "step-00000", ROUNDING[dtype], dtype)
    assert scale_of([folder]) == pytest.approx(PALE * ROUNDING[dtype])
    shown = backgrounds(castctl, monkeypatch, folder)[11:]
    assert shown and min(min(each) for each in shown) > 225


def test_a_scale_is_that_of_most_tokens_and_reads_few_parts(tmp_path: Path) -> None:
    steps = [step(tmp_path / f"step-{n:05d}", 2.0, tokens=400) for n in range(12)]
    rows = steps[0].read("signals", 0).table.to_pylist()
    rows[0]["teacher_logprobs"][0] = -1000.0
    table = pa.Table.from_pylist(rows, steps[0].read("signals", 0).table.schema)
    write_part(steps[0].part_path("signals", 0), "signals", table, {"step": 0})
    steps[1].part_path("advantages", 0).write_bytes(b"PAR1")
    scales = color_scales(steps[:1])
    assert scales["gap"] == 2.0 and 2 < scales["advantage"] < 4
    assert color_scales([]) == {}
