from __future__ import annotations

import pytest

from stepseal.layout import size_text, unix_time, utc_text
from stepseal.layout._times import time_problem


@pytest.mark.parametrize("unix_s", [0.0, -1.5, 1.8e9, 2_000_000_000.123456, 253_402_300_799.0])
def test_a_time_that_is_written_is_read_back(unix_s: float) -> None:
    assert unix_time(utc_text(unix_s)) == unix_s


def test_times_are_written_in_utc_to_the_microsecond() -> None:
    assert utc_text(2_000_000_000.5) == "2033-05-18T03:33:20.500000+00:00"


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("2033-05-18T03:33:20Z", 2_000_000_000.0),
        ("2033-05-18T03:33:20+00:00", 2_000_000_000.0),
        ("2033-05-18T03:33:20.5Z", 2_000_000_000.5),
        ("2033-05-18T03:33:20.0001Z", 2_000_000_000.0001),
        ("2033-05-18T03:33:20.123456+00:00", 2_000_000_000.123456),
    ],
)
def test_every_form_of_a_time_is_read(text: str, expected_s: float) -> None:
    assert unix_time(text) == expected_s
    assert time_problem(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "some day",
        "2033-05-18",
        "2033-05-18T03:33:20",
        "2033-05-18T03:33Z",
        "2033-05-18 03:33:20Z",
        "2033-05-18T03:33:20z",
        "2033-05-18T03:33:20.Z",
        "2033-05-18T03:33:20.1234567Z",
        "2033-05-18T03:33:20,5Z",
        "2033-05-18T03:33:20+01:00",
        "2033-05-18T03:33:20-00:00",
        "2033-05-18T03:33:20Z\n",
        "0000-01-01T00:00:00Z",
        "2033-13-18T03:33:20Z",
        "2033-02-29T03:33:20Z",
        "2033-05-18T24:00:00Z",
        "2033-05-18T03:33:60Z",
        "\u0662033-05-18T03:33:20Z",
    ],
)
def test_another_text_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        unix_time(text)
    problem = time_problem(text)
    assert problem is not None
    assert problem.startswith("expected a UTC time")


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1024.0 KiB"),
        (3 * 1024**3 // 2, "1.5 GiB"),
        (7 * 1024**5, "7.0 PiB"),
        (2048 * 1024**5, "2048.0 PiB"),
    ],
)
def test_a_size_is_told_in_the_largest_unit_that_it_fills(size_bytes: int, expected: str) -> None:
    assert size_text(size_bytes) == expected
