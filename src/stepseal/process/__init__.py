"""This process: the time in which it ran, its threads and signals, and whether it is forked."""

from stepseal.process._behind import Behind
from stepseal.process._forks import Home, drop_in_child
from stepseal.process._own_time import OWN_SLICE_S, LeaseTime, OwnTime, own_time_s
from stepseal.process._signals import (
    SignalWatch,
    check_can_watch,
    stop_unwatched,
    wait_until_noticed,
    watch_signal,
)
from stepseal.process._threads import Pool, start_thread, thread_limits

__all__ = [
    "OWN_SLICE_S",
    "Behind",
    "Home",
    "LeaseTime",
    "OwnTime",
    "Pool",
    "SignalWatch",
    "check_can_watch",
    "drop_in_child",
    "own_time_s",
    "start_thread",
    "stop_unwatched",
    "thread_limits",
    "wait_until_noticed",
    "watch_signal",
]
