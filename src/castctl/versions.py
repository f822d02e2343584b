"""castctl's version, and those of the libraries that its numbers may hang on."""

from __future__ import annotations

import importlib.metadata

VERSION = "0.1.0"

LIBRARIES = (
    "torch", "transformers", "tokenizers", "accelerate", "datasets", "math-verify", "sympy",
    "pyarrow", "numpy",
)  # fmt: skip


def library_versions() -> dict[str, str | None]:
    """The version of castctl and of each library; None where one is missing."""
    return {"castctl": VERSION, **{name: _version(name) for name in LIBRARIES}}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
