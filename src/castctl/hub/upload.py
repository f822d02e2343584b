"""To the hub, by the hub's own client, with every refusal in one line."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from castctl.errors import UserError, one_line
from castctl.hub.card import TAG
from castctl.models.loading import MODEL_FILES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]

BARE = {".gitattributes", "README.md", "LICENSE"}
"""What a repository holds that was made by hand and has nothing in it yet."""

REPLACED = {"model": MODEL_FILES, "dataset": ("data/*.parquet",)}
"""Files of an earlier push that go where a later one has them no more: what loads a model takes
every shard and every adapter that it finds."""


@dataclass(frozen=True)
class Pushed:
    url: str
    commit: str
    """Its URL."""
    what: str
    """What was pushed, in words."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that may be pushed to; `files` are there already."""

    api: HfApi
    name: str
    kind: Kind
    files: frozenset[str] = frozenset()


def find_repository(
    name: str, kind: Kind, *, private: bool = False, overwrite: bool = False
) -> Repository:
    """The repository of that name, there or not yet, before anything is made for it.

    Raises `UserError` without a token, for a name that is none, for one that holds what castctl did
    not push, unless `overwrite` is set, and for a public one where it is to be `private`.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    require_name(name)
    api = HfApi(library_name="castctl")
    if get_token() is None:
        raise UserError(
            f"there is no token to push to {api.endpoint} with; run `hf auth login`, or put one "
            "that may write into HF_TOKEN"
        )
    with _refusals(api, name):
        try:
            info: Any = api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            return Repository(api, name, kind)
    files = frozenset(each.rfilename for each in info.siblings or ())
    tags = getattr(info.card_data, "tags", None) or []
    if files - BARE and TAG not in tags and not overwrite:
        raise UserError(
            f"{name} holds files that castctl did not push; name another repository, or add "
            "--overwrite to put this beside and over them, in a commit of its own"
        )
    if private and info.private is False:
        raise UserError(
            f"{name} is there and is public; make it private in its settings on the hub, or name "
            "another"
        )
    return Repository(api, name, kind, files)


def require_name(name: str) -> None:
    """Raise `UserError` for what is no `owner/name` of the hub's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name} is no name of a repository: {one_line(error, 160)}") from None
    if name.count("/") != 1:
        raise UserError(f"{name} has no owner; write owner/name, the owner being you or an "
                        "organisation")  # fmt: skip


def upload(
    to: Repository, folder: Path, message: str, *, private: bool = False, quiet: bool = False
) -> Pushed:
    """Push a folder, making the repository where it is not there; raises `UserError` with what the
    hub said where it refuses."""
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    gone = [name for name in to.files - sent if _replaced(name, to.kind)]
    with _refusals(to.api, to.name):
        url = to.api.create_repo(to.name, repo_type=to.kind, private=private or None, exist_ok=True)
        done = to.api.upload_folder(
            repo_id=to.name,
            repo_type=to.kind,
            folder_path=folder,
            commit_message=message,
            delete_patterns=[glob.escape(name) for name in sorted(gone)] or None,
        )
    return Pushed(str(url), str(done.commit_url), message)


def _replaced(name: str, kind: Kind) -> bool:
    """Whether a file in the repository is of an earlier push."""
    return any(
        fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in REPLACED[kind]
    )


SAID = {
    401: "the hub does not know this token; run `hf auth login` again, or renew HF_TOKEN",
    403: "this token may not write there; take one that may, or another owner",
    404: "there is no such owner, or this token may not see it",
    409: "another push or an older repository is in the way; try again, or name another",
    413: "the hub takes no such large push",
    429: "the hub asks to wait; try again later",
}
"""What to do about an answer of the hub's."""


@contextlib.contextmanager
def _refusals(api: HfApi, name: str) -> Iterator[None]:
    """Tell what the hub, its client or the network refuse as a `UserError`."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing is pushed; unset it") from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        advice = SAID.get(code, "try again later" if code >= 500 else "see what it says")
        told = one_line(error.server_message or error, 200)
        raise UserError(f"{api.endpoint} refused {name} ({code}: {told}); {advice}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot push {name} to {api.endpoint}: {one_line(error, named=True)}"
                        ) from None  # fmt: skip
    except Exception as error:  # of the client's transport, whose kinds change with its versions
        if not type(error).__module__.startswith("http"):
            raise
        raise UserError(
            f"cannot reach {api.endpoint} ({one_line(error, 160, named=True)}); check the network"
        ) from None
