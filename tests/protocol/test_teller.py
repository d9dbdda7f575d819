"""A participant tells how far it is: at most once per second, and always true."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from stepseal.protocol import Teller
from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from stepseal.protocol import ParticipantDriver


class Line:
    def __init__(self) -> None:
        self.told: list[messages.Progressed] = []

    @property
    def _link(self) -> Line:
        return self

    def send(self, message: messages.Progressed) -> None:
        self.told.append(message)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def teller(line: Line, clock: Any, num: int = 2) -> Teller:  # noqa: ANN401 - of two kinds
    driver = cast("ParticipantDriver", line)
    return Teller(driver, 7, num, 100.0, 50, clock)


def test_bytes_are_summed_up_and_told_once_per_second() -> None:
    line, clock = Line(), Clock()
    found = teller(line, clock)
    for _ in range(100):
        clock.now_s += 1 / 16
        found.count(1)
    assert [one.size_bytes for one in line.told] == [16, 32, 48, 64, 80, 96]
    assert {(one.call, one.of_bytes, one.blocked_s) for one in line.told} == {(7, 50, None)}
    assert line.told[-1].called_s == 6.0
    found.tell()
    assert line.told[-1].size_bytes == 100


def test_an_owner_that_goes_on_is_told_with_the_time_that_it_stood_still() -> None:
    line, clock = Line(), Clock()
    found = teller(line, clock)
    clock.now_s = 100.25
    found.freed()
    clock.now_s = 103.0
    found.tell()
    assert (line.told[-1].blocked_s, line.told[-1].called_s) == (0.25, 3.0)
    clock.now_s = 104.0
    found.freed()  # it was frozen until all had captured
    found.tell()
    assert line.told[-1].blocked_s == 4.0


def test_many_participants_tell_less_often_each() -> None:
    line, clock = Line(), Clock()
    found = teller(line, clock, num=10_000)
    for _ in range(30):
        clock.now_s += 1.0
        found.count(1)
    assert len(line.told) == 3


def test_threads_count_together() -> None:
    line = Line()
    found = teller(line, lambda: 100.0)

    def work() -> None:
        for _ in range(5000):
            found.count(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.tell()
    assert [one.size_bytes for one in line.told] == [20_000]
