"""What a server replies, read as an answer or refused. All of it is untrusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from castctl.engines.trouble import Asked, Reply, Trouble, refusal, words_in
from castctl.recipe.recipe import SamplingSettings
from castctl.verify.visible import CLOSED, OPENED

FINISHED = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}
"""The server's reasons and ours; any other ends no answer that could be judged."""

BROKEN_OFF = ("abort", "error", "insufficient_system_resource")
"""Reasons of vLLM and SGLang, of OpenRouter and of DeepSeek for what another attempt may finish."""


LONGEST_NAME = 1000
"""Characters of a model's name; a longer one is none."""


@dataclass(frozen=True)
class Answer:
    """A completion as text, with its thoughts in `<think>` where the server keeps them apart;
    `finish_reason` is `stop` or `length`, `tokens` the server's own count, None without one."""

    text: str
    finish_reason: str
    tokens: int | None


def read_json(reply: Reply, asked: Asked) -> dict[str, Any]:
    """The object that a reply of success holds; raises `Trouble` for every other reply."""
    if reply.status != 200:
        raise refusal(reply, asked)
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        begins = asked.words(reply.body[:20_000].decode(errors="replace"))[:60] or "nothing"
        raise Trouble(
            f"{asked.host} replies at {asked.place} with what is no JSON object",
            "is --endpoint the URL of an OpenAI-compatible server?",
            words=begins,
        )
    if value.get("error"):  # gateways tell of what failed behind them with status 200
        said = asked.words(words_in(reply.body))
        raise Trouble(f"{asked.host} replies with an error", words=said, again=True)
    return value


def read_models(reply: Reply, asked: Asked) -> dict[str, str | None]:
    """The models served, each with what it was loaded from; empty where the server tells of none,
    or has no such list. Raises `Trouble` for another refusal."""
    if reply.status in (404, 405, 501):
        return {}
    entries = read_json(reply, asked).get("data")
    served: dict[str, str | None] = {}
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"id": str(name)} if not 0 < len(name) <= LONGEST_NAME:
                continue
            case {"id": str(name), "root": str(root)}:
                served[valid_text(name)] = valid_text(root[:LONGEST_NAME])
            case {"id": str(name)}:
                served[valid_text(name)] = None
    return served


def read_answer(reply: Reply, asked: Asked, sampling: SamplingSettings) -> Answer:
    """The answer in a reply; raises `Trouble` where there is none, and where the server did not do
    as it was asked: a longer completion, one cut sooner, one that goes on after a stop."""
    value = read_json(reply, asked)
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise Trouble(f"{asked.host} replies without choices", "is it an OpenAI-compatible server?")
    text, content = _text(choice, asked)
    reason = choice.get("finish_reason")
    if reason in BROKEN_OFF:
        raise Trouble(f"{asked.host} broke a completion off (finish_reason {reason})", again=True)
    if not isinstance(reason, str) or reason not in FINISHED:
        raise Trouble(
            f"{asked.host} ended a completion with finish_reason {asked.words(str(reason))}, which "
            "is neither right nor wrong",
            "switch off what does so (a content filter, tools), or evaluate elsewhere",
        )
    tokens = _count(value.get("usage"))
    finish = FINISHED[reason]
    _check_length(tokens, finish, asked, sampling)
    for stop in sampling.stop:
        if stop in content.removesuffix(stop):  # some servers leave it at the end, as ours do
            raise Trouble(
                f"{asked.host} went on after {stop!r} of sampling.stop",
                "leave that stop out, or evaluate elsewhere",
            )
    stopped_by = choice.get("stop_reason")  # vLLM's; the text of ours ends with its stop
    if finish == "stop" and stopped_by in sampling.stop:
        text += str(stopped_by)
    return Answer(text, finish, tokens)


def _text(choice: dict[str, Any], asked: Asked) -> tuple[str, str]:
    """The whole text of a choice, and of it what is no thought."""
    chat = asked.path.endswith("/chat/completions")
    message = choice.get("message") if chat else {"content": choice.get("text")}
    content: Any = None
    thoughts: Any = None
    if isinstance(message, dict):
        content = message.get("content")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
    known = (str, type(None))
    if not isinstance(message, dict) or not isinstance(content, known):
        raise Trouble(f"{asked.host} replies with a choice whose content is no text")
    content = valid_text(content or "")
    if not isinstance(thoughts, str) or not thoughts:
        return content, content
    # A tag among the thoughts must not end them: what follows would be taken for the answer.
    kept = f"{OPENED}\n{valid_text(thoughts).replace(CLOSED, CLOSED.replace('/', '|'))}"
    return (f"{kept}\n{CLOSED}\n\n{content}" if content else kept), content


def valid_text(text: str) -> str:
    """JSON may hold half a surrogate pair, which is no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: Any) -> int | None:
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    fits = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 2**31
    return tokens if fits else None


def _check_length(
    tokens: int | None, finish: str, asked: Asked, sampling: SamplingSettings
) -> None:
    most = sampling.max_tokens
    if tokens is None:
        return
    if tokens > most:
        raise Trouble(
            f"{asked.host} made a completion of {tokens:,} tokens where {most:,} were asked for",
            "it does not keep to --max-tokens: bound it there, or evaluate elsewhere",
        )
    if finish == "length" and tokens < most:
        raise Trouble(
            f"{asked.host} cut a completion at {tokens:,} tokens where {most:,} were asked for, by "
            "a bound of its own",
            "raise it there (the context, or the longest output), or lower --max-tokens",
        )
