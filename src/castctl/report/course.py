"""How a run in training goes, drawn to fit a terminal."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from castctl.recipe.recipe import Recipe
from castctl.report.colors import GROUPS
from castctl.report.marks import finite, line, number, percent, points, sparkline
from castctl.report.tables import interval
from castctl.stages.evaluate.results import Result
from castctl.stages.evaluate.statistics import Estimate
from castctl.stages.train.metrics import Row, value_of
from castctl.stages.train.schedule import evaluates_after

log = logging.getLogger(__name__)

RECENT = 10
"""Steps that a trend compares and the time of a step is taken from."""
FOLLOWED = 200
"""Steps that a way through the steps shows at most."""
WIDEST, LABEL = 100, 8
"""Columns that the panel takes at most, and those of its labels."""

KINDS = {
    "mixed": ("M", f"black on {GROUPS['mixed']}", "mixed"),
    "all_correct": ("C", f"black on {GROUPS['all_correct']}", "all correct"),
    "all_wrong": ("W", f"black on {GROUPS['all_wrong']}", "all wrong"),
    "single": ("S", f"black on {GROUPS['single']}", "single"),
}
"""Letter, colour and name of a group's kind."""

STAGES = ("rollout", "verify", "score", "shape", "train")


def measure(row: Row, name: str) -> float | None:
    """A measure of a step, as `value_of` has it; None where that is no finite number."""
    return finite(value_of(row, name))


def _measured(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := measure(row, name)) is not None]


@dataclass
class Stage:
    """Work that goes on: `done` of `total` units (None = not known) since `began`, in seconds."""

    name: str
    total: int | None
    unit: str
    began: float
    done: int = 0


@dataclass
class Course:
    """What is known of a run in training. Times are seconds of the monotonic clock."""

    title: str
    recipe: Recipe
    began: float
    rows: list[Row] = field(default_factory=list)
    """Metrics of the steps that are done, those before an interruption among them."""
    evaluation: Result | None = None
    """The last one."""
    stage: Stage | None = None
    pauses: list[float] = field(default_factory=list)
    """Seconds that an evaluation took."""
    told: float | None = None
    """When the last row came."""
    over: bool = False
    """Whether nothing goes on any more."""

    @property
    def done(self) -> int:
        """Steps that are done."""
        return self.rows[-1]["step"] + 1 if self.rows else 0

    def seconds_left(self, now: float) -> float | None:
        """Until the last step is done, by the mean of recent steps and of the evaluations; None
        before the first step."""
        recent = _measured(self.rows[-RECENT:], "seconds")
        if not recent:
            return None
        steps = range(self.done + 1, self.recipe.train.steps + 1)
        evaluations = sum(evaluates_after(self.recipe, step) for step in steps)
        left = len(steps) * statistics.mean(recent)
        if self.pauses:
            left += evaluations * statistics.mean(self.pauses)
        return max(left - (now - (self.told or now)), 0.0) if steps else 0.0


@dataclass(frozen=True)
class CoursePanel:
    """A course as it stands at `now`, drawn to fit the console's width."""

    course: Course
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A ^C is echoed behind the panel and must not begin another line.
        width = max(min(options.max_width - 2, WIDEST), 8)
        try:
            yield self._panel(width)
        except Exception as error:  # training goes on without the drawing
            log.debug("the panel cannot be drawn", exc_info=True)
            yield Text(line(f"the panel cannot be drawn: {error}", width), "dim")

    def _panel(self, width: int) -> Panel:
        inside = max(width - 4, 1)
        course = self.course
        steps = _grid(1)  # a bar ends no line of its own
        steps.add_row(ProgressBar(course.recipe.train.steps, course.done, width=inside))
        return Panel(
            Group(steps, _measures(course, inside), _foot(course, self.now, inside)),
            title=_heading(course),
            title_align="left",
            subtitle=_times(course, self.now),
            subtitle_align="right",
            width=width,
        )


def _heading(course: Course) -> Text:
    return Text.assemble(
        (line(course.title, 40), "bold"), f"  step {course.done}/{course.recipe.train.steps}"
    )


def _times(course: Course, now: float) -> str:
    left = None if course.over else course.seconds_left(now)
    ends = "" if left is None else f", about {duration(left)} left"
    return f"{duration(now - course.began)}{ends}"


def _measures(course: Course, width: int) -> Table:
    """A line for each measure: the last step's value, its trend, its way through the steps."""
    grid = _grid(4)
    if not course.rows:
        grid.add_row(Text("no step is done yet", "dim"))
        return grid
    spark = min(width - 46, 4 * RECENT)
    wide = spark > 3
    for label, values, form in _followed(course.rows[-FOLLOWED:]):
        if values[-1] is not None:
            drawn = sparkline(values, spark) if wide else ""
            value = f"{form.value(values[-1])}{form.unit if wide else ''}"
            grid.add_row(label, value, _trend(values, form, wide), Text(drawn, "cyan"))
    return grid


Values = list[float | None]


@dataclass(frozen=True)
class Form:
    """How a measure is written, how its change is, and what it is in or of."""

    value: Callable[[float], str]
    change: Callable[[float], str]
    unit: str


def _plain(form: str, unit: str = "") -> Form:
    return Form(lambda value: f"{value:{form}}", lambda change: f"{change:+{form}}", unit)


def _share_of(whole: str) -> Form:
    return Form(percent, points, f" of {whole}")


FOLLOWED_MEASURES = {
    "reward": ("reward_mean", _plain(".3f")),
    "length": ("length_mean", _plain(",.1f", " tokens")),
    "entropy": ("entropy_mean", _plain(".4f", " nats")),
    "gap": ("gap_rms", _plain(".4f", " nats RMS")),
    "flips": ("flipped_share", _share_of("tokens")),
    "  down": ("flipped_down_share", _share_of("praised")),
    "  up": ("flipped_up_share", _share_of("blamed")),
    "sampler": ("sampler_kl", _plain(".1e", " nats KL")),
    "  masked": ("correction_masked_share", _share_of("tokens")),
    "  capped": ("correction_capped_share", _share_of("tokens")),
    "gradient": ("grad_norm", _plain(".3f")),
    "sampled": ("sampled_tokens_per_second", _plain(",.0f", " tokens/s")),
}
"""The measures that the panel follows, by label. Praised and blamed are the tokens with a base
advantage above and below 0."""

QUIET = {"sampler_kl": 1e-6, "correction_masked_share": 0.0, "correction_capped_share": 0.0}
"""Measures that are followed only where one was above this: most samplers equal the scorer."""


def _followed(rows: Sequence[Row]) -> Iterator[tuple[str, Values, Form]]:
    """For each measure its label, the value at each step, and how it is written."""
    for label, (name, form) in FOLLOWED_MEASURES.items():
        values = [measure(row, name) for row in rows]
        if name not in QUIET or any(value and value > QUIET[name] for value in values):
            yield label, values, form


def _trend(values: Values, form: Form, wide: bool) -> str:
    """The mean of the last steps less that of as many before; an arrow where it is more than
    twice its standard error, and nothing of fewer than three steps each."""
    known = [value for value in values if value is not None][-2 * RECENT :]
    size = len(known) // 2
    if size < 3:
        return ""
    before, after = known[-2 * size : -size], known[-size:]
    change = statistics.mean(after) - statistics.mean(before)
    error = math.sqrt((statistics.variance(before) + statistics.variance(after)) / size)
    arrow = "→" if abs(change) <= 2 * error else "↑" if change > 0 else "↓"
    return f"{arrow} {form.change(change)}{f' in {size} steps' if wide else ''}"


def _foot(course: Course, now: float, width: int) -> Table:
    """The groups of the last step, its time by stage, the last evaluation, and what goes on."""
    grid = _grid(2)
    if course.rows:
        row = course.rows[-1]
        shares = {kind: measure(row, f"groups_{kind}") or 0.0 for kind in KINDS}
        grid.add_row("groups", _bar(shares, max(width - LABEL - 1, 1)))
        grid.add_row("", _legend(shares))
        if _measured(course.rows[-RECENT:], "seconds"):
            grid.add_row("time", _time_by_stage(course.rows[-RECENT:]))
    if course.evaluation is not None:
        grid.add_row("eval", _evaluation(course.evaluation))
    if not course.over:
        grid.add_row("now", _now(course.stage, now))
    return grid


def _bar(shares: dict[str, float], width: int) -> Text:
    """Shares that add up to 1, as cells: each kind by its letter and colour."""
    ends = [round(width * end) for end in itertools.accumulate(shares.values())]
    bar = Text()
    for kind, start, end in zip(shares, [0, *ends], ends, strict=False):
        letter, colour, _ = KINDS[kind]
        bar.append(letter * (end - start), colour)
    return bar


def _legend(shares: dict[str, float]) -> str:
    shown = (kind for kind in KINDS if shares[kind] or kind != "single")
    return "  ".join(f"{KINDS[kind][0]} {KINDS[kind][2]} {percent(shares[kind])}" for kind in shown)


def _time_by_stage(rows: Sequence[Row]) -> str:
    whole = statistics.mean(_measured(rows, "seconds"))
    spent = (
        statistics.mean(measure(row, f"seconds_{stage}") or 0.0 for row in rows) for stage in STAGES
    )
    shares = (
        f"{stage} {percent(share / whole)}" for stage, share in zip(STAGES, spent, strict=True)
    )
    return " ".join([f"{number(whole)} s a step:", *(shares if whole else ())])


def _evaluation(result: Result) -> str:
    when = f"after step {result['step']}" if result["step"] else "before training"
    return f"avg@{result['k']} {interval(Estimate(**result['avg']))} {when}"


def _now(stage: Stage | None, now: float) -> str:
    if stage is None:
        return "…"
    if not stage.unit:
        return stage.name
    rate = stage.done / max(now - stage.began, 1e-9)
    of = "" if stage.total is None else f" of {stage.total:,}"
    return f"{stage.name}, {stage.done:,}{of} {stage.unit}, {rate:,.0f}/s"


def _grid(columns: int) -> Table:
    grid = Table.grid(padding=(0, 1))
    for index in range(columns):
        label = index == 0 and columns > 1
        folds = index == 1 and columns == 2
        grid.add_column(no_wrap=not folds, overflow="ellipsis", min_width=LABEL if label else None)
    return grid


def duration(seconds: float) -> str:
    """A time in the two units that fit: `1 h 5 min`, `2 min 5 s`, `7 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
