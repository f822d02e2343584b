"""A model at an OpenAI-compatible server: texts in, texts out. No token is seen here."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from castctl.engines.address import base_url
from castctl.engines.replies import Answer, read_answer, read_models
from castctl.engines.trouble import CONNECT_SECONDS, Asked, Reply, Trouble, serves, unreached
from castctl.errors import UserError
from castctl.recipe.recipe import SamplingSettings, alterations
from castctl.shards.part import Metadata

log = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
"""The environment's variable with the key, which goes to the server's own host and nowhere else."""

MOST_BYTES = 2**24
"""Longest reply, several times the longest completion of a model as JSON."""

UNASKED = {
    "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""What servers do to the distribution unless told otherwise, switched off: vLLM takes such settings
from the model's `generation_config.json`, llama.cpp has a top_k of 40. Not every server knows them
all; those that it refuses are left to it, and the results say which. What the evaluation itself
asks for is left to none."""

LIMIT, NEWER_LIMIT = "max_tokens", "max_completion_tokens"
"""The longest completion by the name that all servers know, and by the one that OpenAI's newer
models demand, which is written where a server asks for it."""


@dataclass(frozen=True)
class Patience:
    """How often a request is sent, and how long is waited between: `first` seconds, doubled each
    time up to `longest`, less up to a half by chance (ours)."""

    attempts: int = 8
    first: float = 1.0
    longest: float = 60.0

    def seconds(self, attempt: int, asked: float | None) -> float:
        """The wait after so many attempts; what a server asks for goes before, within bounds."""
        if asked is not None:
            return min(max(asked, 0.0), self.longest)
        return min(self.first * 2.0 ** (attempt - 1), self.longest) * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Question:
    """One completion to ask for: the fields that say what (`messages` or `prompt`, and what belongs
    to them), and the seed of its randomness (63 bits)."""

    fields: dict[str, Any]
    seed: int


@dataclass
class Endpoint:
    """A model at a server. `url` ends with the API's version; `root` is what the server says it has
    loaded the model from, and `models` are the names of all it serves, where it says so."""

    url: str
    model: str
    root: str | None = None
    models: tuple[str, ...] = ()
    concurrency: int = 32
    timeout: float = 3600.0
    """Seconds of one attempt (ours)."""
    patience: Patience = Patience()
    left: set[str] = field(default_factory=set)
    """Which of `UNASKED` the server does not take."""
    _limit: str = LIMIT

    @property
    def identity(self) -> Metadata:
        """What decides a draw beside the question and the sampling settings. Where the server
        stands does not: it may move."""
        return {"kind": "endpoint", "model": self.model, "root": self.root}

    def answers(
        self, questions: Sequence[Question], sampling: SamplingSettings
    ) -> Generator[tuple[int, Answer], None, None]:
        """The number of a question and its answer, as soon as it is there; `concurrency` of them
        are on their way at a time, the first ones first.

        Raises `UserError`, in one line, where the server cannot be reached, refuses, or does not do
        as it was asked. Nothing is on its way any more when this ends, however it does.
        """
        with asyncio.Runner() as runner:
            stream = self._answers(questions, sampling)

            async def following() -> tuple[int, Answer] | None:
                return await anext(stream, None)

            try:  # the runner cancels what is left, however this ends
                while (item := runner.run(following())) is not None:
                    yield item
            except Trouble as trouble:
                raise UserError(trouble.line()) from None

    async def _answers(
        self, questions: Sequence[Question], sampling: SamplingSettings
    ) -> AsyncIterator[tuple[int, Answer]]:
        waiting = iter(enumerate(questions))
        done: asyncio.Queue[tuple[int, Answer] | Exception] = asyncio.Queue()
        async with _client(self.concurrency) as client:

            async def work() -> None:
                try:
                    for number, question in waiting:
                        done.put_nowait((number, await self._answer(client, question, sampling)))
                except Exception as error:
                    done.put_nowait(error)

            count = min(self.concurrency, len(questions))
            workers = [asyncio.create_task(work()) for _ in range(count)]
            try:
                for _ in questions:
                    item = await done.get()
                    if isinstance(item, Exception):
                        raise item
                    yield item
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(
        self, client: httpx2.AsyncClient, question: Question, sampling: SamplingSettings
    ) -> Answer:
        path = "/chat/completions" if "messages" in question.fields else "/completions"
        asked = Asked(self.url, path, self.model, self.models, _key())
        attempt = 1
        while True:
            body = self._body(question, sampling)
            try:
                reply = await _reply(client, asked, self.timeout, body)
                return read_answer(reply, asked, sampling)
            except Trouble as trouble:
                if self._adapted(trouble, body):
                    continue
                if not trouble.again:
                    raise
                if attempt == self.patience.attempts:
                    raise UserError(trouble.line(attempt)) from None
                log.warning("%s; trying again", trouble.what)
                await asyncio.sleep(self.patience.seconds(attempt, trouble.wait))
                attempt += 1

    def _body(self, question: Question, sampling: SamplingSettings) -> dict[str, Any]:
        asked = UNASKED | alterations(sampling.model_dump())
        return {
            "model": self.model,
            **question.fields,
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._limit: sampling.max_tokens,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
            "seed": question.seed,
            "stream": False,
            **{name: value for name, value in asked.items() if name not in self.left},
        }

    def _adapted(self, trouble: Trouble, body: dict[str, Any]) -> bool:
        """Whether the server refused a field that can be written otherwise or left to it, and the
        next body does so; raises `Trouble` for one that the evaluation asks for."""
        if trouble.status not in (400, 422):
            return False
        if LIMIT in body and NEWER_LIMIT in trouble.words:
            self._limit = NEWER_LIMIT
            return True
        unknown = {name for name in UNASKED.keys() & body.keys() if name in trouble.words}
        if asked := [name for name in sorted(unknown) if body[name] != UNASKED[name]]:
            raise Trouble(
                f"{self.url} takes no {asked[0]}={body[asked[0]]:g}: {trouble.status}",
                f"leave eval.{asked[0]} out, or evaluate elsewhere",
                words=trouble.words,
            )
        if new := unknown - self.left:
            self.left |= new
            log.warning(
                "%s takes no %s: what it does about that is its own", self.url,
                ", ".join(sorted(new)),
            )  # fmt: skip
        return bool(unknown)


def connect(
    typed: str,
    model: str | None = None,
    *,
    concurrency: int = 32,
    timeout: float = 3600.0,
    patience: Patience = Patience(),
) -> Endpoint:
    """The model named at the server of that URL, or its only one.

    Raises `UserError`, in one line, where the server cannot be reached or refuses, and where it
    serves several and none is named.
    """
    url = base_url(typed)
    asked = Asked(url, "/models", model or "", (), _key())
    if asked.key and url.startswith("http://") and not _is_here(url):
        log.warning("the key of %s goes to %s unencrypted", KEY, asked.host)

    async def ask() -> dict[str, str | None]:
        async with _client(1) as client:
            return read_models(await _reply(client, asked, min(timeout, 60.0)), asked)

    try:
        served = asyncio.run(ask())
    except Trouble as trouble:
        raise UserError(trouble.line()) from None
    if model is None:
        if not served:
            raise UserError(
                f"{asked.host} does not say what it serves; name it, --served-model NAME"
            )
        if len(served) > 1:
            known = Asked(url, "/models", "", tuple(served), asked.key)
            raise UserError(f"{asked.host} has {len(served)} models; {serves(known)}")
        [model] = served
    return Endpoint(url, model, served.get(model), tuple(served), concurrency, timeout, patience)


def _key() -> str | None:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in {KEY} holds characters that no key has; set it again")
    return key or None


def _is_here(url: str) -> bool:
    host = httpx2.URL(url).host
    return host in ("localhost", "::1") or host.startswith("127.")


def _client(connections: int) -> httpx2.AsyncClient:
    """A client that follows no redirect: what it sends is for one host alone."""
    headers = {"Accept-Encoding": "identity"}  # so that a reply is as long as it is
    if key := _key():
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_keepalive_connections=connections),
        follow_redirects=False,
    )


async def _reply(
    client: httpx2.AsyncClient, asked: Asked, timeout: float, body: dict[str, Any] | None = None
) -> Reply:
    """The whole reply to a request, with a body where there is one to send; raises `Trouble` where
    none comes in time, or one of more than `MOST_BYTES`."""
    method, content = "GET" if body is None else "POST", bytearray()
    try:
        async with (
            asyncio.timeout(timeout),
            client.stream(method, asked.url + asked.path, json=body) as response,
        ):
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise Trouble(f"{asked.host} replies with more than {MOST_BYTES:,} bytes")
    except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise unreached(error, asked, timeout) from None
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, bytes(content))
