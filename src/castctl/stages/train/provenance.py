"""What a checkpoint says of its making."""

from __future__ import annotations

from pathlib import Path

from castctl.shards.part import Metadata, read_json

STATE_FILE = "castctl.json"


def provenance_of(checkpoint: Path) -> Metadata | None:
    """The update by hand that made a checkpoint, where it says so; the loop's say nothing."""
    file = checkpoint / STATE_FILE
    return read_json(file).get("provenance") if file.is_file() else None
