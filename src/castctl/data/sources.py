"""Where rows come from: a file, a data set on the hub, or an environment."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from castctl.data.files import SUFFIXES, Rows, read_file, split_name, table_rows
from castctl.data.remote import remote_files, remote_rows
from castctl.errors import UserError, one_line
from castctl.recipe.environment import is_environment
from castctl.recipe.recipe import DataSettings
from castctl.recipe.trust import require_trusted_data
from castctl.verify.environment import environment_version, load_tasks

HUB_TIMEOUT = 10.0
"""Seconds the hub has for its first answer."""

_OR_A_FILE = "or name a local file with --data FILE"


@dataclass(frozen=True)
class Source:
    """Rows and where they came from."""

    name: str
    """The file's name, the hub id or the environment's."""
    rows: Rows
    revision: str | None = None
    """Commit of a hub data set, version of an environment; None for a file."""
    notes: tuple[str, ...] = ()
    """What was read otherwise than asked."""
    whole: bool = False
    """Whether each row is a prompt as it stands: `problem`, `answer`, `solution`, `earlier`."""


def read_source(settings: DataSettings) -> Source:
    """Open the file, hub data set or environment that `settings.path` names (a benchmark's name:
    see `resolve`).

    Of a data set with a limit no more is fetched than is read, where the hub holds it as Parquet
    and the cache does not have it already.

    Raises UserError when there is nothing to read there, or not as asked.
    """
    if is_environment(settings.path):
        return _environment(settings)
    path = Path(settings.path).expanduser()
    if split_name(path)[1] in SUFFIXES or path.exists():
        return Source(path.name, read_file(path))
    return _read_hub(settings)


def _environment(settings: DataSettings) -> Source:
    require_trusted_data(settings)
    tasks = load_tasks(settings.path)
    rows = Rows(("problem", "answer", "solution", "earlier"), lambda columns: tasks.rows())
    return Source(settings.path, rows, environment_version(settings.path), whole=True)


def choose_split(name: str, wanted: str, available: Collection[str]) -> str:
    """The split to read: the one wanted, or else the only one there is.

    Raises UserError when that leaves a choice.
    """
    if wanted in available:
        return wanted
    if len(available) == 1:
        return next(iter(available))
    known = ", ".join(available)
    raise UserError(f"{name} has no split {wanted}; set data.split to one of: {known}")


def _read_hub(settings: DataSettings) -> Source:
    from datasets import DatasetDict, load_dataset_builder
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    name = settings.path
    commit = _hub_commit(settings)
    try:
        builder = load_dataset_builder(name, settings.config, revision=commit)
        files = remote_files(builder) if settings.limit is not None else {}
        if not files:
            builder.download_and_prepare()
            parts = builder.as_dataset()
    except (DatasetsError, HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"data set {name} cannot be loaded ({one_line(error)}); "
            f"check data.path and data.config, {_OR_A_FILE}"
        ) from error
    revision = builder.hash
    if commit is not None and revision != commit:
        raise UserError(
            f"data set {name}: the hub's cache holds revision {revision} only, not {commit}; "
            f"set data.revision to that one, {_OR_A_FILE}"
        )
    split = choose_split(name, settings.split, files or parts)
    notes = () if split == settings.split else (f"{name} has one split only: {split}",)
    if files:
        return Source(name, remote_rows(name, files[split]), revision, notes)
    assert isinstance(parts, DatasetDict)
    return Source(name, table_rows(parts[split].data.table), revision, notes)


def _hub_commit(settings: DataSettings) -> str | None:
    """The commit that `settings.revision` stands for; None when the hub's cache must decide.

    Asked before the data set is loaded, since loading retries for 23 s where there is no hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = settings.path
    try:
        info = HfApi().dataset_info(name, revision=settings.revision, timeout=HUB_TIMEOUT)
    except OfflineModeIsEnabled:
        return settings.revision
    except HFValidationError as error:
        raise UserError(
            f"{name} is neither a file nor a hub id; check the path of the data"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"data set {name} has no revision {settings.revision}; mend data.revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no file and no data set on the hub is called {name}; mend the name (a private or "
            f"gated data set needs `hf auth login`), {_OR_A_FILE}"
        ) from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"no file is called {name}, and the hub cannot be asked for it ({one_line(error)}); "
            f"set HF_HUB_OFFLINE=1 to use a cached copy, {_OR_A_FILE}"
        ) from error
    return info.sha
