"""Ranks, correlations and concentration within completions, all completions at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from castctl.ragged import offsets_of, row_of_value, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The places of values (V) sorted by row and then by value, equal ones as they stood; the row
    of each and its number within the row, from 0; and how many values each row (R) has."""

    places_V: Ints
    row_V: Ints
    ordinal_V: Ints
    count_R: Ints

    @property
    def rows(self) -> int:
        return len(self.count_R)


def order_within(values_V: Floats, row_V: Ints, rows: int) -> Order:
    """Sort values within their rows."""
    places = np.argsort(row_V, kind="stable")
    count = np.bincount(row_V, minlength=rows)
    offsets = offsets_of(count)
    values = values_V[places]
    for start, end in pairwise(offsets.tolist()):  # many short sorts are faster than one long one
        places[start:end] = places[start:end][np.argsort(values[start:end], kind="stable")]
    row = row_of_value(offsets)
    ordinal = np.arange(len(row)) - offsets[row]
    return Order(places, row, ordinal, count)


def ranks_within(values_V: Floats, order: Order) -> Floats:
    """Rank of each value within its row (V), from 1; equal values share the mean of theirs."""
    value = values_V[order.places_V]
    new = (np.diff(value, prepend=np.nan) != 0) | (order.ordinal_V == 0)
    begins = np.flatnonzero(new)
    sizes = np.diff(begins, append=len(value))
    ranks = np.empty(len(value))
    ranks[order.places_V] = np.repeat(order.ordinal_V[begins] + (sizes + 1) / 2, sizes)
    return ranks


def spearman_within(
    first_V: Floats, second_V: Floats, row_V: Ints, first: Order, second: Order
) -> Floats:
    """Spearman's rank correlation of two values within each row (R), ties sharing their mean rank;
    NaN with fewer than two values, or where one of the two does not vary."""
    middle_V = ((first.count_R + 1) / 2)[row_V]
    one, two = ranks_within(first_V, first) - middle_V, ranks_within(second_V, second) - middle_V
    product, squares, others = (
        sums(each, row_V, first.rows) for each in (one * two, one**2, two**2)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return product / np.sqrt(squares * others)


def largest_within(order: Order, share: float) -> NDArray[np.bool_]:
    """Which values (V) are among the largest `share` of their row, rounded up to a whole number;
    of equal ones those that stand last."""
    chosen = np.ceil(share * order.count_R - 1e-9).astype(np.int64)
    found = np.zeros(len(order.places_V), np.bool_)
    found[order.places_V] = order.ordinal_V >= (order.count_R - chosen)[order.row_V]
    return found


def gini_within(values_V: Floats, order: Order) -> Floats:
    """Gini coefficient of values (not negative) within each row (R), in an order in which they do
    not fall: 0 where all are equal, towards 1 where one has all; NaN without a value above 0.

    G = sum_i (2 i - n - 1) x_i / (n sum x), x ascending, i from 1.
    """
    row, value = order.row_V, values_V[order.places_V]
    uneven = (2 * order.ordinal_V + 1 - order.count_R[row]) * value
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums(uneven, row, order.rows) / (order.count_R * sums(value, row, order.rows))
