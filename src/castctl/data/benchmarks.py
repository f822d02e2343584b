"""The benchmarks known by name, and what an evaluation task loads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from castctl.data.files import SUFFIXES, split_name
from castctl.data.sources import choose_split
from castctl.errors import UserError
from castctl.recipe.address import at_revision
from castctl.recipe.data import Asked, DataSettings, Rows
from castctl.recipe.environment import is_environment
from castctl.recipe.task import is_task_file, read_task

Files = Mapping[str, Path]

DEFAULT_PROMPT: str = DataSettings.model_fields["prompt_template"].default

RENDERING = tuple(Asked.model_fields)
"""The data settings that shape a prompt."""

COLUMNS = ("problem_column", "answer_column", "solution_column")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's problems are and what its columns are called."""

    path: str = ""
    """Hub id; empty when castctl makes the files itself."""
    config: str | None = None
    """Configuration on the hub."""
    split: str = "test"
    """Split that holds the evaluation's problems."""
    problem: str = "problem"
    answer: str = "answer"
    solution: str | None = None
    """Column of the worked solutions; found by its usual names when left out."""
    context: str | None = None
    """Column of what stands before a problem, where it has such a thing."""
    prompt_template: str | None = None
    """`data.prompt_template` of its evaluations, where the recipe has none of its own; None where
    the field asks as castctl's default does, step by step and in a box."""
    files: Callable[[], Files] | None = None
    """Makes the benchmark's files, one a split."""


def _embedded_files() -> Files:
    from castctl.embedded import ensure

    paths = ensure()
    return {"train": paths.train, "test": paths.heldout}


_SEVERAL_ANSWERS = (
    DEFAULT_PROMPT + " If there are several answers, put all of them there, separated by commas."
)
"""The sentence is ours, after OlympiadBench's own "multiple answers connected with commas": its
answers are lists, and right only when whole."""

BENCHMARKS: dict[str, Benchmark] = {
    "embedded": Benchmark(files=_embedded_files, solution="solution"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", split="train"),
    "aime25": Benchmark("MathArena/aime_2025", split="train"),
    "aime26": Benchmark("MathArena/aime_2026", split="train"),
    "amc23": Benchmark("math-ai/amc23", problem="question"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", solution="solution"),
    "hmmt25": Benchmark("MathArena/hmmt_feb_2025", split="train"),
    "minerva": Benchmark("math-ai/minervamath", problem="question"),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", split="train", problem="question",
        answer="final_answer", context="context", prompt_template=_SEVERAL_ANSWERS,
    ),
    "gsm8k": Benchmark("openai/gsm8k", "main", problem="question"),
}  # fmt: skip


def resolve(data: DataSettings) -> DataSettings:
    """Settings with a benchmark's name replaced by the hub id or file it stands for.

    The split stays the one asked for, and every setting of the user's wins. Other
    paths come back unchanged.
    """
    benchmark = BENCHMARKS.get(data.path)
    if benchmark is None:
        if is_environment(data.path):
            return data
        if "/" not in data.path and "." not in data.path and not Path(data.path).exists():
            raise UserError(
                f"no benchmark or file is called {data.path}; benchmarks are "
                f"{', '.join(BENCHMARKS)}, and a hub id reads owner/name"
            )
        return data
    path = benchmark.path
    if benchmark.files:
        files = benchmark.files()
        path = str(files[choose_split(data.path, data.split, files)])
    return data.model_copy(
        update={
            "path": path,
            "config": data.config or benchmark.config,
            "problem_column": data.problem_column or benchmark.problem,
            "answer_column": data.answer_column or benchmark.answer,
            "solution_column": data.solution_column or benchmark.solution,
        }
    )


def context_column(path: str, available: Collection[str]) -> str | None:
    """The column of what stands before each problem: of a benchmark that has one, on the hub or in
    a file of its name; None for other data, and where the benchmark's rows hold the whole problem.
    """
    benchmark = BENCHMARKS.get(path) or BENCHMARKS.get(split_name(Path(path))[0])
    context = benchmark.context if benchmark else None
    return context if context in available else None


def task_source(task: str, data: DataSettings, file: str | None = None) -> DataSettings:
    """Settings that load an evaluation task: a benchmark's name, a file or a hub id.

    The prompt is rendered as `data` says, or as the benchmark is used to where `data` has the
    default template; what else `data` says about its own rows is left behind. A hub id is read
    from its `test` split, or from its only one. With `file` the problems come from there, and the
    columns are those that `data` names.
    """
    if is_task_file(task):
        return _file_source(task, data)
    _refuse_environment(task)
    benchmark = BENCHMARKS.get(at_revision(task)[0], Benchmark())
    rendering = {name: getattr(data, name) for name in RENDERING}
    if benchmark.prompt_template and data.prompt_template == DEFAULT_PROMPT:
        rendering["prompt_template"] = benchmark.prompt_template
    columns = {} if file is None else {name: getattr(data, name) for name in COLUMNS}
    return DataSettings(
        path=file or task,
        split=BENCHMARKS.get(at_revision(file or task)[0], Benchmark()).split,
        **rendering,
        **columns,
    )


def _refuse_environment(task: str) -> None:
    if is_environment(task):
        raise UserError(
            f"{task} is data, and no evaluation task; a run on it (--data {task}) is evaluated on "
            "those of its problems that are held out (eval.task=held-out)"
        )


def _file_source(task: str, data: DataSettings) -> DataSettings:
    """What a task's file says of its problems; they are asked as `data` says."""
    file = read_task(task)
    said = file.settings.data
    own = said.model_dump(include=set(Rows.model_fields))
    _refuse_environment(said.path)
    path = file.path.parent / said.path
    if split_name(path)[1] in SUFFIXES or path.exists():
        own["path"] = str(path)
    elif said.path in BENCHMARKS and "split" not in said.model_fields_set:
        own["split"] = BENCHMARKS[said.path].split
    rendering = {name: getattr(data, name) for name in RENDERING}
    return DataSettings(**{**own, **rendering})
