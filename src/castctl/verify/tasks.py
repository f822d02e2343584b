"""The tasks of an environment of `verifiers`: their prompts, and what one reply to each is worth.

Nothing else imports that package.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import verifiers.v1 as vf
from verifiers.v1.graph import MessageNode
from verifiers.v1.state import state_cls
from verifiers.v1.utils.decorators import discover_decorated
from verifiers.v1.utils.loaders import (
    default_harness_id,
    environment_class,
    load_taskset,
    taskset_config_type,
)

from castctl.recipe.environment import Named
from castctl.verify.visible import CLOSED, OPENED

ROLES = ("system", "user", "assistant")

HOOKS = ("setup", "finalize", "stage_verifier")
"""What a task may do before and after a reply, in a runtime."""


class Unplayable(Exception):
    """Why an environment is not played by one reply: the end of a sentence that begins with it."""


class OneReply(vf.Trace):
    """A conversation with one reply, whose tokens and whose end nobody told: to ask for them is an
    error, never a 0."""

    @property
    def is_truncated(self) -> bool:
        _refuse("is_truncated")

    @property
    def usage(self) -> Any:
        _refuse("usage")

    @property
    def num_input_tokens(self) -> int:
        _refuse("num_input_tokens")

    @property
    def num_output_tokens(self) -> int:
        _refuse("num_output_tokens")

    @property
    def num_total_tokens(self) -> int:
        _refuse("num_total_tokens")


class Tasks:
    """All tasks of an environment, in its order, and the rewards of replies.

    Raises `Unplayable` where a task takes more than one reply: tools, a runtime, a judge, several
    agents. What its code raises is not caught.
    """

    def __init__(self, asked: Named) -> None:
        config = taskset_config_type(asked.id).model_validate({**asked.arguments, "id": asked.id})
        taskset = load_taskset(config)
        if environment_class(asked.id) is not vf.SingleAgentEnv:
            raise Unplayable("is played by an environment class of its own; castctl plays one turn")
        if default_harness_id(asked.id) == asked.id:
            raise Unplayable("is played by a program of its own; castctl plays one turn")
        if taskset.toolsets(config):
            raise Unplayable("has tools; castctl plays one turn without any")
        if not taskset.bounded:
            raise Unplayable("has tasks without end; castctl reads those that have one")
        self._by_text: dict[tuple[str, str | None], vf.Task] = {}
        self._rows: list[dict[str, Any]] = []
        for task in taskset:
            _require_one_turn(task)
            row = _row(task)
            first = self._by_text.setdefault((row["problem"], row["answer"]), task)
            if first is not task and _messages(first) != _messages(task):
                raise Unplayable(
                    f"has two tasks, {first.data.idx} and {task.data.idx}, whose last message and "
                    "answer are one, and what stands before them is not; castctl cannot tell them "
                    "apart"
                )
            self._rows.append(row)
        if not self._rows:
            raise Unplayable("has no tasks; look at its arguments")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each task as `problem`, its last message; `earlier`, (role, content) of those before;
        and `answer` and `solution`, the fields of these names, where they are texts or numbers."""
        return iter(self._rows)

    def reward(
        self, problem: str, completion: str, answer: str | None, which: str | None = None
    ) -> float:
        """The weighted sum of the rewards of one reply to the task, or the reward `which`.

        Raises `ValueError` where there is no such task or reward, and whatever a reward raises.
        """
        task = self._by_text.get((problem, answer))
        if task is None:
            raise ValueError(
                "the environment has no task of this problem and answer: its data changed, or it "
                "draws them by chance"
            )
        trace = _trace(task, completion)
        asyncio.run(task.score(trace))
        if lacking := [name for name, reward in trace.rewards.items() if reward is None]:
            raise ValueError(f"the environment gave no reward {lacking[0]}")
        if which is None:
            return math.fsum(each.score * each.weight for each in trace.rewards.values())
        if which not in trace.rewards:
            raise ValueError(
                f"the environment has no reward {which}; it has {', '.join(trace.rewards)}"
            )
        return float(trace.rewards[which].score)


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(f"castctl tells an environment no {what} of a reply, only its text")


def _require_one_turn(task: vf.Task) -> None:
    number, data = task.data.idx, task.data
    if type(task).toolsets(task.config):
        raise Unplayable("has tools; castctl plays one turn without any")
    if task.NEEDS_CONTAINER or data.image or data.skills:
        raise Unplayable(f"plays task {number} in a container; castctl plays one turn without any")
    own = [name for name in HOOKS if getattr(type(task), name) is not getattr(vf.Task, name)]
    if own:
        raise Unplayable(f"works in a runtime around a reply ({own[0]}); castctl has none")
    if discover_decorated(task, "intercept"):
        raise Unplayable("rewrites replies (intercept); castctl trains on what was sampled")
    if task.plugged_judges():
        raise Unplayable("asks a judge, another model; castctl asks none")
    if not task.hooks("reward"):
        raise Unplayable("has no reward")
    for signal in [*task.hooks("reward"), *task.hooks("metric")]:
        runtime = inspect.signature(signal).parameters.get("runtime")
        if runtime is not None and runtime.default is inspect.Parameter.empty:
            raise Unplayable(f"takes a runtime for {signal.__name__}; castctl has none")


def _messages(task: vf.Task) -> list[tuple[str, str]]:
    """All messages of a task's prompt, (role, content). Raises `Unplayable` for any but texts, of
    which a user's is the last."""
    data, number = task.data, task.data.idx
    prompt = [vf.UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else data.prompt
    system = [] if data.system_prompt is None else [vf.SystemMessage(content=data.system_prompt)]
    said = [(each.role, each.content) for each in [*system, *(prompt or [])]]
    texts = all(role in ROLES and isinstance(content, str) for role, content in said)
    called = any(getattr(each, "tool_calls", None) for each in prompt or [])
    if not said or not texts or called or said[-1][0] != "user":
        raise Unplayable(f"begins task {number} otherwise than by texts, a user's the last")
    return said


def _row(task: vf.Task) -> dict[str, Any]:
    *earlier, (_, problem) = _messages(task)
    told = {name: getattr(task.data, name, None) for name in ("answer", "solution")}
    texts = {
        name: str(value) if isinstance(value, str | int | float) and value != "" else None
        for name, value in told.items()
    }
    return {"problem": problem, "earlier": earlier, **texts}


def _trace(task: vf.Task, completion: str) -> OneReply:
    """The conversation that the task's rewards read; thoughts stand apart from the reply, as they
    do where a server parses them."""
    thoughts, closed, reply = completion.rpartition(CLOSED)
    if not closed and completion.lstrip().startswith(OPENED):
        thoughts, reply = completion, ""
    thoughts = thoughts.strip().removeprefix(OPENED).strip()
    said = vf.AssistantMessage(content=reply, reasoning_content=thoughts or None)
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    messages = [*(kinds[role](content=content) for role, content in _messages(task)), said]
    nodes = [
        MessageNode(parent=at - 1 if at else None, message=message, sampled=message is said)
        for at, message in enumerate(messages)
    ]
    return OneReply(
        task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        state=state_cls(type(task))(),
        nodes=nodes,
        is_completed=True,
        ok=True,
    )
