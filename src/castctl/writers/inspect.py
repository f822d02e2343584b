"""Evaluations as logs of Inspect (https://inspect.aisi.org.uk/eval-logs.html), in its format
`eval`: a ZIP file of JSON, as version 2 of its schema has it.

    header.json                      all but the samples
    samples/1_epoch_1.json           a file a sample: a problem's samples are its epochs
    summaries.json, reductions.json  what the list of samples shows, and each problem's mean
    _journal/start.json              what was known when it began
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from castctl.runs.run import Run
from castctl.shards.part import plain
from castctl.versions import VERSION
from castctl.writers.evaluations import Evaluation, Problem, evaluations

SCHEMA = 2
SCORER = "castctl"

STOPS = {"stop": "stop", "length": "max_tokens"}
"""Why a completion ended, in Inspect's words."""

Json = dict[str, Any]


def write(run: Run, step: int | None, folder: Path) -> None:
    """Write a log of each evaluation.

    A sample's score is its reward, with the answer that was read and the verdict; one that could
    not be judged has none. The metrics are avg@k with the bounds of its 95 % interval over
    problems, pass@k and maj@k.
    """
    for each in evaluations(run, step):
        digest = hashlib.sha256(json.dumps(plain(each.result), sort_keys=True).encode())
        id = digest.hexdigest()[:22]
        name = each.name.replace("_", "-")  # which parts the pieces of a log's name
        path = folder / f"{each.made:%Y-%m-%dT%H-%M-%S}+00-00_{name}_{id}.eval"
        with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as log:
            _fill(log, each, id)


def _fill(log: zipfile.ZipFile, each: Evaluation, id: str) -> None:
    spec, plan = _spec(each, id), _plan(each)

    def add(name: str, value: Any) -> None:
        log.writestr(name, json.dumps(plain(value), allow_nan=False))

    add("_journal/start.json", {"version": SCHEMA, "eval": spec, "plan": plan})
    summaries = []
    for sample in _samples(each, id):
        add(f"samples/{sample['id']}_epoch_{sample['epoch']}.json", sample)
        summaries.append(_summary(sample))
    add("summaries.json", summaries)
    add("reductions.json", [_reductions(each)])
    header = {
        "version": SCHEMA,
        "status": "success",
        "eval": spec,
        "plan": plan,
        "results": _results(each),
        "stats": {"completed_at": each.made.isoformat(), "model_usage": {}},
    }
    add("header.json", header)


def _spec(each: Evaluation, id: str) -> Json:
    result = each.result
    sampling = _generate(each)
    return {
        "eval_id": id,
        "run_id": id,
        "created": each.made.isoformat(),
        "task": each.name,
        "task_id": id,
        "task_version": 0,
        "task_attribs": {},
        "task_args": {},
        "dataset": {
            "name": result.get("task"),
            "samples": len(each.problems),
            "sample_ids": [number + 1 for number in range(len(each.problems))],
            "shuffled": False,
        },
        "model": f"{SCORER}/{each.model}",
        "model_generate_config": sampling,
        "model_args": {},
        "config": {"epochs": each.k, "epochs_reducer": ["mean"]},
        "packages": {SCORER: VERSION},
        "metadata": {
            "grader": result.get("grader"),
            "step": result.get("step"),
            "model_fingerprint": result.get("model"),
            "libraries": result.get("libraries"),
        },
        "scorers": [{"name": SCORER, "metrics": [{"name": name} for name in _metrics(each)]}],
    }


def _plan(each: Evaluation) -> Json:
    steps = [{"solver": "generate", "params": {}}]
    return {"name": "plan", "steps": steps, "config": _generate(each)}


def _generate(each: Evaluation) -> Json:
    """What of the sampling Inspect has a word for."""
    sampling = each.sampling
    told = {
        "temperature": sampling.get("temperature"),
        "top_p": sampling.get("top_p"),
        "max_tokens": sampling.get("max_tokens"),
        "presence_penalty": sampling.get("presence_penalty") or None,
        "stop_seqs": list(sampling.get("stop") or ()) or None,
        "seed": each.result.get("seed"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _metrics(each: Evaluation) -> dict[str, float]:
    result, k = each.result, each.k
    avg = result["avg"]
    told = {
        f"avg@{k}": avg["mean"],
        f"avg@{k} low": avg.get("low"),
        f"avg@{k} high": avg.get("high"),
        f"pass@{k}": result["pass"][str(k)]["mean"],
        f"maj@{k}": result["maj"]["mean"],
    }
    return {name: value for name, value in told.items() if value is not None}


def _results(each: Evaluation) -> Json:
    samples = [sample for problem in each.problems for sample in problem.samples]
    judged = sum(sample["reward"] is not None for sample in samples)
    score = {
        "name": SCORER,
        "scorer": SCORER,
        "reducer": "mean",
        "scored_samples": judged,
        "unscored_samples": len(samples) - judged,
        "params": {},
        "metrics": {
            name: {"name": name, "value": value, "params": {}}
            for name, value in _metrics(each).items()
        },
    }
    return {"total_samples": len(samples), "completed_samples": len(samples), "scores": [score]}


def _reductions(each: Evaluation) -> Json:
    means = [
        {"value": problem.mean, "sample_id": number}
        for number, problem in enumerate(each.problems, 1)
    ]
    return {"scorer": SCORER, "reducer": "mean", "samples": means}


def _samples(each: Evaluation, id: str) -> Iterator[Json]:
    for number, problem in enumerate(each.problems, 1):
        for epoch, row in enumerate(problem.samples, 1):
            yield _sample(each, problem, row, number, epoch, f"{id}-{number}-{epoch}")


def _sample(
    each: Evaluation, problem: Problem, row: Json, number: int, epoch: int, uuid: str
) -> Json:
    said = {"role": "assistant", "content": row["completion"], "source": "generate"}
    messages = [*({**turn, "source": "input"} for turn in problem.asked), said]
    named = [{"id": f"{uuid}-{n}", **turn} for n, turn in enumerate(messages)]
    tokens = len(row["prompt_token_ids"]), _tokens(row)
    usage = {"input_tokens": tokens[0], "output_tokens": tokens[1], "total_tokens": sum(tokens)}
    model = f"{SCORER}/{each.model}"
    choice = {"message": named[-1], "stop_reason": STOPS.get(row["finish_reason"], "unknown")}
    score = {
        "value": row["reward"],
        "answer": row["extracted"],
        "explanation": row["verdict"],
        "metadata": {"verdict": row["verdict"]},
    }
    return {
        "id": number,
        "epoch": epoch,
        "input": problem.problem,
        "target": problem.answer or "",
        "messages": named,
        "output": {
            "model": model,
            "choices": [choice],
            "completion": row["completion"],
            "usage": usage,
        },
        "scores": {} if row["reward"] is None else {SCORER: score},
        "metadata": {"prompt_id": row["prompt_id"], "sample": row["sample"]},
        "store": {},
        "events": [],
        "model_usage": {model: usage},
        "attachments": {},
        "uuid": uuid,
    }


def _tokens(row: Json) -> int:
    return len(row["completion_token_ids"]) or row["token_count"] or 0


def _summary(sample: Json) -> Json:
    shared = ("id", "epoch", "input", "target", "metadata", "scores", "model_usage", "uuid")
    told = {name: sample[name] for name in shared}
    return told | {"completed": True, "message_count": len(sample["messages"])}
