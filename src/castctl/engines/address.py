"""Where a server is: its URL as people type it, and as it is asked."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import httpx2

from castctl.errors import UserError, one_line

_VERSION = re.compile(r"/v\d+[a-z]*\d*(/|$)")
"""`/v1`, Google's `/v1beta`, and others' `/v4`."""

_ENDS = ("/chat/completions", "/completions", "/models")


def base_url(typed: str) -> str:
    """The URL that paths such as `/chat/completions` follow: as typed, with `/v1` where it names no
    version. Raises `UserError` for what is no such URL, without showing a password in it."""
    try:
        parts = urlsplit(typed.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--endpoint is no URL ({one_line(error, 80)}); {_EXAMPLE}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "leave user and password out of --endpoint: a command line is no place for secrets. A "
            "key goes into OPENAI_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host or not _one_word(typed):
        raise UserError(f"--endpoint {one_line(typed, 80)} is no URL of a server; {_EXAMPLE}")
    if parts.query or parts.fragment:
        raise UserError(
            f"leave what follows the ? or # out of --endpoint (at {host}); a key goes into "
            "OPENAI_API_KEY"
        )
    path = parts.path.rstrip("/")
    for end in _ENDS:
        path = path.removesuffix(end)
    if not _VERSION.search(path):
        path += "/v1"
    place = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{place}{f':{port}' if port is not None else ''}{path}"
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(f"--endpoint is no URL ({one_line(error, 80)}); {_EXAMPLE}") from None
    return url


_EXAMPLE = "write it as http://127.0.0.1:8000"


def _one_word(typed: str) -> bool:
    return typed.isprintable() and len(typed.split()) == 1
