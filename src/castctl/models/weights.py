"""Where weights lie, and what tells them apart."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from castctl.files import regular
from castctl.models.loading import fingerprint

ADAPTER = "adapter"
"""The folder of an adapter in that of a checkpoint."""


@dataclass(frozen=True)
class Weights:
    """Where a policy's weights lie: the `model`'s folder, and that of an `adapter` to it."""

    model: Path
    adapter: Path | None = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that tell policies apart."""
        base = fingerprint(self.model)
        return base if self.adapter is None else _adapter_fingerprint(self.adapter, base)


def _adapter_fingerprint(folder: Path, model: str) -> str:
    """Sixteen hex digits that tell adapters to a model, whose own they are, apart."""
    digest = hashlib.sha256(model.encode())
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(regular(file).read_bytes())
    return digest.hexdigest()[:16]
