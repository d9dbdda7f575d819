"""The clock that stands still while its process is stopped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepseal.process import LeaseTime, OwnTime


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_it_goes_on_like_any_clock_while_somebody_looks() -> None:
    clock = Clock()
    own = OwnTime(1.0, clock)
    begun = own()
    for _ in range(100):
        clock.now_s += 0.75
        own()
    assert own() - begun == 75.0


def test_an_hour_in_which_nobody_looked_counts_as_one_slice() -> None:
    clock = Clock()
    own = OwnTime(1.0, clock)
    begun = own()
    clock.now_s += 3600.0
    assert own() - begun == 1.0
    clock.now_s += 0.5
    assert own() - begun == 1.5


@given(st.lists(st.floats(0.0, 1e6), max_size=50), st.floats(0.001, 100.0))
def test_it_never_runs_back_nor_ahead(gaps: list[float], slice_s: float) -> None:
    clock = Clock()
    own = OwnTime(slice_s, clock)
    begun = seen = own()
    for gap in gaps:
        clock.now_s += gap
        now = own()
        assert seen <= now
        assert now - seen <= slice_s + 1e-6
        seen = now
    assert seen - begun <= clock.now_s - 1000.0 + 1e-6


class Host:
    """A process that is stopped now and then, with all clocks that it looks at."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.own = OwnTime(5.0, self.clock)
        self.leases = LeaseTime(600.0, lambda: 1e9 + self.clock.now_s, self.clock, self.own)

    def runs(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.now_s += 1.0
            self.own()

    def behind_s(self) -> float:
        return 1e9 + self.clock.now_s - self.leases()


def test_leases_are_judged_by_unix_time_while_the_process_runs() -> None:
    host = Host()
    host.runs(1000)
    assert host.behind_s() == 0.0


def test_after_a_sleep_leases_get_the_time_to_be_renewed() -> None:
    host = Host()
    host.runs(100)
    host.clock.now_s += 3600.0
    assert host.behind_s() == 3595.0
    host.runs(300)
    assert host.behind_s() == 3595.0
    host.clock.now_s += 1000.0  # and once more before all have renewed
    assert host.behind_s() == 4590.0
    host.runs(601)
    assert host.behind_s() == 0.0
