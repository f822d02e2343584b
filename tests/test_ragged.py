"""Ragged rows against lists of lists."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castctl.ragged import means, offsets_of, row_of_value, spread, sums, take_rows

ROWS = st.lists(st.lists(st.floats(-1e3, 1e3), max_size=5), max_size=6)


@given(ROWS, st.data())
def test_ragged_rows(rows: list[list[float]], data: Any) -> None:
    flat = np.array([value for row in rows for value in row], float)
    offsets = offsets_of([len(row) for row in rows])
    assert offsets.dtype == np.int64
    assert [flat[a:b].tolist() for a, b in pairwise(offsets)] == rows
    owners = row_of_value(offsets)
    assert owners.tolist() == [number for number, row in enumerate(rows) for _ in row]
    assert spread(np.arange(len(rows)), offsets).tolist() == owners.tolist()
    np.testing.assert_allclose(sums(flat, owners, len(rows)), [sum(row) for row in rows], atol=1e-9)
    expected = [sum(row) / len(row) if row else 0 for row in rows]
    np.testing.assert_allclose(means(flat, owners, len(rows)), expected, atol=1e-9)
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))))) if rows else []
    some, bounds = take_rows(flat, offsets, np.array(chosen, np.int64))
    taken = [some[a:b].tolist() for a, b in pairwise(bounds)]
    assert taken == [rows[number] for number in chosen]


def test_sums_are_in_float64() -> None:
    flat = np.full(1 << 16, 0.1, np.float32)
    total = sums(flat, np.zeros(1 << 16, np.int64), 1)
    assert total.dtype == np.float64
    assert total[0] == pytest.approx(float(np.float32(0.1)) * (1 << 16), rel=1e-12)
