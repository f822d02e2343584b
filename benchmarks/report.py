"""Seconds, memory and bytes of a report of many completions, and how soon a browser shows it."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import synthetic

from castctl.inspection.target import find_target
from castctl.ragged import offsets_of, spread
from castctl.report.html.payload import collect_completions
from castctl.report.html.run_page import write_run_page
from castctl.shards.columns import list_column
from castctl.shards.part import write_part
from castctl.shards.stage import StepFolder

UNTIL = """const told = arguments[arguments.length - 1];
const look = () => (%s) ? told() : setTimeout(look, 5); look();"""
"""A script that returns once a condition holds."""


def main() -> None:
    parser = measure.options(__doc__, repeats=1)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("-n", type=int, default=8, help="completions of a group")
    parser.add_argument("--tokens", type=int, default=1000, help="of a completion, on average")
    parser.add_argument("--part", type=int, default=16, help="groups of a part")
    parser.add_argument("--no-texts", action="store_true", help="without a tokenizer")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if left out")
    options = measure.parse(parser)
    if options.quick:
        options.completions, options.tokens = 64, 100
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        step = shaped_step(Path(folder) / "run" / "step-00000", options)
        page = Path(folder) / "report.html"
        work = (step.path, page, not options.no_texts)
        peak_gb = measure.peak_extra_gb(written, *work)
        seconds = measure.interleaved({"make": measure.timed(written(*work))}, options.repeats)
        measure.report(
            "report", options.repeats,
            completions=options.completions, n=options.n, tokens=total_tokens(step),
            texts=not options.no_texts, seconds=measure.median(seconds["make"]), extra_gb=peak_gb,
            page_mb=page.stat().st_size / 1e6, **loaded(page, options.completions),
        )  # fmt: skip


def shaped_step(path: Path, options: argparse.Namespace) -> StepFolder:
    """A step whose groups are scored and shaped, with a flip in twenty tokens."""
    groups = -(-options.completions // options.n)
    folder = synthetic.random_step(path, groups, options.n, options.tokens, options.part)
    rng = np.random.default_rng(1)
    for part in folder.parts("rollouts"):
        rewards = folder.read("rewards", part).table
        rollouts = folder.read("rollouts", part).table
        lengths = rollouts["completion_token_ids"].combine_chunks().value_lengths().to_numpy()
        offsets = offsets_of(lengths)
        base = np.where(rewards["reward"].to_numpy() > 0, 1.0, -1.0)
        weights = rng.uniform(0.8, 1.2, offsets[-1])
        flipped = rng.random(offsets[-1]) < 0.05
        advantages = spread(base, offsets) * weights * np.where(flipped, -0.5, 1.0)
        rows = rollouts.num_rows
        table = pa.table({
            "prompt_id": rollouts["prompt_id"], "sample": rollouts["sample"],
            "group_kind": ["mixed"] * rows, "kept": [True] * rows, "base": base,
            "advantages": list_column(advantages, offsets, pa.float32()),
            "weights": list_column(weights, offsets, pa.float32()),
            "flipped": list_column(flipped, offsets, pa.bool_()),
            "distill_weights": pa.nulls(rows, pa.list_(pa.float32())),
            "loss_weights": pa.nulls(rows, pa.list_(pa.float32())),
        })  # fmt: skip
        write_part(folder.part_path("advantages", part), "advantages", table, {"step": 0})
    return folder


def total_tokens(step: StepFolder) -> int:
    parts = (step.read("rollouts", part).table for part in step.parts("rollouts"))
    return sum(synthetic.tokens_of(table, "completion_token_ids") for table in parts)


def written(step: Path, page: Path, texts: bool) -> Callable[[], object]:
    """What makes the page; the tokenizer is there already."""
    tokenizer = word_tokenizer() if texts else None

    def write() -> None:
        target = find_target(str(step))
        write_run_page(page, target, collect_completions(target.steps, tokenizer))

    return write


def word_tokenizer() -> Any:
    """A tokenizer of the vocabulary's size, a word a token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f" w{number:x}": number for number in range(synthetic.VOCABULARY)}
    words = Tokenizer(WordLevel(vocabulary, unk_token=" w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words)


def loaded(page: Path, completions: int) -> dict[str, float]:
    """Seconds in headless Chromium until rows are listed, until the first completion's tokens
    are there, until the whole file is read, and for another completion of another block;
    nothing without a browser."""
    if not shutil.which("chromedriver"):
        return {}
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.page_load_strategy = "none"
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    browser.set_script_timeout(120)
    try:
        browser.get("about:blank")
        began = time.perf_counter()
        browser.get(page.absolute().as_uri())
        told = {}
        for name, there in {
            "rows_seconds": "document.querySelector('.row')",
            "tokens_seconds": "document.querySelector('.token')",
            "whole_seconds": "document.readyState === 'complete'",
        }.items():
            while not browser.execute_script(f"return Boolean({there})"):
                time.sleep(0.01)
            told[name] = time.perf_counter() - began
        name = browser.execute_script("return document.querySelector('#detail h3').textContent")
        began = time.perf_counter()
        browser.execute_script(f"location.hash = 'completion={completions // 2}'")
        shown = f"document.querySelector('#detail h3').textContent !== {name!r}"
        browser.execute_async_script(UNTIL % shown)
        told["another_seconds"] = time.perf_counter() - began
        return told
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
