"""Evaluations as lighteval's `EvaluationTracker` saves them (version 0.13).

results/MODEL/results_DATE.json
details/MODEL/DATE/details_TASK|0_DATE.parquet    doc, metric, model_response: a row a problem
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from castctl.runs.run import Run
from castctl.shards.part import plain
from castctl.stages.evaluate.statistics import pass_at_k
from castctl.versions import VERSION
from castctl.writers.evaluations import Evaluation, Problem, evaluations

_texts, _ids = pa.list_(pa.string()), pa.list_(pa.int64())

DOC = pa.struct(
    [
        ("query", pa.string()),
        ("choices", _texts),
        ("gold_index", pa.int64()),
        ("instruction", pa.string()),
        ("images", pa.null()),
        (
            "specific",
            pa.struct([("prompt_id", pa.string()), ("verdicts", _texts), ("extracted", _texts)]),
        ),
        ("unconditioned_query", pa.string()),
        ("original_query", pa.string()),
        ("id", pa.string()),
        ("task_name", pa.string()),
        ("fewshot_samples", pa.list_(pa.null())),
        ("sampling_methods", _texts),
        ("fewshot_sorting_class", pa.string()),
        ("generation_size", pa.int64()),
        ("stop_sequences", _texts),
        ("use_logits", pa.bool_()),
        ("num_samples", pa.int64()),
        ("generation_grammar", pa.null()),
    ]
)
"""The fields of lighteval's `Doc`, in their order."""

RESPONSE = pa.struct(
    [
        ("input", pa.string()),
        ("input_tokens", _ids),
        ("text", _texts),
        ("output_tokens", pa.list_(_ids)),
        ("text_post_processed", _texts),
        ("reasonings", _texts),
        ("logprobs", pa.list_(pa.float64())),
        ("argmax_logits_eq_gold", pa.list_(pa.bool_())),
        ("logits", pa.list_(pa.list_(pa.float64()))),
        ("unconditioned_logprobs", pa.list_(pa.float64())),
        ("truncated_tokens_count", pa.int64()),
        ("padded_tokens_count", pa.int64()),
    ]
)
"""The fields of lighteval's `ModelResponse`, in their order."""


def write(run: Run, step: int | None, folder: Path) -> None:
    """Write details and results of each evaluation, under its model's name and the time at which
    it was made.

    The metrics of a problem are `avg@n`, its mean reward, and `pass@k` of k = n samples; a task's
    are their means over problems, with the standard error that lighteval gives them. castctl's
    intervals stand beside them in `config_general`.
    """
    for each in evaluations(run, step):
        date = each.made.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
        task = f"{each.name}|0"
        rows = [_detail(each, problem, task) for problem in each.problems]
        names = list(rows[0]["metric"])
        schema = pa.schema(
            [
                ("doc", DOC),
                ("metric", pa.struct([(name, pa.float64()) for name in names])),
                ("model_response", RESPONSE),
            ]
        )
        details = folder / "details" / each.model / date
        details.mkdir(parents=True)
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, details / f"details_{task}_{date}.parquet")
        results = folder / "results" / each.model / f"results_{date}.json"
        results.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain(_results(each, task, rows)), indent=2, allow_nan=False)
        results.write_text(text, encoding="ascii")


def _detail(each: Evaluation, problem: Problem, task: str) -> dict[str, Any]:
    samples, k = problem.samples, len(problem.samples)
    correct = sum(sample["verdict"] == "correct" for sample in samples)
    system = [turn["content"] for turn in problem.asked if turn["role"] == "system"]
    first = samples[0]
    doc = {
        "query": problem.asked[-1]["content"],
        "choices": [] if problem.answer is None else [problem.answer],
        "gold_index": 0,
        "instruction": "\n\n".join(system) or None,
        "specific": {
            "prompt_id": first["prompt_id"],
            "verdicts": [sample["verdict"] for sample in samples],
            "extracted": [sample["extracted"] for sample in samples],
        },
        "original_query": problem.problem,
        "id": first["prompt_id"],
        "task_name": task,
        "fewshot_samples": [],
        "sampling_methods": ["GENERATIVE"],
        "generation_size": each.sampling.get("max_tokens"),
        "stop_sequences": list(each.sampling.get("stop") or ()),
        "use_logits": False,
        "num_samples": k,
    }
    response = {
        "input": problem.asked[-1]["content"],
        "input_tokens": first["prompt_token_ids"],
        "text": [sample["completion"] for sample in samples],
        "output_tokens": [sample["completion_token_ids"] for sample in samples],
        "reasonings": [None] * k,
        "logprobs": [],
        "argmax_logits_eq_gold": [],
        "truncated_tokens_count": 0,
        "padded_tokens_count": 0,
    }
    metric = {
        f"avg@n:n={each.k}": problem.mean,
        f"pass@k:k={each.k}&n={each.k}": float(pass_at_k(np.array([correct]), k, each.k)[0]),
    }
    return {"doc": doc, "metric": metric, "model_response": response}


def _results(each: Evaluation, task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores: dict[str, float] = {}
    for name in rows[0]["metric"]:
        values = np.array([row["metric"][name] for row in rows])
        scores[name] = float(values.mean())
        if len(values) > 1:
            scores[f"{name}_stderr"] = float(values.std(ddof=1) / np.sqrt(len(values)))
    result = each.result
    own = ("avg", "pass", "maj", "problems", "k", "step", "seed", "grader", "libraries")
    return {
        "config_general": {
            "lighteval_sha": "?",
            "num_fewshot_seeds": 1,
            "max_samples": (result.get("data") or {}).get("limit"),
            "job_id": None,
            "start_time": None,
            "end_time": each.made.timestamp(),
            "total_evaluation_time_secondes": None,
            "model_config": {"model_name": each.model, "generation_parameters": each.sampling},
            "model_name": each.model,
            "castctl": {"version": VERSION, **{key: result.get(key) for key in own}},
        },
        "results": {task: scores, "all": scores},
        "versions": {task: 0},
        "config_tasks": {task: {"name": each.name, "num_samples": [each.k]}},
        "summary_tasks": {
            task: {
                "hashes": {}, "truncated": 0, "non_truncated": len(rows), "padded": 0,
                "non_padded": len(rows),
            }
        },
        "summary_general": {
            "hashes": {}, "truncated": 0, "non_truncated": len(rows), "padded": 0,
            "non_padded": len(rows),
        },
    }  # fmt: skip
