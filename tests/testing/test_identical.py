from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from stepseal.testing import assert_identical, find_difference, snapshot

NAN = float("nan")


@dataclass
class Point:
    x: float
    values: torch.Tensor


def other_nan() -> float:
    (value,) = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))
    return float(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "text",
        NAN,
        complex(NAN, 1),
        {1, 2},
        {"a": [1, (2.0, None)], 3: {}},
        deque([1, 2], maxlen=3),
        torch.tensor([NAN, -0.0]),
        torch.tensor(3, dtype=torch.uint64),
        torch.zeros(0, 4),
        torch.tensor([1.5, 2.5]).to(torch.float8_e5m2),
        torch.tensor([1 + 2j]).conj(),
        np.array([NAN, 1.0]),
        np.array(2, dtype=np.int16),
        np.array(["a", None], dtype=object),
        Point(1.0, torch.ones(2)),
    ],
)
def test_a_snapshot_is_identical(value: Any) -> None:  # noqa: ANN401
    assert find_difference(value, snapshot(value)) is None


@pytest.mark.parametrize(
    ("expected", "found", "told"),
    [
        (0.0, -0.0, "top level: expected 0.0, found -0.0"),
        (NAN, other_nan(), "top level: expected nan, found nan"),
        (1, True, "top level: expected int, found bool"),
        ({1}, {True}, "top level: expected {1}, found {True}"),
        ([1, 2], (1, 2), "top level: expected list, found tuple"),
        ([1], [1, 2], r"top level: expected 1 entries, found missing [], extra ['[1]']"),
        (deque([1], 2), deque([1], 3), "maxlen: expected 2, found 3"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1]: expected 2, found 3"),
        ({"a": {0: 1}}, {"a": {0: 2}}, "a[0]: expected 1, found 2"),
        (
            {"m": {"w": torch.zeros(2, 3)}},
            {"m": {"w": torch.tensor([[0.0, 0, 0], [0, -0.0, 0]])}},
            "m.w, element [1, 1]: expected 0.0, found -0.0",
        ),
        (torch.tensor(1), torch.tensor(2), "top level, element []: expected 1, found 2"),
        (
            torch.zeros(2),
            torch.zeros(2, dtype=torch.float64),
            "top level: expected [2] of torch.float32, found [2] of torch.float64",
        ),
        (
            Point(1.0, torch.ones(2)),
            Point(1.0, torch.tensor([1.0, 2.0])),
            "values, element [1]: expected 1.0, found 2.0",
        ),
        (
            np.array([[1, 2], [3, 4]]),
            np.array([[1, 2], [3, 5]]),
            "top level, element [1, 1]: expected 4, found 5",
        ),
        (np.zeros(2), np.zeros(3), "top level: expected [2] of float64, found [3] of float64"),
        (np.array([None, 1]), np.array([None, 2]), "[1]: expected 1, found 2"),
    ],
)
def test_the_first_difference_is_named(expected: Any, found: Any, told: str) -> None:  # noqa: ANN401
    assert str(find_difference(expected, found)) == told
    with pytest.raises(AssertionError) as caught:
        assert_identical(expected, found)
    assert str(caught.value) == told


def test_a_snapshot_keeps_what_training_overwrites() -> None:
    live: dict[str, Any] = {
        "t": torch.ones(2, requires_grad=True),
        "l": [np.ones(1)],
        "q": deque([[1]]),
    }
    kept = snapshot(live)
    with torch.no_grad():
        live["t"].zero_()
    live["l"][0][0] = 0
    live["q"][0].append(2)
    assert_identical(kept, {"t": torch.ones(2), "l": [np.ones(1)], "q": deque([[1]])})
