"""Parts on disk: whole or absent, refused when they break the contract, made once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castctl.errors import UserError
from castctl.ragged import offsets_of
from castctl.shards.columns import list_column, nullable_floats, ragged_column
from castctl.shards.part import (
    Part,
    atomic_file,
    content_hash,
    read_metadata,
    read_part,
    write_json,
    write_part,
    write_text,
)
from castctl.shards.schema import KEYS, SCHEMAS, TOKEN_SIGNALS, VERSION
from castctl.shards.stage import (
    Shard,
    StepFolder,
    agreed,
    check_aligned,
    mark_foreign,
    parse_shard,
)

Columns = dict[str, Any]


def rollouts(**changes: Any) -> pa.Table:
    """Three rows with every kind of absence: null, empty list, empty string."""
    columns: Columns = {
        "prompt_id": ["a", "a", "b"],
        "sample": [0, 1, 0],
        "problem": ["1+1", "1+1", "naïve [bold] \u2203x"],
        "answer": ["2", "2", None],
        "solution": [None, "", "because"],
        "prompt_token_ids": [[1, 2], [1, 2], [3]],
        "completion_token_ids": [[4, 5], [], [2**31 - 1]],
        "completion": ["two", "", "\\boxed{2}\n"],
        "sampler_logprobs": [[-0.5, float("nan")], [], None],
        "finish_reason": ["stop", "length", "stop"],
        "earlier": [[{"role": "system", "content": "naïve"}], [], None],
        "token_count": [None, 0, 2**31 - 1],
    }
    return pa.table({**columns, **changes})


def conforming(**changes: Any) -> pa.Table:
    return rollouts(**changes).cast(SCHEMAS["rollouts"])


def test_earlier_messages_count_in_a_hash_where_there_are_any() -> None:
    """Parts without that column keep the hashes that they were recorded by."""
    messages = [[{"role": "user", "content": "a"}], [{"role": "system", "content": "a"}], [], None]
    some = [conforming(earlier=[each, None, None]) for each in messages]
    assert len({content_hash(table) for table in some}) == len(messages)
    assert content_hash(some[-1]) == content_hash(without(some[-1], "earlier"))


def without(table: pa.Table, *names: str) -> pa.Table:
    return table.drop_columns(list(names))


def foreign(path: Path, table: pa.Table) -> Path:
    """A part made elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@contextlib.contextmanager
def refused(*mentions: str) -> Iterator[None]:
    """A user's mistake, told in one line that names these."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert all(mention in message for mention in mentions), message


def equal(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values, NaN being equal to itself."""
    return one.schema.equals(other.schema) and repr(one.to_pylist()) == repr(other.to_pylist())


# Writing and reading


def test_a_part_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "part.parquet"
    write_part(path, "rollouts", rollouts(), {"seed": 7, "nested": {"a": [1, None]}})
    part = read_part(path, "rollouts")
    assert equal(part.table, conforming())
    assert part.path == path
    wanted = {"schema": VERSION, "stage": "rollouts", "seed": 7, "nested": {"a": [1, None]},
              "content": content_hash(part.table)}  # fmt: skip
    assert part.metadata == read_metadata(path, "rollouts") == wanted
    assert [file.name for file in path.parent.iterdir()] == ["part.parquet"]


def empty_tables() -> list[tuple[str, pa.Table]]:
    return [(stage, schema.empty_table()) for stage, schema in SCHEMAS.items()]


@pytest.mark.parametrize("stage, table", empty_tables())
def test_a_part_without_rows_is_a_part(stage: str, table: pa.Table, tmp_path: Path) -> None:
    write_part(tmp_path / "part", stage, table, {})
    assert equal(read_part(tmp_path / "part", stage).table, table)


def test_every_stage_has_a_key_that_may_not_be_null() -> None:
    for stage, key in KEYS.items():
        assert SCHEMAS[stage].names[: len(key)] == key
        assert not any(SCHEMAS[stage].field(name).nullable for name in key)


def test_a_written_part_has_the_contracts_columns_alone(tmp_path: Path) -> None:
    table = rollouts().append_column("mine", pa.array([1, 2, 3]))
    shuffled = table.select(table.column_names[::-1])
    write_part(tmp_path / "part", "rollouts", shuffled, {})
    assert pq.read_schema(tmp_path / "part").names == SCHEMAS["rollouts"].names


def test_files_have_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    """A run on a shared disk is read by others too."""
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "hello")
    finally:
        os.umask(before)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "naïve ∃\n")
    assert (tmp_path / "text").read_bytes() == "naïve ∃\n".encode()
    write_json(tmp_path / "json", {"π": [1, None]})
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == {"π": [1, None]}
    assert "π" in (tmp_path / "json").read_text(encoding="utf-8")


def test_an_interrupted_write_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "file") as stream:
        stream.write(b"new")
        stream.flush()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_who_reads_the_old_file_reads_it_to_the_end(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old and long")
    with (tmp_path / "file").open() as reader:
        write_text(tmp_path / "file", "new")
        assert reader.read() == "old and long"
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    ids = [list(np.random.default_rng(0).integers(0, 2**31, 50_000))] * 3
    big = rollouts(prompt_token_ids=ids)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with refused(str(tmp_path / "part"), "cannot write"):
            write_part(tmp_path / "part", "rollouts", big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with refused("cannot write", str(tmp_path / "file" / "part")):
        write_part(tmp_path / "file" / "part", "rollouts", rollouts(), {})


ENDLESS_WRITER = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from castctl.shards.stage import StepFolder

folder = StepFolder(Path(sys.argv[1]))
flat = np.random.default_rng(0).integers(0, 2**31, 6_000_000).astype(np.int32)
ids = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), pa.array(flat))
table = pa.table({
    "prompt_id": ["new"], "sample": [0], "problem": [""], "answer": ["2"], "solution": [""],
    "prompt_token_ids": ids, "completion_token_ids": ids, "completion": [""],
    "sampler_logprobs": pa.nulls(1), "finish_reason": ["stop"], "earlier": pa.nulls(1),
})
print("ready", flush=True)
while True:
    folder.make("rollouts", 0, {}, {}, lambda: table, overwrite=True)
"""


def kill_while_it_writes(writer: subprocess.Popen[bytes], folder: Path) -> None:
    """Stop the process to look, and kill it once it has written a part in part."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and writer.poll() is None:
        if any(path.stat().st_size > 100_000 for path in folder.glob(".*.tmp")):
            writer.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            if any(folder.glob(".*.tmp")):
                writer.kill()
                return
            writer.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError("never caught the process in the middle of a part")


@pytest.mark.slow
@pytest.mark.parametrize("there_before", [False, True])
def test_a_killed_process_leaves_whole_parts_alone(tmp_path: Path, there_before: bool) -> None:
    folder = StepFolder(tmp_path)
    if there_before:
        folder.make("rollouts", 0, {}, {}, rollouts)
    writer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        kill_while_it_writes(writer, tmp_path / "rollouts")
    finally:
        writer.kill()
        writer.communicate()
    for part in folder.parts("rollouts"):
        table = folder.read("rollouts", part).table
        assert equal(table, conforming()) or table["prompt_id"].to_pylist() == ["new"]
    assert folder.parts("rollouts") in ([[0]] if there_before else [[], [0]])
    assert folder.make("rollouts", 0, {}, {}, rollouts, overwrite=True)
    assert equal(folder.table("rollouts"), conforming())


# Broken parts


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_part_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path, share: float) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if not whole.exists():
        write_part(whole, "rollouts", rollouts(), {})
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with refused(str(cut), "cut short"):
        read_part(cut, "rollouts")


def test_a_damaged_part_is_read_or_refused_and_crashes_nothing(tmp_path: Path) -> None:
    write_part(tmp_path / "whole", "rollouts", rollouts(), {"seed": 1})
    whole = (tmp_path / "whole").read_bytes()
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged"
    for _ in range(400):
        content = bytearray(whole)
        content[rng.integers(len(content))] = rng.integers(256)
        damaged.write_bytes(content)
        try:
            table = read_part(damaged, "rollouts").table
        except UserError as error:
            assert "\n" not in str(error) and str(damaged) in str(error)
            continue
        table.validate(full=True)
        content_hash(table)


def test_a_part_that_is_not_there_is_not_called_broken(tmp_path: Path) -> None:
    with refused("there is no part", str(tmp_path / "part")):
        read_part(tmp_path / "part", "rollouts")


def stamped(**metadata: Any) -> pa.Table:
    return conforming().replace_schema_metadata({b"castctl": json.dumps(metadata).encode()})


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", stamped(schema=VERSION + 1, stage="rollouts"))
    with refused(str(path), f"version {VERSION + 1}", f"reads {VERSION}"):
        read_part(path, "rollouts")


def test_a_part_of_another_stage_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", stamped(schema=VERSION, stage="rewards"))
    with refused(str(path), "rewards", "rollouts"):
        read_part(path, "rollouts")
    write_part(tmp_path / "other", "rollouts", rollouts(), {})
    with refused(str(tmp_path / "other")):
        read_part(tmp_path / "other", "signals")


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[1]", b"null", b"3"])
def test_metadata_that_is_no_object_is_refused(text: bytes, tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", conforming().replace_schema_metadata({b"castctl": text}))
    with refused(str(path), "metadata"):
        read_part(path, "rollouts")


def test_a_key_that_repeats_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", rollouts(sample=[0, 0, 0]))
    with refused(str(path), "prompt_id and sample"):
        read_part(path, "rollouts")
    prompts = pa.table({"prompt_id": ["a", "a"], "problem": ["x", "y"]})
    with refused("prompt_id"):
        read_part(foreign(tmp_path / "prompts", prompts), "prompts")


REQUIRED = [field.name for field in SCHEMAS["rollouts"] if not field.nullable]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_column_is_missed_by_name(name: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", without(rollouts(), name))
    with refused(str(path), name):
        read_part(path, "rollouts")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_column_may_not_be_null(name: str, tmp_path: Path) -> None:
    column = rollouts()[name].to_pylist()
    path = foreign(tmp_path / "part", rollouts(**{name: [column[0], None, column[2]]}))
    with refused(str(path), name, "1 null"):
        read_part(path, "rollouts")


@pytest.mark.parametrize("name", ["prompt_token_ids", "completion_token_ids"])
def test_a_token_may_not_be_null(name: str, tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", rollouts(**{name: [[1], [2, None, 3], [4]]}))
    with refused(str(path), name):
        read_part(path, "rollouts")


@pytest.mark.parametrize(
    "name, values",
    [
        ("sample", [0, 1, 2**40]),
        ("sample", [0.0, 0.5, 1.0]),
        ("completion_token_ids", [[1], [2**33], [3]]),
        ("completion_token_ids", [1, 2, 3]),
        ("problem", [["x"], ["y"], ["z"]]),
        ("sampler_logprobs", [["x"], None, None]),
    ],
)
def test_a_type_that_does_not_fit_is_refused(name: str, values: list, tmp_path: Path) -> None:
    path = foreign(tmp_path / "part", rollouts(**{name: values}))
    with refused(str(path), name, str(SCHEMAS["rollouts"].field(name).type)):
        read_part(path, "rollouts")


# Parts made elsewhere


def test_wider_types_are_cast(tmp_path: Path) -> None:
    wide = rollouts(
        prompt_id=pa.array(["a", "a", "b"], pa.large_string()),
        sample=pa.array([0, 1, 0], pa.int64()),
        completion=pa.array(["two", "", "\\boxed{2}\n"]).dictionary_encode(),
        prompt_token_ids=pa.array([[1, 2], [1, 2], [3]], pa.list_(pa.int64())),
        completion_token_ids=pa.array([[4, 5], [], [2**31 - 1]], pa.large_list(pa.uint32())),
        sampler_logprobs=pa.array([[-0.5, float("nan")], [], None], pa.list_(pa.float64())),
    )
    part = read_part(foreign(tmp_path / "part", wide), "rollouts")
    assert equal(part.table, conforming())
    assert part.metadata is None


def test_nullable_columns_may_be_missing_and_unknown_ones_are_ignored(tmp_path: Path) -> None:
    nullable = [field.name for field in SCHEMAS["rollouts"] if field.nullable]
    bare = without(rollouts(), *nullable).append_column("mine", pa.array([1, 2, 3]))
    shuffled = bare.select(bare.column_names[::-1])
    table = read_part(foreign(tmp_path / "part", shuffled), "rollouts").table
    assert table.schema.equals(SCHEMAS["rollouts"])
    for name in nullable:
        assert table[name].null_count == 3
    assert table["prompt_token_ids"].to_pylist() == [[1, 2], [1, 2], [3]]


def test_inputs_made_elsewhere_are_named_and_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = read_part(foreign(tmp_path / "part", rollouts()), "rollouts")
    write_part(tmp_path / "own", "rollouts", rollouts(), {})
    ours = read_part(tmp_path / "own", "rollouts")
    with caplog.at_level(logging.WARNING):
        assert mark_foreign({"rollouts": theirs, "rewards": ours}) == {"foreign": ["rollouts"]}
        assert len(caplog.records) == 1
        assert mark_foreign({"rollouts": ours}) == {}
        assert len(caplog.records) == 1


# Content hashes


def reward_rows(**changes: Any) -> pa.Table:
    columns: Columns = {
        "prompt_id": ["a", "a", "b"],
        "sample": [0, 1, 0],
        "reward": [1.0, 0.0, None],
        "verdict": ["correct", "wrong", "error"],
        "extracted": ["2", "", None],
        "answer_start": [0, 0, None],
        "answer_end": [1, 0, None],
        "seconds": [0.1, 0.2, 0.3],
    }
    return pa.table({**columns, **changes}).cast(SCHEMAS["rewards"])


def test_a_hash_does_not_know_how_the_rows_are_stored(tmp_path: Path) -> None:
    for stage, table in (("rollouts", conforming()), ("rewards", reward_rows())):
        expected = content_hash(table)
        assert len(expected) == 16 and int(expected, 16) >= 0
        pieces = [table.slice(i, 1) for i in range(3)]
        assert content_hash(pa.concat_tables(pieces)) == expected
        assert content_hash(pa.concat_tables([table[:0], *pieces, table[:0]])) == expected
        embedded = pa.concat_tables([table, table, table]).combine_chunks().slice(3, 3)
        assert content_hash(embedded) == expected
        assert content_hash(table.replace_schema_metadata({b"x": b"y"})) == expected
        write_part(tmp_path / stage, stage, table, {"any": "thing"})
        assert content_hash(read_part(tmp_path / stage, stage).table) == expected
        assert content_hash(read_part(tmp_path / stage, stage).table.slice(1)) == content_hash(
            table.slice(1)
        )


def test_a_hash_does_not_know_seconds() -> None:
    table = reward_rows()
    assert content_hash(reward_rows(seconds=[9, 9, 9])) == content_hash(table)
    assert content_hash(reward_rows(reward=[1.0, 0.0, 0.0])) != content_hash(table)


ABSENCES: list[Columns] = [
    {"solution": [None, None, None]},
    {"solution": ["", "", ""]},
    {"solution": ["", None, ""]},
    {"solution": [None, "", ""]},
    {"solution": ["a", "", None]},
    {"solution": ["", "a", None]},
    {"solution": [None, "a", ""]},
    {"sampler_logprobs": [None, [], []]},
    {"sampler_logprobs": [[], None, []]},
    {"sampler_logprobs": [None, None, None]},
    {"sampler_logprobs": [[], [], []]},
    {"sampler_logprobs": [[1], [], []]},
    {"sampler_logprobs": [[], [1], []]},
    {"sampler_logprobs": [[0], [], []]},
    {"sampler_logprobs": [[None], [], []]},
    {"sampler_logprobs": [[float("nan")], [], []]},
    {"sampler_logprobs": [[0, None], [], []]},
    {"sampler_logprobs": [[None, 0], [], []]},
    {"completion": ["ab", "c", ""]},
    {"completion": ["a", "bc", ""]},
    {"completion": ["abc", "", ""]},
    {"answer": ["x", "y", "z"], "solution": [None, None, None]},
    {"solution": ["x", "y", "z"], "answer": [None, None, None]},
    {"completion_token_ids": [[1, 2], [3], []]},
    {"completion_token_ids": [[1], [2, 3], []]},
    {"prompt_token_ids": [[1, 2], [3], []]},
    {"prompt_id": ["a", "b", "c"]},
    {"prompt_id": ["c", "b", "a"]},
    {"sample": [1, 0, 0]},
    {"finish_reason": ["stop", "stop", "stop"]},
]


def test_every_value_and_every_kind_of_absence_changes_the_hash() -> None:
    tables = [conforming(), *(conforming(**changes) for changes in ABSENCES)]
    tables += [conforming().slice(0, 2), conforming().slice(0, 0)]
    assert len({repr(table.to_pylist()) for table in tables}) == len(tables)
    assert len({content_hash(table) for table in tables}) == len(tables)


values = st.fixed_dictionaries(
    {
        "text": st.none() | st.sampled_from(["", "a", "b", "ab"]),
        "numbers": st.none() | st.lists(st.none() | st.sampled_from([0.0, 1.0]), max_size=2),
        "count": st.none() | st.integers(0, 1),
        "flags": st.none() | st.lists(st.booleans(), max_size=2),
    }
)
schema = pa.schema(
    [
        ("text", pa.string()),
        ("numbers", pa.list_(pa.float32())),
        ("count", pa.int32()),
        ("flags", pa.list_(pa.bool_())),
    ]
)


@given(st.lists(values, max_size=3), st.lists(values, max_size=3), st.integers(0, 3))
@settings(max_examples=300)
def test_hashes_are_equal_where_tables_are(one: list, other: list, cut: int) -> None:
    first = pa.Table.from_pylist(one, schema)
    second = pa.Table.from_pylist(other, schema)
    assert (content_hash(first) == content_hash(second)) == (one == other)
    split = pa.concat_tables([first.slice(0, cut), first.slice(cut)])
    assert content_hash(split) == content_hash(first)


def test_rows_of_nulls_count() -> None:
    one = pa.table({"reward": pa.array([1.0], pa.float32())})
    two = pa.table({"reward": pa.array([1.0, None], pa.float32())})
    assert content_hash(one) != content_hash(two)


# Rows that belong together


def part_of(table: pa.Table, path: str = "part", inputs: Any = None) -> Part:
    return Part(Path(path), table, None if inputs is None else {"inputs": inputs})


def test_aligned_parts_pass() -> None:
    base = part_of(conforming(), "base")
    rewards = reward_rows()
    digest = content_hash(base.table)
    check_aligned(base, [], "rollouts")
    check_aligned(base, [("rewards", part_of(rewards))], "rollouts")
    check_aligned(base, [("rewards", part_of(rewards, inputs={}))], "rollouts")
    check_aligned(base, [("rewards", part_of(rewards, inputs={"signals": "x"}))], "rollouts")
    check_aligned(base, [("rewards", part_of(rewards, inputs={"rollouts": digest}))], "rollouts")


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(0, 2),
        lambda table: table.slice(0, 0),
        lambda table: table.take([1, 0, 2]),
        lambda table: pa.concat_tables([table, table.slice(2)]),
        lambda table: table.set_column(1, table.field("sample"), [pa.array([0, 2, 0], pa.int32())]),
        lambda table: table.set_column(0, table.field("prompt_id"), [pa.array(["a", "a", "c"])]),
    ],
    ids=["fewer", "none", "order", "more", "sample", "prompt"],
)
def test_other_rows_are_refused(change: Callable[[pa.Table], pa.Table]) -> None:
    base = part_of(conforming(), "base")
    good = part_of(reward_rows(), "good")
    bad = part_of(change(reward_rows()), "bad")
    with refused("bad", "base", "make signals again"):
        check_aligned(base, [("rewards", good), ("signals", bad)], "rollouts")


def test_parts_made_from_other_data_are_refused() -> None:
    base = part_of(conforming(), "base")
    old = content_hash(conforming(completion=["another", "", ""]))
    with refused("bad", "base", "rewards again"):
        check_aligned(
            base, [("rewards", part_of(reward_rows(), "bad", {"rollouts": old}))], "rollouts"
        )


def test_alignment_holds_across_chunks() -> None:
    pieces = pa.concat_tables([reward_rows().slice(0, 1), reward_rows().slice(1)])
    check_aligned(part_of(conforming()), [("rewards", part_of(pieces))], "rollouts")


# Making parts


@pytest.fixture
def folder(tmp_path: Path) -> StepFolder:
    return StepFolder(tmp_path / "step-00003", 3, 10)


SETTINGS: Columns = {
    "temperature": 1.0,
    "verifier": {"timeout": 5.0, "function": None, "box_within_last": None},
}


def make(folder: StepFolder, calls: list[int], overwrite: bool = False, **changes: Any) -> bool:
    def work() -> pa.Table:
        calls.append(1)
        return reward_rows()

    inputs = {"rollouts": changes.pop("rollouts", conforming())}
    provenance = {**SETTINGS, **changes}
    return folder.make("rewards", 0, inputs, provenance, work, overwrite)


def test_a_part_is_made_once_and_says_how(folder: StepFolder) -> None:
    calls: list[int] = []
    assert make(folder, calls)
    assert not make(folder, calls)
    assert calls == [1]
    assert folder.parts("rewards") == [0] and folder.has("rewards", 0)
    part = folder.read("rewards", 0)
    assert part.metadata == {
        "content": content_hash(part.table),
        "schema": VERSION,
        "stage": "rewards",
        "step": 3,
        "total_steps": 10,
        "part": 0,
        "inputs": {"rollouts": content_hash(conforming())},
        **SETTINGS,
    }


@pytest.mark.parametrize(
    "changes, mentions",
    [
        ({"temperature": 0.5}, ["temperature", "1.0", "0.5"]),
        (
            {"verifier": {"timeout": 7.0, "function": None, "box_within_last": None}},
            ["verifier.timeout", "5.0", "7.0"],
        ),
        (
            {"verifier": {"timeout": 5.0, "function": "f", "box_within_last": None}},
            ["verifier.function", "None", "'f'"],
        ),
        ({"verifier": {"timeout": 5.0, "box_within_last": None}}, ["verifier.function"]),
        ({"seed": 3}, ["seed", "None", "3"]),
        ({"rollouts": conforming(sample=[0, 2, 0])}, ["inputs.rollouts"]),
    ],
    ids=["number", "nested", "null", "missing", "new", "input"],
)
def test_a_part_made_otherwise_is_refused_with_the_setting(
    folder: StepFolder, changes: Columns, mentions: list[str]
) -> None:
    calls: list[int] = []
    make(folder, calls)
    with refused(str(folder.part_path("rewards", 0)), "--overwrite", *mentions):
        make(folder, calls, **dict(changes))
    assert calls == [1]
    assert make(folder, calls, overwrite=True, **dict(changes))
    assert calls == [1, 1]
    assert not make(folder, calls, **dict(changes))


def test_a_part_of_another_step_is_refused(folder: StepFolder) -> None:
    make(folder, [])
    with refused("another step (3, now 4)"):
        make(StepFolder(folder.path, 4, 10), [])


def test_a_part_made_elsewhere_is_kept(
    folder: StepFolder, caplog: pytest.LogCaptureFixture
) -> None:
    foreign(folder.part_path("rewards", 0), reward_rows(extracted=["mine", None, None]))
    calls: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert not make(folder, calls)
    assert calls == [] and "made elsewhere" in caplog.text
    assert folder.read("rewards", 0).table["extracted"].to_pylist()[0] == "mine"
    assert make(folder, calls, overwrite=True)


def test_a_broken_part_is_not_taken_for_a_made_one(folder: StepFolder) -> None:
    make(folder, [])
    path = folder.part_path("rewards", 0)
    path.write_bytes(path.read_bytes()[:-10])
    calls: list[int] = []
    with refused(str(path)):
        make(folder, calls)
    assert make(folder, calls, overwrite=True)
    assert equal(folder.read("rewards", 0).table, reward_rows())


def test_work_that_fails_leaves_what_was_there(folder: StepFolder) -> None:
    make(folder, [])
    before = folder.part_path("rewards", 0).read_bytes()

    def fail() -> pa.Table:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        folder.make("rewards", 0, {}, {}, fail, overwrite=True)
    assert folder.part_path("rewards", 0).read_bytes() == before
    with pytest.raises(ZeroDivisionError):
        folder.make("rewards", 1, {}, {}, fail)
    assert folder.parts("rewards") == [0]


def test_parts_are_numbered_files_alone(folder: StepFolder) -> None:
    assert folder.parts("rewards") == [] and not folder.has("rewards", 0)
    for number in (12, 0, 100_000):
        folder.make("rewards", number, {}, {}, reward_rows)
    for name in (".part-00001.parquet.x.tmp", "part-00002.parquet.bak", "part-x.parquet", "notes"):
        (folder.path / "rewards" / name).write_text("")
    assert folder.parts("rewards") == [0, 12, 100_000]
    assert folder.require_parts("rewards", "never mind") == [0, 12, 100_000]
    assert folder.table("rewards").num_rows == 9
    with refused(str(folder.path), "signals", "run this first"):
        folder.require_parts("signals", "run this first")


def test_what_parts_agree_on() -> None:
    metadata = [None, {"a": None}, {"a": 0.5}, {"a": 2.0}]
    assert agreed(metadata, "a", 7) == 0.5
    assert agreed(metadata, "b", 7) == 7
    assert agreed([], "a", 7) == 7


# Shards


@pytest.mark.parametrize(
    "text, environment, expected",
    [
        (None, {}, Shard(0, 1)),
        ("0/1", {}, Shard(0, 1)),
        ("3/4", {"RANK": "0", "WORLD_SIZE": "1"}, Shard(3, 4)),
        ("3/4", {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Shard(3, 4)),
        (None, {"RANK": "1", "WORLD_SIZE": "2"}, Shard(1, 2)),
        (None, {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6"}, Shard(5, 6)),
        (None, {"SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, Shard(0, 1)),
        (
            None,
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "RANK": "1", "WORLD_SIZE": "2"},
            Shard(1, 2),
        ),
        (None, {"RANK": "1", "SLURM_NTASKS": "6"}, Shard(0, 1)),
        (None, {"WORLD_SIZE": "4"}, Shard(0, 1)),
    ],
)
def test_a_shard_is_asked_for_or_the_launchers(
    text: str | None, environment: dict[str, str], expected: Shard
) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize(
    "text", ["4/4", "5/4", "0/0", "-1/4", "1", "1/", "a/b", "1/2/3", "", "½/2"]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with refused("--shard", "0/4"):
        parse_shard(text, {"RANK": "0", "WORLD_SIZE": "1"})


def test_torchrun_and_a_shard_together_are_refused() -> None:
    with refused("--shard 0/4", "leave --shard out"):
        parse_shard("0/4", {"RANK": "0", "WORLD_SIZE": "2"})


def test_a_launchers_nonsense_is_refused() -> None:
    with refused("WORLD_SIZE=2 name no rank"):
        parse_shard(None, {"RANK": "2", "WORLD_SIZE": "2"})


@given(st.integers(1, 9), st.integers(0, 1000))
def test_every_part_has_one_owner(count: int, part: int) -> None:
    assert sum(Shard(index, count).owns(part) for index in range(count)) == 1
    assert Shard().owns(part)


# Columns and flat arrays

ragged_rows = st.lists(
    st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=4), max_size=6
)


def flat_of(rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    present = [row or [] for row in rows]
    flat = np.array([value for row in present for value in row], np.float32)
    return flat, offsets_of([len(row) for row in present])


@given(ragged_rows, st.integers(0, 3))
def test_list_columns_come_back(rows: list[Any], cut: int) -> None:
    flat, offsets = flat_of(rows)
    absent = np.array([row is None for row in rows], np.bool_)
    column = list_column(flat, offsets, pa.float32(), absent)
    assert column.type == pa.list_(pa.float32())
    assert column.to_pylist() == rows
    chunked = pa.chunked_array([column.slice(0, cut), column.slice(cut)])
    table = pa.table({"x": chunked})
    found = nullable_floats(table, "x", offsets)
    if rows and absent.all():
        assert found is None
    else:
        assert found is not None and found.dtype == np.float64
        np.testing.assert_array_equal(found, flat)

    whole = pa.table({"x": list_column(flat, offsets, pa.float32())}).slice(min(cut, len(rows)))
    values, starts = ragged_column(whole, "x")
    expected, expected_starts = flat_of(rows[cut:])
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(starts, expected_starts)


def test_a_null_row_is_nan_as_long_as_its_completion() -> None:
    rows = [[1.0, float("nan")], None, [], None, [4.0]]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32()))})
    found = nullable_floats(table, "x", offsets_of([2, 3, 0, 0, 1]))
    expected = [1, np.nan, np.nan, np.nan, np.nan, 4]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("lengths", [[1, 3, 0, 1], [2, 3, 0, 2], [2, 3, 1, 1]])
def test_a_row_of_another_length_is_refused(lengths: list[int]) -> None:
    rows = [[1.0, 2.0], None, [], [4.0]]
    table = pa.table({"weights": pa.array(rows, pa.list_(pa.float32()))})
    with pytest.raises(ValueError, match="weights"):
        nullable_floats(table, "weights", offsets_of(lengths))


def test_a_column_of_nulls_is_none_and_no_rows_are_no_values() -> None:
    kind = pa.list_(pa.float32())
    nulls = pa.table({"x": pa.nulls(3, kind)})
    assert nullable_floats(nulls, "x", offsets_of([1, 0, 2])) is None
    nothing = nullable_floats(nulls.slice(0, 0), "x", offsets_of([]))
    assert nothing is not None and len(nothing) == 0
    flat, offsets = ragged_column(nulls.slice(0, 0), "x")
    assert len(flat) == 0 and offsets.tolist() == [0]
    made = list_column(None, offsets_of([1, 0, 2]), pa.float32())
    assert made.type == kind and made.null_count == 3


@pytest.mark.parametrize("kind", [pa.int32(), pa.bool_(), pa.float32()])
def test_flat_values_keep_their_kind(kind: pa.DataType) -> None:
    rows = [[1, 0], [], [1]]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.int32())).cast(pa.list_(kind))})
    flat, offsets = ragged_column(table, "x")
    assert flat.dtype == kind.to_pandas_dtype()
    assert flat.tolist() == [1, 0, 1] and offsets.tolist() == [0, 2, 2, 3]
    assert list_column(flat, offsets, kind).equals(table["x"].combine_chunks())


def test_an_absent_row_keeps_no_hidden_values(tmp_path: Path) -> None:
    """Values behind a null must not tell two equal columns apart."""
    offsets = offsets_of([2, 1])
    absent = np.array([True, False])
    hidden = list_column(np.array([1.0, 2.0, 3.0]), offsets, pa.float32(), absent)
    plain = pa.array([None, [3.0]], pa.list_(pa.float32()))
    columns = {"prompt_id": ["a", "b"], "sample": [0, 0]}
    rest = {name: pa.nulls(2) for name in SCHEMAS["signals"].names if name not in columns}
    name = TOKEN_SIGNALS[1]
    tables = [
        pa.table({**columns, **rest, name: column}).select(SCHEMAS["signals"].names)
        for column in (hidden, plain)
    ]
    one, other = (content_hash(table.cast(SCHEMAS["signals"])) for table in tables)
    assert one == other
    write_part(tmp_path / "part", "signals", tables[0], {})
    assert content_hash(read_part(tmp_path / "part", "signals").table) == one
