"""A bit that turns on the disk is found, whichever it is, and changes no number without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from castctl.data.prompts import prompt_id
from castctl.errors import UserError
from castctl.report.run_page import verification_page
from castctl.shards.part import METADATA_KEY, content_hash, read_metadata, read_part, write_part
from castctl.shards.schema import SCHEMAS
from castctl.stages.train.metrics import Metrics
from fuzz_parts import missed_flips, verified
from random_steps import write_step

FLIPS = 100
"""Of each file; `python tests/fuzz_parts.py --flips 700` turns more."""
FILES = ("prompts", "rollouts", "rewards", "signals", "advantages", "metrics", "dropped")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind, with metadata as stages write them, alone in a folder of its kind."""
    folder = tmp_path_factory.mktemp("whole")
    step = write_step(folder / "step-00003", np.random.default_rng(0), step=3, prompts=4, parts=1)
    made = {"seed": 1234, "temperature": 0.7, "model": "0123456789abcdef", "part": 0}
    prompts = [{"prompt_id": prompt_id(f"{n} + 1 = ?", str(n + 1)), "problem": f"{n} + 1 = ?",
                "answer": str(n + 1)} for n in range(8)]  # fmt: skip
    table = pa.Table.from_pylist(prompts, SCHEMAS["prompts"])
    write_part(step.part_path("prompts", 0), "prompts", table, {"settings": {"limit": 8}, **made})
    rollouts = step.read("rollouts", 0)
    write_part(rollouts.path, "rollouts", rollouts.table, {**(rollouts.metadata or {}), **made})
    for stage in SCHEMAS:
        path = folder / stage / "step-00003" / stage / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        shutil.copy(step.part_path(stage, 0), path)
    metrics = Metrics(folder / "metrics" / "metrics.parquet")
    for number in range(3):
        metrics.append({"step": number, "loss": 0.5 / (number + 1), "by": [0.25, float("nan")]})
    _write_dropped(folder / "dropped" / "dropped.parquet")
    return folder


def _write_dropped(path: Path) -> None:
    from castctl.data.prompts import DROPPED
    from castctl.shards.part import write_table

    write_table(path, "dropped", pa.Table.from_pylist([{"row": 4, "problem": "?", "reason": "too "
                "long"}], DROPPED), {})  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_verify_misses_no_flipped_bit(written: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(written / kind, tmp_path / kind))
    assert verified(folder).problems == [] and verified(folder).unsealed == []
    assert missed_flips(folder, FLIPS, FILES.index(kind)) == []


@pytest.mark.parametrize("place", [b'"seed": 1234', b"castctl.sha256", b"castctl", b"PAR1", b"zst"])
def test_a_flip_outside_the_values_is_refused_where_the_part_is_read(
    written: Path, tmp_path: Path, place: bytes
) -> None:
    """Those no checksum of a page covers."""
    part = tmp_path / "part"
    whole = (written / "rollouts/step-00003/rollouts/part-00000.parquet").read_bytes()
    found = whole.find(place)
    if found < 0:
        pytest.skip(f"no {place!r} in a file of this pyarrow")
    for at in range(found, found + len(place)):
        content = bytearray(whole)
        content[at] ^= 1
        part.write_bytes(content)
        with pytest.raises(UserError, match=r"cut short|damaged|metadata"):
            read_part(part, "rollouts")


def test_values_changed_by_another_program_are_told(written: Path, tmp_path: Path) -> None:
    """It keeps our metadata, and knows nothing of the seal."""
    folder = Path(shutil.copytree(written / "rewards", tmp_path / "rewards"))
    [file] = folder.rglob("*.parquet")
    table = pq.read_table(file)
    better = table.set_column(2, table.field("reward"), pa.array([1.0] * len(table), "float"))
    pq.write_table(better, file)
    with pytest.raises(UserError, match="changed by another program"):
        read_part(file, "rewards")
    only_ours = {METADATA_KEY: table.schema.metadata[METADATA_KEY]}
    pq.write_table(better.replace_schema_metadata(only_ours), file)
    with pytest.raises(UserError, match="changed by another program"):
        read_part(file, "rewards")
    assert len(verified(folder).problems) == 1
    pq.write_table(better.replace_schema_metadata(None), file)
    assert read_part(file, "rewards").metadata is None  # one made elsewhere, by its own account


def test_parts_of_an_older_castctl_are_read_and_said_to_carry_no_checksum(
    written: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written / "rollouts", tmp_path / "rollouts"))
    [file] = folder.rglob("*.parquet")
    before = read_part(file, "rollouts")
    said = read_metadata(file, "rollouts") or {}
    old = {key: value for key, value in said.items() if key != "content"}
    raw = {METADATA_KEY: json.dumps(old).encode()}
    pq.write_table(before.table.replace_schema_metadata(raw), file)
    assert content_hash(read_part(file, "rollouts").table) == content_hash(before.table)
    found = verified(folder)
    assert found.problems == [] and found.unsealed == [file] and found.foreign == []
    shown = "".join(str(each) for each in verification_page(found).renderables)
    assert "1 of an older castctl, which wrote no checksums" in shown


def test_a_prompt_that_is_not_its_ids_is_found_without_any_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000"
    rows = [{"prompt_id": prompt_id("1 + 1 = ?", "2"), "problem": "1 + 1 = ?", "answer": "3"}]
    table = pa.Table.from_pylist(rows, SCHEMAS["prompts"])
    write_part(folder / "prompts/part-00000.parquet", "prompts", table, {})
    [problem] = verified(folder).problems
    assert "1 prompts are not those of their prompt_id" in problem
