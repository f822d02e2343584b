"""The rollout stage at a server: problems in, texts out, and no token in between."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from castctl.data.conversation import earlier_in
from castctl.data.messages import MessagesTemplate
from castctl.engines.endpoint import Endpoint, Question
from castctl.engines.replies import Answer, valid_text
from castctl.engines.sampling import request_seed, row_key
from castctl.progress import Progress
from castctl.recipe.recipe import SamplingSettings
from castctl.shards.columns import list_column
from castctl.shards.journal import Journal
from castctl.shards.part import Metadata, content_hash
from castctl.shards.stage import WHOLE, Shard, StepFolder
from castctl.stages.rollout import part_count
from castctl.verify.visible import CLOSED, OPENED

log = logging.getLogger(__name__)


def ask_step(
    folder: StepFolder,
    prompts: pa.Table,
    endpoint: Endpoint,
    template: MessagesTemplate,
    sampling: SamplingSettings,
    *,
    seed: int,
    part_size: int,
    progress: Progress,
    shard: Shard = WHOLE,
    overwrite: bool = False,
) -> None:
    """Ask for `sampling.n` completions of each prompt into `rollouts/`, as `rollout_step` samples
    them: the same parts, kept and refused alike, each completion with a seed of its own from (seed,
    step, prompt, sample).

    The requests of all parts are on their way side by side. What has come of a part that is not
    whole waits in a journal beside it, and is asked for no more. Raises `UserError` where the
    server refuses, or does not do as it was asked.
    """
    decisive = _provenance(endpoint, sampling, template, seed)
    if not overwrite:
        folder.refuse_mixed("rollouts", decisive)
    numbers = [p for p in range(part_count(prompts, part_size)) if shard.owns(p)]
    rows = {p: prompts.slice(p * part_size, part_size) for p in numbers}
    total = sum(map(len, rows.values())) * sampling.n
    with contextlib.ExitStack() as held, progress.task("rollout", total, "completions") as advance:
        parts: dict[int, _Part] = {}
        for number in numbers:
            inputs = {"prompts": rows[number]}
            lacks = folder.lacks("rollouts", number, inputs, decisive, overwrite)
            made = decisive | {"prompts": content_hash(rows[number])}
            place = folder.part_path("rollouts", number)
            journal = Journal(place, made, anew=overwrite or not lacks)
            held.callback(journal.close)
            if not lacks:
                journal.remove()
                advance(len(rows[number]) * sampling.n)
                continue
            parts[number] = _Part(rows[number], sampling.n, journal)
            advance(len(parts[number].answers))

        def write(number: int) -> None:
            part = parts.pop(number)
            left = sorted(part.left | set(endpoint.left))
            said = decisive | {"endpoint": where(endpoint) | {"left_to_server": left}}
            folder.make("rollouts", number, {"prompts": part.prompts}, said, part.table, overwrite)
            part.journal.remove()

        for number in [number for number, part in parts.items() if part.whole]:
            write(number)
        places = [(number, row) for number, part in parts.items() for row in part.missing]
        questions = [
            question
            for part in parts.values()
            for question in part.questions(template, seed, folder.step)
        ]
        with contextlib.closing(endpoint.answers(questions, sampling)) as answers:
            for index, answer in answers:
                number, row = places[index]
                parts[number].take(row, answer, endpoint.left)
                advance(1)
                if parts[number].whole:
                    write(number)


def where(endpoint: Endpoint) -> Metadata:
    """What is told of a server and decides nothing: where it stands, and what it was left to do
    about the distribution."""
    return {"url": endpoint.url, "left_to_server": sorted(endpoint.left)}


def _provenance(
    endpoint: Endpoint, sampling: SamplingSettings, template: MessagesTemplate, seed: int
) -> Metadata:
    unused = {"temperature", "max_rows"}
    return {
        "model": endpoint.model,
        "engine": endpoint.identity,
        "templates": {"prompt": template.version},
        "temperature": sampling.temperature,
        "sampling": sampling.model_dump(mode="json", exclude=unused),
        "seed": seed,
    }


@dataclass
class _Part:
    """A part in the making: P prompts, n completions of each, in rows of one prompt together."""

    prompts: pa.Table
    n: int
    journal: Journal

    def __post_init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.left: set[str] = set()  # what the server was left to do, of all that is kept
        for row, kept in self.journal.rows.items():
            match kept:
                case {"text": str(text), "finish_reason": "stop" | "length" as reason,
                      "tokens": int() | None as tokens} if row in range(len(self)):  # fmt: skip
                    count = tokens if tokens in range(2**31) else None
                    self.answers[row] = Answer(valid_text(text), reason, count)
                    self.left |= {name for name in kept.get("left", []) if isinstance(name, str)}

    def __len__(self) -> int:
        return self.prompts.num_rows * self.n

    @property
    def whole(self) -> bool:
        return len(self.answers) == len(self)

    @property
    def missing(self) -> list[int]:
        return [row for row in range(len(self)) if row not in self.answers]

    def take(self, row: int, answer: Answer, left: Iterable[str]) -> None:
        self.left |= set(left)
        self.journal.add(row, answer.__dict__ | {"left": sorted(self.left)})
        self.answers[row] = answer

    def questions(self, template: MessagesTemplate, seed: int, step: int) -> list[Question]:
        """What is asked for each missing row, in their order."""
        columns = (self.prompts[name].to_pylist() for name in ("problem", "earlier"))
        asked = [(problem, earlier_in(cell)) for problem, cell in zip(*columns, strict=True)]
        fields, ids = template.questions(asked), self.prompts["prompt_id"].to_pylist()
        places = (divmod(row, self.n) for row in self.missing)
        return [
            Question(fields[prompt], request_seed(row_key(seed, step, ids[prompt], sample)))
            for prompt, sample in places
        ]

    def table(self) -> pa.Table:
        """The rows of `rollouts`, without tokens."""
        answers = [self.answers[row] for row in range(len(self))]
        owner = pa.array(np.repeat(np.arange(self.prompts.num_rows), self.n))
        samples = np.tile(np.arange(self.n), self.prompts.num_rows)
        none = list_column(np.zeros(0), np.zeros(len(self) + 1, np.int64), pa.int32())
        copied = ("prompt_id", "problem", "answer", "solution", "earlier")
        return pa.table(
            {
                **{name: self.prompts[name].take(owner) for name in copied},
                "sample": pa.array(samples, pa.int32()),
                "prompt_token_ids": none,
                "completion_token_ids": none,
                "completion": with_opened_thoughts(answers),
                "finish_reason": [answer.finish_reason for answer in answers],
                "token_count": pa.array([answer.tokens for answer in answers], pa.int32()),
            }
        )


def with_opened_thoughts(answers: list[Answer]) -> list[str]:
    """The texts, each after the `<think>` that the server's chat template ends its prompts with.

    Whether it does is seen in the texts alone: most that come to an end close thoughts which they
    never opened. One that was cut before would otherwise be read as if it had no thoughts.
    """
    ended = [answer.text for answer in answers if answer.finish_reason == "stop"]
    if answers and not ended:
        log.warning(
            "no completion came to an end, so it is not known whether the server's chat template "
            "opens <think>; if it does, start the server with a reasoning parser"
        )
    closing = sum(CLOSED in text and OPENED not in text.partition(CLOSED)[0] for text in ended)
    opened = closing > len(ended) / 2
    return [
        OPENED + answer.text if opened and not _opens(answer.text) else answer.text
        for answer in answers
    ]


def _opens(text: str) -> bool:
    return text.lstrip().startswith(OPENED)
