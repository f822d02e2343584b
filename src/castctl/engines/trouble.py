"""What keeps a server's answer away, in a line for the user. A server's own words are untrusted."""

from __future__ import annotations

import email.utils
import json
import math
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx2

from castctl.errors import one_line

MODELS_TOLD = 8

NO_ROOM = ("context", "too long", "too large", "max_model_len")
"""Words of servers for a request that is longer than the model can be."""

CONNECT_SECONDS = 30.0
"""Longest wait for a connection."""


@dataclass(frozen=True)
class Reply:
    """The status, the headers by their small names, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Asked:
    """Who is asked for what, for the words: the server, the path, the model, all the models that it
    is known to serve, and whether it was sent a key."""

    url: str
    path: str
    model: str
    models: Sequence[str]
    key: str | None

    @property
    def host(self) -> str:
        return httpx2.URL(self.url).netloc.decode("ascii", "replace")

    @property
    def place(self) -> str:
        """The whole path, as the server is asked for it."""
        return f"{httpx2.URL(self.url).path}{self.path}"

    def words(self, text: str) -> str:
        """What a server said, in a line, without the key that it may repeat."""
        shown = text.replace(self.key, "***") if self.key else text
        return one_line(shown, 300) if shown.strip() else ""


class Trouble(Exception):
    """No answer. `what` is the matter, `words` are the server's own, `remedy` is what to do.

    `again` where another attempt may help, after `wait` seconds where the server names them.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        *,
        words: str = "",
        status: int = 0,
        again: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.remedy, self.words = what, remedy, words
        self.status, self.again, self.wait = status, again, wait

    def line(self, attempts: int = 1) -> str:
        """All of it, for the user."""
        quoted = f" ({self.words})" if self.words else ""
        often = f", {attempts} times" if attempts > 1 else ""
        return f"{self.what}{often}{quoted}{f'; {self.remedy}' if self.remedy else ''}"


def words_in(body: bytes) -> str:
    """What a server says is wrong, in the ways that servers have of saying it."""
    text = body[:20_000].decode(errors="replace")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return text
    said = value.get("error") or value if isinstance(value, dict) else value
    if isinstance(said, dict):
        said = said.get("message") or said.get("detail") or said
    try:
        return said if isinstance(said, str) else json.dumps(said)
    except RecursionError:
        return text


def refusal(reply: Reply, asked: Asked) -> Trouble:
    """What a reply of another status than 200 means."""
    status, host, said = reply.status, asked.host, asked.words(words_in(reply.body))
    no_room = any(word in said.lower() for word in NO_ROOM)
    wait = _retry_after(reply.headers.get("retry-after"))

    def trouble(what: str, remedy: str = "", again: bool = False) -> Trouble:
        return Trouble(f"{host} {what}: {status}", remedy, words=said, status=status, again=again,
                       wait=wait)  # fmt: skip

    if 300 <= status < 400:
        target = asked.words(reply.headers.get("location", "nowhere"))
        return trouble(f"redirects to {target}", "name that server with --endpoint")
    if status in (401, 403):
        if asked.key:
            return trouble("does not take the key in OPENAI_API_KEY", "put the right one there")
        return trouble("wants a key", "put it in OPENAI_API_KEY")
    if status == 404 and asked.models and asked.model not in asked.models:
        return trouble(f"has no model {asked.words(asked.model)}", serves(asked))
    if status == 404:
        return trouble(
            f"has no model {asked.words(asked.model) or 'at all'}, or nothing at {asked.place}",
            "look at --served-model, and name the URL up to its /v1",
        )
    if status == 429:
        spent = b"insufficient_quota" in reply.body  # OpenAI's word for a bill that is not paid
        return trouble("has too many requests", "lower --concurrency, or go on later", not spent)
    if status in (408, 409, 425) or status >= 500:
        return trouble("fails", "look at its log", again=True)
    if status in (400, 422) and "seed" in said.lower():
        return trouble(
            "takes no seed",
            "each sample has its own, and none is asked for without: evaluate elsewhere",
        )
    if status in (400, 413, 422) and no_room:
        return trouble(
            "has no room for a prompt and its completion",
            "lower --max-tokens, or serve a longer context",
        )
    return trouble("refuses what it is asked")


def serves(asked: Asked) -> str:
    """The names of the models, some of them where they are many."""
    told = ", ".join(asked.words(name) for name in asked.models[:MODELS_TOLD])
    more = len(asked.models) - MODELS_TOLD
    others = f" and {more} more" if more > 0 else ""
    return f"it serves {told}{others}: name one with --served-model"


def _retry_after(header: str | None) -> float | None:
    """Seconds from now, of a number or a date."""
    if header is None:
        return None
    try:
        seconds = float(header) if header.strip()[:1].isdigit() else _until(header)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def _until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def unreached(error: Exception, asked: Asked, seconds: float) -> Trouble:
    """What kept a request from a whole reply."""
    host, said = asked.host, asked.words(str(error)) or type(error).__name__
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Trouble(
            f"{host} cannot be reached by TLS",
            "write http:// where it speaks none, or let SSL_CERT_FILE name its certificate",
            words=said,
        )
    if isinstance(error, httpx2.ConnectTimeout):
        return Trouble(f"{host} gives no connection within {CONNECT_SECONDS:g} s",
                       "look at --endpoint", again=True)  # fmt: skip
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return Trouble(f"{host} does not answer within {seconds:g} s",
                       "raise --request-timeout, or lower --concurrency", again=True)  # fmt: skip
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return Trouble(f"{host} refuses the connection", "does the server run there?", again=True)
    if isinstance(error, httpx2.ConnectError):
        return Trouble(f"{host} cannot be reached", "look at --endpoint", words=said, again=True)
    return Trouble(f"{host} broke the connection off", "does it still run?", words=said, again=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
