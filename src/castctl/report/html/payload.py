"""The completions of a page: a small index that is read at once, and blocks unpacked on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from castctl.inspection.scales import color_scales
from castctl.inspection.tokens import TokenTexts
from castctl.progress import Progress, Silent
from castctl.ragged import row_of_value, sums
from castctl.report.console import printable
from castctl.report.html.blocks import BlockWriter, TokenTable, rounded
from castctl.report.html.choice import Chosen, choose, cut_rows
from castctl.report.html.reading import QUANTITIES, read_chosen, token_values
from castctl.report.marks import LONGEST_LINE
from castctl.shards.columns import ragged_column
from castctl.shards.schema import PEER, REWARD, reward_weights
from castctl.shards.stage import StepFolder

LIMIT = 10_000
"""Completions that a page shows unless told otherwise."""

EXACT_TOKENS = 1_000_000
"""Tokens of a page up to which its values are whole; beyond it they are rounded."""

BLOCK_ROWS, BLOCK_TOKENS = 128, 1 << 18
"""The most that a block holds, a longer completion aside."""

LONGEST_TEXT = 200_000
"""Characters of a problem, a prompt or a completion that a page holds."""

SHORT = 160
"""Characters of a problem or an extracted answer that the list of completions holds."""


@dataclass(frozen=True)
class Completions:
    """`index` is what the browser reads at once, `blocks` what it unpacks on demand."""

    index: dict[str, Any]
    blocks: list[bytes]
    notes: list[str]
    total: int

    @property
    def shown(self) -> int:
        return len(self.index["step"])


def collect_completions(
    steps: Sequence[StepFolder],
    tokenizer: Any | None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Completions:
    """About `limit` completions of these steps, in whole groups spread evenly.

    What cannot be read, or does not fit, becomes a note.
    """
    notes: list[str] = []
    choice = choose(steps, limit, notes)
    exact = sum(chosen.tokens for chosen in choice.chosen) <= EXACT_TOKENS
    collector = _Collector(TokenTexts(tokenizer) if tokenizer is not None else None, exact, notes)
    rows = sum(len(chosen.rows_R) for chosen in choice.chosen)
    with (progress or Silent()).task("report", rows, "completions") as advance:
        for chosen in choice.chosen:
            collector.take(chosen)
            advance(len(chosen.rows_R))
    return collector.completions(choice.total, color_scales(steps))


@dataclass
class _Rows:
    """The index: one entry a completion in each list, and one a group in `groups`."""

    step: list[int] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    sample: list[int] = field(default_factory=list)
    verdict: list[str | None] = field(default_factory=list)
    kind: list[str | None] = field(default_factory=list)
    reward: list[float | None] = field(default_factory=list)
    base: list[float | None] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    flips: list[int] = field(default_factory=list)
    extracted: list[str | None] = field(default_factory=list)


class _Collector:
    """Turns chosen rows into index and blocks."""

    def __init__(self, texts: TokenTexts | None, exact: bool, notes: list[str]) -> None:
        self._texts, self._exact, self._notes = texts, exact, notes
        self._rows = _Rows()
        self._groups: list[dict[str, Any]] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._first: list[int] = []
        self._table, self._blocks = TokenTable(), BlockWriter()
        self._quantities: set[str] = set()

    def take(self, chosen: Chosen) -> None:
        """The chosen rows of a part, with what its stages say of them."""
        tables = read_chosen(chosen, self._notes)
        rollouts = tables.get("rollouts")
        if rollouts is None:
            return
        lengths = rollouts["completion_token_ids"].combine_chunks().value_lengths().to_numpy()
        for cut in cut_rows(lengths.tolist(), BLOCK_ROWS, BLOCK_TOKENS):
            size = cut.stop - cut.start
            block = {stage: table.slice(cut.start, size) for stage, table in tables.items()}
            self._add_block(chosen, block)

    def _add_block(self, chosen: Chosen, tables: dict[str, pa.Table]) -> None:
        rollouts = tables["rollouts"]
        ids_N, offsets = ragged_column(rollouts, "completion_token_ids")
        values, flipped_N = token_values(tables, offsets, chosen, self._notes)
        self._quantities |= set(values)
        flips_R = np.zeros(len(offsets) - 1, np.int64)
        if flipped_N is not None:
            flips_R = sums(flipped_N == 1, row_of_value(offsets), len(flips_R)).astype(np.int64)
        self._first.append(len(self._rows.step))
        lengths_R = np.diff(offsets)
        groups = self._add_rows(chosen.folder.step, tables, lengths_R, flips_R)
        columns: list[NDArray] = [self._table.places_of(ids_N)]
        columns += [v.astype(np.float32) if self._exact else rounded(v) for v in values.values()]
        if flipped_N is not None:
            columns.append((flipped_N == 1).astype(np.uint8))
        header = self._header(tables, groups, lengths_R)
        header |= {"columns": list(values), "flipped": flipped_N is not None}
        self._blocks.add(header, columns)

    def _add_rows(
        self, step: int, tables: dict[str, pa.Table], lengths_R: NDArray, flips_R: NDArray
    ) -> dict[str, int]:
        """Extend the index by a block's rows; for each prompt in it the number of its group."""
        rollouts, index = tables["rollouts"], self._rows
        ids, problems = (rollouts[name].to_pylist() for name in ("prompt_id", "problem"))
        for id, problem in zip(ids, problems, strict=True):
            if (step, id) not in self._numbers:
                self._numbers[step, id] = len(self._groups)
                self._groups.append({"id": printable(id), "problem": _shown(problem, SHORT)})
            index.group.append(self._numbers[step, id])
        index.step += [step] * len(ids)
        index.sample += rollouts["sample"].to_pylist()
        index.length += lengths_R.tolist()
        index.flips += flips_R.tolist()
        index.verdict += _column(tables, "rewards", "verdict")
        index.reward += map(_float, _column(tables, "rewards", "reward"))
        index.extracted += [_shown(t, SHORT) for t in _column(tables, "rewards", "extracted")]
        index.kind += _column(tables, "advantages", "group_kind")
        index.base += map(_float, _column(tables, "advantages", "base"))
        return {id: self._numbers[step, id] for id in ids}

    def _header(
        self, tables: dict[str, pa.Table], numbers: dict[str, int], lengths_R: NDArray[np.int64]
    ) -> dict[str, Any]:
        """What a block says of its completions beside their tokens."""
        rollouts = tables["rollouts"]
        first: dict[str, int] = {}
        for row, id in enumerate(rollouts["prompt_id"].to_pylist()):
            first.setdefault(id, row)
        spans = zip(
            _column(tables, "rewards", "answer_start"), _column(tables, "rewards", "answer_end"),
            strict=True,
        )  # fmt: skip
        # Their tokens tell the texts of the others.
        untold = [
            text if self._texts is None or not length else None
            for text, length in zip(rollouts["completion"].to_pylist(), lengths_R, strict=True)
        ]
        return {
            "groups": {numbers[id]: self._asked(tables, row) for id, row in first.items()},
            "finish": [_shown(reason) for reason in rollouts["finish_reason"].to_pylist()],
            "extracted": [_shown(t) for t in _column(tables, "rewards", "extracted")],
            "rewards": _several(tables),
            "spans": [None if None in span else span for span in spans],
            "completions": [_shown(text) for text in untold],
        }

    def _asked(self, tables: dict[str, pa.Table], row: int) -> dict[str, str | None]:
        """What a group was asked, as its row `row` has it; nothing of a teacher that was told
        peers, another for each row."""
        rollouts, signals = tables["rollouts"], tables.get("signals")
        teacher = None
        if signals is not None and signals[PEER].null_count == len(signals):
            teacher = signals["teacher_prompt_token_ids"][row].as_py()
        asked = {name: _shown(rollouts[name][row].as_py())
                 for name in ("problem", "answer", "solution")}  # fmt: skip
        prompt = rollouts["prompt_token_ids"][row].as_py()
        return {**asked, "prompt": self._together(prompt), "teacher": self._together(teacher)}

    def _together(self, ids: list[int] | None) -> str | None:
        if not ids:  # completions made elsewhere have no tokens
            return None
        text = None
        if self._texts is not None and all(id >= 0 for id in ids):
            text = self._texts.together(ids)
        return _shown(" ".join(map(str, ids)) if text is None else text)

    def completions(self, total: int, scales: Mapping[str, float]) -> Completions:
        """All that was taken, out of `total`; `scales` has each quantity's full colour."""
        texts = None
        if self._texts is not None:
            texts = [_shown(self._texts.text(id), LONGEST_LINE) for id in self._table.places]
        quantities = [
            {"name": name, "label": label, "centre": centre or 0.0, "signed": centre is not None,
             "scale": scales.get(name, 1.0)}
            for name, (label, centre) in QUANTITIES.items() if name in self._quantities
        ]  # fmt: skip
        index = {
            **vars(self._rows), "groups": self._groups, "first": self._first,
            "ids": list(self._table.places), "texts": texts, "quantities": quantities,
            "exact": self._exact,
        }  # fmt: skip
        return Completions(index, self._blocks.close(), self._notes, total)


def _column(tables: dict[str, pa.Table], stage: str, name: str) -> list[Any]:
    rows = tables["rollouts"].num_rows
    return tables[stage][name].to_pylist() if stage in tables else [None] * rows


def _several(tables: dict[str, pa.Table]) -> list[dict[str, float | None]]:
    """Each of several rewards by its name, a completion."""
    names = reward_weights(tables["rewards"].schema) if "rewards" in tables else ()
    columns = {name: _column(tables, "rewards", REWARD + name) for name in names}
    return [
        {name: _float(values[row]) for name, values in columns.items()}
        for row in range(tables["rollouts"].num_rows)
    ]


def _float(value: float | None) -> float | None:
    """A number of float32 in as few digits as tell it apart; None for what JSON has no number."""
    return float(str(np.float32(value))) if value is not None and np.isfinite(value) else None


def _shown(text: str | None, limit: int = LONGEST_TEXT) -> str | None:
    """Untrusted text with its line breaks, what is no visible character as an escape."""
    if text is None:
        return None
    lines = text[:limit].split("\n")
    more = f"… ({len(text) - limit:,} more characters)" if len(text) > limit else ""
    return "\n".join(t if t.isprintable() else printable(t) for t in lines) + more
