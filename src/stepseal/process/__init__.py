"""This process: the time in which it ran, its threads, and whether it is a forked child."""

from stepseal.process._behind import Behind
from stepseal.process._forks import Home, drop_in_child
from stepseal.process._own_time import OWN_SLICE_S, LeaseTime, OwnTime, own_time_s
from stepseal.process._threads import Pool, start_thread, thread_limits

__all__ = [
    "OWN_SLICE_S",
    "Behind",
    "Home",
    "LeaseTime",
    "OwnTime",
    "Pool",
    "drop_in_child",
    "own_time_s",
    "start_thread",
    "thread_limits",
]
