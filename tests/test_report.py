"""`castctl report`: what the file holds, read back without its script."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import zlib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.inspection.target import Target, find_target
from castctl.inspection.tokens import run_tokenizer
from castctl.report.document import Picture, Section, Sheet
from castctl.report.html import payload
from castctl.report.html.blocks import rounded
from castctl.report.html.choice import cut_rows
from castctl.report.html.page import write_page
from castctl.report.html.payload import Completions, collect_completions
from castctl.report.html.run_page import write_run_page
from castctl.runs.run import Run, open_run
from castctl.shards.part import write_part
from castctl.shards.schema import SCHEMAS
from castctl.shards.stage import StepFolder
from conftest import Cli
from runs import small_recipe, train_small

HOSTILE = {
    "script": "<script>window.broken = 1</script></script><!--<script>",
    "image": "<img src=x onerror='window.broken = 1'>\"' onfocus=\"window.broken = 1",
    "direction": "abc\u202egnp.exe\u2066 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u200f",
    "control": "nul\x00 esc\x1b[31m \u2028 \ufeff \ud7ff \U000f0000 del\x7f",
    "template": "${policy} $body {{ 7 * 7 }} \\u003c/script> &lt; &amp;",
}


class Page(HTMLParser):
    """A written page taken apart: its elements, its visible text, its scripts by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.scripts = "", dict[str, str]()
        self._inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = dict(attrs).get("id") or tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data

    @property
    def index(self) -> dict[str, Any]:
        return json.loads(self.scripts["index"])

    def rows(self) -> list[dict[str, Any]]:
        """Every completion as the file's format says, byte by byte."""
        index, found = self.index, []
        for number, first in enumerate(index["first"]):
            content = zlib.decompress(base64.b64decode(self.scripts[f"block-{number}"]))
            size = struct.unpack("<I", content[:4])[0]
            header = json.loads(content[4 : 4 + size])
            end = (index["first"] + [len(index["step"])])[number + 1]
            lengths = index["length"][first:end]
            total, at = sum(lengths), 4 + size
            columns = {}
            for name in ("place", *header["columns"]):
                planes = [content[at + byte * total : at + (byte + 1) * total] for byte in range(4)]
                kind = "I" if name == "place" else "f"
                quads = bytes(each for quad in zip(*planes, strict=True) for each in quad)
                columns[name] = struct.unpack(f"<{total}{kind}", quads)
                at += 4 * total
            if header["flipped"]:
                columns["flipped"] = tuple(content[at : at + total])
            start = 0
            for row, length in enumerate(lengths):
                values = {k: v[start : start + length] for k, v in columns.items()}
                values["ids"] = [index["ids"][place] for place in values.pop("place")]
                found.append({"row": first + row, **values, "span": header["spans"][row]})
                start += length
        return found


def write_step(
    path: Path, texts: list[str], ids: list[list[int]], n: int = 2, parts: int = 1
) -> StepFolder:
    """A scored and shaped step: prompt number i of `texts` has `n` completions of tokens `ids`."""
    folder = StepFolder(path)
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"{prompt:06x}{0:010x}", "sample": sample, "problem": text,
            "answer": text[:40], "solution": text, "prompt_token_ids": [1, 2, 3],
            "completion_token_ids": ids[(prompt * n + sample) % len(ids)], "completion": text,
            "finish_reason": "stop",
        }
        for prompt, text in enumerate(texts) for sample in range(n)
    ]  # fmt: skip
    for row in rows:
        values = rng.normal(size=(5, len(row["completion_token_ids"]))).astype(np.float32)
        correct = row["sample"] % 2 == 0
        names = ("policy_logprobs", "teacher_logprobs", "entropies", "advantages", "weights")
        row |= dict(zip(names, values.tolist(), strict=True))
        row |= {
            "verdict": "correct" if correct else "wrong", "reward": float(correct),
            "extracted": row["problem"][:60], "seconds": 0.0,
            "answer_start": 0, "answer_end": min(1, len(row["completion_token_ids"])),
            "group_kind": "mixed", "kept": True, "base": 1 / 3**0.5 if correct else -1.0,
            "flipped": (values[0] > 1).tolist(),
        }  # fmt: skip
    size = -(-len(texts) // parts) * n
    for part in range(parts):
        for stage in ("rollouts", "rewards", "signals", "advantages"):
            table = pa.Table.from_pylist(rows[part * size : (part + 1) * size], SCHEMAS[stage])
            write_part(folder.part_path(stage, part), stage, table, {"step": folder.step})
    return folder


def page_of(folder: Path, tokenizer: Any = None, **options: Any) -> Page:
    """The page of a folder of steps."""
    target = find_target(str(folder))
    shown = collect_completions(target.steps, tokenizer, **options)
    write_run_page(folder / "report.html", target, shown)
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two steps, in the second of which the teacher has a gap."""
    recipe = small_recipe("cast", "train.steps=2", "method.shaping.tau_nats=1e-6")
    return train_small(tmp_path_factory.mktemp("report") / "runs/small", recipe)[0]


@pytest.fixture
def run(shared: Run, tmp_path: Path) -> Run:
    """A copy of the run to change."""
    return open_run(str(shutil.copytree(shared.path, tmp_path / "runs/small")))


def test_the_command_writes_one_file_and_says_where(castctl: Cli, run: Run) -> None:
    done = castctl("report", "small")
    path = run.path / "report.html"
    assert re.fullmatch(r"report: \S+report\.html \([\d.]+ [KM]iB\)\n", done.stdout)
    first = path.read_bytes()
    castctl("report", "small", "--out", "other.html", "--step", "1", "--completions", "4")
    other = Page(run.path.parents[1] / "other.html")
    assert set(other.index["step"]) == {1} and len(other.index["step"]) == 4
    castctl("report", "runs/small")
    assert path.read_bytes() == first
    for wrong, words in (
        (("small", "--step", "9"), "steps there: 0, 1"),
        (("small", "--out", "."), "is a folder"),
        (("small", "--out", "/proc/none/x.html"), "cannot write"),
        (("small/step-00000/rollouts/part-00000.parquet",), "one part"),
    ):
        assert words in castctl("report", *wrong, code=2).stderr


def test_a_run_shows_its_recipe_course_and_evaluations(run: Run) -> None:
    run.record(origins={"sampling.n": "--set"})
    tokenizer = run_tokenizer(run)
    page = page_of(run.path, tokenizer)
    for words in (
        "Course", "Evaluation", "Recipe", "Completions", "sampling.n", "--set", "avg@2",
        "Kinds of groups", "Time by stage", "method.shaping.tau_nats", "finished",
    ):  # fmt: skip
        assert words in page.text, words
    pictures = [
        value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(pictures) >= 5 and all(len(words) > 20 for words in pictures)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    texts = dict(zip(page.index["ids"], page.index["texts"], strict=True))
    row = page.rows()[0]
    completion = run.step(0).table("rollouts")["completion"][0].as_py()
    assert "".join(texts[id] for id in row["ids"]).startswith(completion)


def test_every_value_of_every_token_is_in_the_page(run: Run) -> None:
    page = page_of(run.path, run_tokenizer(run))
    rows, index = page.rows(), page.index
    ids = [index["groups"][group]["id"] for group in index["group"]]
    keys = list(zip(index["step"], ids, index["sample"], strict=True))
    for step in (0, 1):
        stages = {s: run.step(step).table(s).to_pylist()
                  for s in ("rollouts", "rewards", "signals", "advantages")}  # fmt: skip
        for rollout, reward, signal, shaped in zip(*stages.values(), strict=True):
            key = (step, rollout["prompt_id"], rollout["sample"])
            at = keys.index(key)
            row = rows[at]
            assert row["row"] == at
            assert row["ids"] == rollout["completion_token_ids"]
            assert list(row["advantage"]) == shaped["advantages"]
            assert list(row["weight"]) == shaped["weights"]
            assert list(row["entropy"]) == signal["entropies"]
            gap = np.subtract(signal["teacher_logprobs"], signal["policy_logprobs"])
            assert row["gap"] == tuple(gap.astype(np.float32).tolist())
            assert list(row["flipped"]) == shaped["flipped"]
            assert page.index["flips"][at] == sum(shaped["flipped"])
            assert page.index["verdict"][at] == reward["verdict"]
            assert np.float32(page.index["reward"][at]) == np.float32(reward["reward"])
            assert np.float32(page.index["base"][at]) == np.float32(shaped["base"])
            span = (reward["answer_start"], reward["answer_end"])
            assert row["span"] == (None if None in span else list(span))
    assert any(page.index["flips"])


def test_nothing_is_fetched_and_only_own_scripts_may_run(tmp_path: Path) -> None:
    write_step(tmp_path / "step-00000", list(HOSTILE.values()), [[1, 2, 3]])
    page = page_of(tmp_path)
    policy = next(v for t, n, v in page.attributes if t == "meta" and v.startswith("default-src"))
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert len(re.findall(r"'sha256-[\w+/=]+'", policy)) == 3
    assert not any(name in ("src", "style") or name.startswith("on")
                   for _, name, _ in page.attributes)  # fmt: skip
    assert all(v.startswith("#") for _, n, v in page.attributes if n.endswith("href"))
    outside = set(re.findall(r"https?://[^\s\"'<>]+", page.source))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_hostile_text_makes_no_element(tmp_path: Path) -> None:
    """A page of harmless words has the same elements and attributes as one of hostile ones."""

    def written(texts: list[str]) -> Page:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_step(folder / "step-00000", texts, [[1, 2, 3]])
        shown = collect_completions(find_target(str(folder)).steps, None)
        whole = " ".join(texts)
        picture = Picture("x", whole, whole, lambda: _plot(texts))
        blocks: list[str | Sheet | Picture] = [whole, Sheet(whole, texts, [texts], whole), picture]
        facts = dict.fromkeys(texts, whole)
        write_page(
            folder / "page.html",
            whole,
            facts,
            [Section("x", whole, blocks, answer=[whole], notes=[whole])],
            shown,
        )
        return Page(folder / "page.html")

    harmless, hostile = written([f"word {n}" for n in HOSTILE]), written(list(HOSTILE.values()))
    drawn = ("g", "path", "use", "defs", "text")  # ticks are set by what room labels leave
    tags = [{t: n for t, n in page.tags.items() if t not in drawn} for page in (hostile, harmless)]
    assert tags[0] == tags[1] and set(hostile.tags) == set(harmless.tags)
    names = [{(tag, name) for tag, name, _ in page.attributes} for page in (hostile, harmless)]
    assert names[0] == names[1]
    assert HOSTILE["script"] in hostile.text and HOSTILE["template"] in hostile.text
    for bad in "\x00\x1b\x7f\u202e\u2066\u200f\u2028\ufeff":
        assert bad not in hostile.source
    assert "\\u202egnp.exe" in hostile.text
    hostile.rows()


def _plot(texts: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], marker="o", label=" ".join(texts))
    axes.set_title(" $x$ ".join(texts[:2]))
    axes.legend()
    return figure


def test_plots_take_the_colours_of_the_page(tmp_path: Path) -> None:
    pictures = [Picture(name, name, "a line that rises", lambda: _plot(["a", "b"]))
                for name in ("one", "two")]  # fmt: skip
    write_page(tmp_path / "p.html", "plots", {}, [Section("s", "S", list(pictures))])
    page = Page(tmp_path / "p.html")
    assert page.tags["svg"] == 2 and page.tags["style"] == 1
    colours = {v.lower() for _, n, v in page.attributes if n in ("fill", "stroke")}
    assert not colours & {"#000000", "#ffffff", "black", "white"} and "#1f77b4" in colours
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page.source))
    used |= {v[1:] for _, n, v in page.attributes if n == "xlink:href"}
    assert used and used <= set(ids)


@given(st.floats(width=32), st.integers(0, 3))
def test_rounded_values_keep_three_digits(value: float, copies: int) -> None:
    single = np.float32(value)
    shown = rounded(np.full(copies + 1, single))
    if not np.isfinite(single) or single == 0:
        assert np.array_equal(shown, np.full(copies + 1, single), equal_nan=True)
    elif abs(single) > 1e-30 and abs(single) < 1e38:
        assert abs(float(shown[0]) - float(single)) <= abs(float(single)) * 2.0**-11


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 6), st.integers(1, 60))
def test_rows_are_cut_in_order_and_within_bounds(
    lengths: list[int], rows: int, tokens: int
) -> None:
    cuts = cut_rows(lengths, rows, tokens)
    assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(len(lengths)))
    for cut in cuts:
        held = lengths[cut]
        assert 1 <= len(held) <= rows and (sum(held) <= tokens or len(held) == 1)


@pytest.mark.parametrize("limit", [1, 7, 20, 39, 40, 1000])
def test_whole_groups_are_taken_evenly(tmp_path: Path, limit: int) -> None:
    for step in range(5):
        write_step(
            tmp_path / f"step-{step:05d}", [f"p{step}-{i}" for i in range(4)], [[5]], parts=2
        )
    found = collect_completions(find_target(str(tmp_path)).steps, None, limit)
    assert found.total == 40 and not found.notes
    sizes = Counter(found.index["group"])
    assert set(sizes.values()) == {2}
    assert abs(found.shown - min(limit, 40)) <= 2 and found.shown
    by_step = Counter(found.index["step"])
    spread = [by_step[step] for step in range(5)]
    assert max(spread) - min(spread) <= 2


def collected(folder: Path) -> Completions:
    target = find_target(str(folder))
    found = collect_completions(target.steps, None)
    write_run_page(folder / "report.html", target, found)
    return found


def test_a_step_in_the_making_shows_what_every_stage_has(tmp_path: Path) -> None:
    step = write_step(tmp_path / "step-00000", ["a", "b", "c", "d"], [[5, 6]], parts=4)
    step.part_path("advantages", 3).unlink()
    step.part_path("signals", 0).unlink()
    step.part_path("rewards", 1).write_bytes(b"PAR1 cut short")
    found = collected(tmp_path)
    assert [group["problem"] for group in found.index["groups"]] == ["b", "c"]
    assert any("2 of 4 parts are left out" in note for note in found.notes)
    assert any("rewards/part-00001.parquet is cut short" in note for note in found.notes)
    assert found.index["verdict"] == [None, None, "correct", "wrong"]


def test_a_stage_made_from_others_is_left_out(tmp_path: Path) -> None:
    step = write_step(tmp_path / "step-00000", ["a", "b"], [[5, 6]])
    other = write_step(tmp_path / "other" / "step-00000", ["a"], [[5, 6]])
    shutil.copy(other.part_path("rewards", 0), step.part_path("rewards", 0))
    found = collected(tmp_path)
    assert found.shown == 4 and set(found.index["verdict"]) == {None}
    assert any("does not hold the rows" in note for note in found.notes)
    assert found.index["kind"] == ["mixed"] * 4


def test_lists_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    step = write_step(tmp_path / "step-00000", ["a"], [[5, 6]])
    table = step.read("signals", 0).table
    place = table.column_names.index("entropies")
    table = table.set_column(place, "entropies", pa.array([[0.5], [0.5]], pa.list_(pa.float32())))
    write_part(step.part_path("signals", 0), "signals", table, {})
    found = collected(tmp_path)
    assert [each["name"] for each in found.index["quantities"]] == ["advantage", "weight"]
    assert any("entropies has not one value" in note for note in found.notes)


@pytest.mark.parametrize("stages", [[], ["rewards"], ["signals"], ["advantages"]])
def test_missing_stages_leave_their_columns_empty(tmp_path: Path, stages: list[str]) -> None:
    step = write_step(tmp_path / "step-00007", ["a"], [[5, 6], []])
    for stage in {"rewards", "signals", "advantages"} - set(stages):
        shutil.rmtree(step.path / stage)
    page = page_of(tmp_path)
    names = {"rewards": [], "signals": ["gap", "entropy"], "advantages": ["advantage", "weight"]}
    expected = [name for stage in stages for name in names[stage]]
    assert [each["name"] for each in page.index["quantities"]] == expected
    assert page.index["length"] == [2, 0] and page.index["texts"] is None
    assert [row["ids"] for row in page.rows()] == [[5, 6], []]
    assert (page.index["verdict"][0] is not None) == (stages == ["rewards"])


def test_a_folder_without_completions_says_so(tmp_path: Path) -> None:
    step = write_step(tmp_path / "step-00000", ["a"], [[5]])
    shutil.rmtree(step.path / "rollouts")
    page = page_of(tmp_path)
    assert "no completions yet" in page.text and "index" not in page.scripts


def test_signals_may_lie_elsewhere(tmp_path: Path) -> None:
    step = write_step(tmp_path / "step-00003", ["a"], [[5, 6]])
    step = find_target(str(tmp_path)).steps[0]
    other = StepFolder(tmp_path / "diagnose" / "step-00003", 3)
    rows = step.read("signals", 0).table.to_pylist()
    for row in rows:
        row["teacher_logprobs"] = [value + 2 for value in row["policy_logprobs"]]
    table = pa.Table.from_pylist(rows, SCHEMAS["signals"])
    write_part(other.part_path("signals", 0), "signals", table, {})
    shown = collect_completions([replace(step, elsewhere={"signals": other.path})], None)
    write_page(tmp_path / "p.html", "gaps", {}, [], shown)
    page = Page(tmp_path / "p.html")
    assert all(value == pytest.approx(2, abs=1e-6) for row in page.rows() for value in row["gap"])
    assert page.rows()[0]["advantage"]


def test_large_pages_round_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_step(tmp_path / "step-00000", ["a", "b"], [list(range(50))])
    exact = page_of(tmp_path)
    monkeypatch.setattr(payload, "EXACT_TOKENS", 10)
    short = page_of(tmp_path)
    assert "three digits" in short.text and "three digits" not in exact.text
    for before, after in zip(exact.rows(), short.rows(), strict=True):
        assert before["ids"] == after["ids"] and before["flipped"] == after["flipped"]
        np.testing.assert_allclose(after["gap"], before["gap"], rtol=2.0**-11)
        assert after["gap"] != before["gap"]


def test_an_evaluation_is_no_step_of_the_run_around_it(run: Run) -> None:
    folder = next((run.path / "eval").glob("*/step-*"))
    target = find_target(str(folder))
    assert isinstance(target, Target) and target.run is not None
    write_run_page(folder / "report.html", target, collect_completions(target.steps, None))
    page = Page(folder / "report.html")
    assert "loss" not in page.text and len(page.index["step"]) == 8


def test_completions_from_a_file_have_a_page_with_their_texts(
    castctl: Cli, tmp_path: Path, shared: Run
) -> None:
    rows = [{"problem": f"{n} =", "completion": f"It is \\boxed{{{n}}}", "answer": str(n)}
            for n in range(3)]  # fmt: skip
    file = tmp_path / "made.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    castctl("eval", "--rescore", "made.jsonl", "--run", "judged")
    castctl("report", "judged")
    assert "made, in per cent" in Page(tmp_path / "runs/judged/report.html").text
    folder = next((tmp_path / "runs/judged/eval").glob("*/step-*"))
    found = collect_completions(find_target(str(folder)).steps, run_tokenizer(shared))
    write_run_page(tmp_path / "p.html", find_target(str(folder)), found)
    content = zlib.decompress(base64.b64decode(Page(tmp_path / "p.html").scripts["block-0"]))
    header = json.loads(content[4 : 4 + struct.unpack("<I", content[:4])[0]])
    assert header["completions"] == [row["completion"] for row in rows]
    assert [asked["prompt"] for asked in header["groups"].values()] == [None] * 3


def test_the_curve_holds_evaluations_by_the_runs_own_settings(run: Run) -> None:
    file = next((run.path / "eval").glob("*/step-00000")) / "results.json"
    own = json.loads(file.read_text())
    other = run.eval_folder(f"{own['name']}-t0.5", 1).path
    other.mkdir(parents=True)
    other_result = own | {"name": other.parent.name, "step": 1}
    other_result["avg"] = own["avg"] | {"mean": 0.987}
    (other / "results.json").write_text(json.dumps(other_result))
    [words] = {value for tag, name, value in page_of(run.path).attributes
               if (tag, name) == ("svg", "aria-label") and "Accuracy" in value}  # fmt: skip
    assert "98.7" not in words and f"from {100 * own['avg']['mean']:.1f}% to" in words
