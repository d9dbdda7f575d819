"""What a step across actors costs: an empty save, the stall of an actor, the coordinator itself.

    python benchmarks/actors.py empty --actors 8 --repetitions 20 --root <folder on the disk>
    python benchmarks/actors.py empty --actors 8 --ray         # Ray actors instead of processes
    python benchmarks/actors.py stall --megabytes 200
    python benchmarks/actors.py many --participants 16 64 256 1024

What is compared is timed in one run, one after the other, and ratios are taken repetition by
repetition, because times on a shared machine drift.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import queue
import statistics
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

import stepseal as ss
from stepseal.protocol import Address, Compare, Compared, Deadlines, Failure, SocketHub, SocketLink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from stepseal.actors import Member
    from stepseal.protocol import BeginSave, FromCoordinator

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["stepseal.session", "stepseal.actors"])
_COORDINATOR = ("stepseal-coordinator", "stepseal-hub", "stepseal-commit", "stepseal-keep")
"""Threads that only the coordinator has."""
_TOKEN = "t" * 32
_NUM_PINGS = 20
_NUM_TENSORS = 64


def shown(values: Sequence[float]) -> str:
    """Return the median and the range of some values."""
    return f"{statistics.median(values):8.2f}  ({min(values):.2f}-{max(values):.2f})"


# -- actors in processes ---------------------------------------------------------------------------


class Timed(ss.Participant):
    """Tells how long a capture blocks its owner, and how long a copy of the same tensors takes."""

    def __init__(self, role: str, megabytes: int, answers: Connection) -> None:
        super().__init__(role)
        rows = megabytes * (1 << 20) // 4 // _NUM_TENSORS
        self.state = {
            f"row.{index}": torch.rand(rows) for index in range(_NUM_TENSORS if rows else 1)
        }
        self.copies = {name: torch.zeros_like(tensor) for name, tensor in self.state.items()}
        self.answers = answers
        self.add(role, self.state, kind="tree")

    def capture(self, begin: BeginSave) -> None:
        """Copy everything into memory that is there already, then capture."""
        start = time.perf_counter()
        for name, tensor in self.state.items():
            self.copies[name].copy_(tensor)
        copied = time.perf_counter()
        super().capture(begin)
        self.answers.send((copied - start, time.perf_counter() - copied))


def live(role: str, megabytes: int, pipe: Connection, answers: Connection) -> None:
    """Be an actor until the other end is gone."""
    with Timed(role, megabytes, answers) as own:
        while ss.serve(own, pipe, timeout_s=0.2):
            pass


class Started:
    """An actor in a process of its own."""

    def __init__(self, role: str, megabytes: int = 0) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.answers, told = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=live, args=(role, megabytes, theirs, told))
        self.process.start()

    def end(self) -> None:
        """End it as its controller's end does."""
        self.pipe.close()
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def processes(
    roles: Sequence[str], megabytes: int = 0
) -> Iterator[tuple[list[Member], list[Started]]]:
    """Run one actor for each role, each in its process."""
    held = [Started(role, megabytes) for role in roles]
    try:
        yield (
            [m for r, one in zip(roles, held, strict=True) for m in ss.processes(r, [one.pipe])],
            held,
        )
    finally:
        for one in held:
            one.end()


# -- an empty save, in round trips -----------------------------------------------------------------


def echo(host: str, port: int) -> None:
    """Answer each message over a line, as the line of a participant carries it."""
    limits, ended = Deadlines(), threading.Event()
    link = SocketLink(Address(host, port, _TOKEN), "echo/0", limits, "")

    def answer(message: FromCoordinator | Failure) -> None:
        if isinstance(message, Compare):
            link.send(Compared(message.call, {}))
        elif isinstance(message, Failure):
            ended.set()

    link.start(answer)
    ended.wait()
    link.close()


@contextlib.contextmanager
def line() -> Iterator[Callable[[], Awaitable[None]]]:
    """Return what sends a message over a line to another process, and waits for the answer."""
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    hub = SocketHub("127.0.0.1", ("echo/0",), _TOKEN, Deadlines())
    hub.start(lambda _one, message, _life: answers.put(message))
    other = _SPAWN.Process(target=echo, args=(hub.address.host, hub.address.port))
    other.start()
    answers.get()  # its Hello

    async def ping() -> None:
        hub.send("echo/0", Compare(1, {}))
        answers.get()

    try:
        yield ping
    finally:
        hub.close()
        other.join()


@contextlib.contextmanager
def ray_actors(
    roles: Sequence[str],
) -> Iterator[tuple[list[Member], Callable[[], Awaitable[None]]]]:
    """Run Ray actors; a round trip is a call of a method that does nothing."""
    import ray

    class Owner:
        def __init__(self, role: str) -> None:
            self.ss = ss.Participant(role)
            self.ss.add(role, {"row.0": torch.rand(0)}, kind="tree")

        def ping(self) -> None:
            pass

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=len(roles))
    handles = [ray.remote(Owner).options(num_cpus=0).remote(role) for role in roles]
    members: list[Member] = [
        one for r, handle in zip(roles, handles, strict=True) for one in ss.ray.members(r, handle)
    ]

    async def ping() -> None:
        await handles[0].ping.remote()

    try:
        yield members, ping
    finally:
        ray.shutdown()


async def round_trip_s(ping: Callable[[], Awaitable[None]]) -> float:
    """Return the median time of a round trip."""
    times = []
    for _ in range(_NUM_PINGS):
        start = time.perf_counter()
        await ping()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


async def time_empty(
    root: str,
    roles: Sequence[str],
    members: Sequence[Member],
    ping: Callable[[], Awaitable[None]],
    repetitions: int,
) -> None:
    """Print what an empty save of all actors takes, beside the same in this process alone."""
    here = [ss.Participant(role) for role in roles]
    for one, role in zip(here, roles, strict=True):
        one.add(role, {"row.0": torch.rand(0)}, kind="tree")
    alone = ss.Checkpointer(f"{root}/alone", mode="sync", keep=ss.latest(2))
    alone.add("alone", {"row.0": torch.rand(0)}, kind="tree")
    found: dict[str, list[float]] = {}
    async with (
        ss.Coordinator(f"{root}/actors", keep=ss.latest(2)) as apart,
        ss.Coordinator(f"{root}/here", keep=ss.latest(2)) as together,
    ):
        await apart.admit(*members)
        await together.admit(*ss.in_process(*here))
        for step in range(repetitions + 2):
            times = [time.perf_counter()]
            await apart.save(step)
            times.append(time.perf_counter())
            await together.save(step)
            times.append(time.perf_counter())
            alone.save(step)
            times.append(time.perf_counter())
            trip_s = await round_trip_s(ping)
            actors_s, here_s, alone_s = (b - a for a, b in itertools.pairwise(times))
            for name, value in (
                (f"{len(roles)} actors, ms", actors_s * 1e3),
                (f"{len(roles)} in this process, ms", here_s * 1e3),
                ("1 in this process, ms", alone_s * 1e3),
                ("round trip, ms", trip_s * 1e3),
                (f"actors over {len(roles)} here, trips", (actors_s - here_s) / trip_s),
                ("actors over 1 here, trips", (actors_s - alone_s) / trip_s),
            ):
                found.setdefault(name, []).append(value)
    for one in here:
        one.close()
    alone.close()
    for name, values in found.items():
        print(f"{name:<28}{shown(values[2:])}")


def empty(root: str, num_actors: int, repetitions: int, *, ray: bool) -> None:
    """Time empty saves of Ray actors, or of processes."""
    roles = [f"actor-{index}" for index in range(num_actors)]
    with contextlib.ExitStack() as stack:
        if ray:
            members, ping = stack.enter_context(ray_actors(roles))
        else:
            members, _ = stack.enter_context(processes(roles))
            ping = stack.enter_context(line())
        asyncio.run(time_empty(root, roles, members, ping, repetitions))


# -- the stall of an actor -------------------------------------------------------------------------


def stall(root: str, megabytes: int, repetitions: int) -> None:
    """Print for how long an actor with a big buffer is blocked, beside one copy of the buffer."""

    async def saves() -> list[tuple[float, float]]:
        async with ss.Coordinator(root, keep=ss.latest(1)) as coord:
            await coord.admit(*members)
            found = []
            for step in range(repetitions + 1):
                await coord.save(step)
                found.append(held[0].answers.recv())
            return found

    with processes(["buffer"], megabytes) as (members, held):
        found = asyncio.run(saves())
    copies, blocked = zip(*found, strict=True)
    ratios = [block / copy for copy, block in found]
    print(f"first save           {blocked[0] * 1e3:8.2f} ms, {ratios[0]:.2f} copies")
    print(f"later saves, blocked {shown([one * 1e3 for one in blocked[1:]])} ms")
    print(f"one copy             {shown([one * 1e3 for one in copies[1:]])} ms")
    print(f"blocked              {shown(ratios[1:])} copies")


# -- the coordinator's own time --------------------------------------------------------------------


def spent_s() -> dict[str, float]:
    """Return the processor time that each thread of the coordinator has used so far."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name in _COORDINATOR and thread.ident is not None
    }


async def time_many(root: str, number: int, repetitions: int) -> list[dict[str, float]]:
    """Return the processor time that the coordinator's threads take for each save."""
    people = [ss.Participant("worker", rank=rank, size=number) for rank in range(number)]
    found = []
    for rank, one in enumerate(people):
        one.add("state", {"rank": rank}, sharing=ss.PER_RANK)
    patient = Deadlines(heartbeat_s=60.0, lost_s=3600.0)  # so many threads starve each other
    async with ss.Coordinator(root, keep=ss.latest(2), deadlines=patient) as coord:
        members = ss.in_process(*people)
        for first in range(0, number, 64):
            await coord.admit(*members[first : first + 64])
        await coord.admit(members[0])  # again, as after a restart
        for step in range(repetitions + 1):
            before = spent_s()
            await coord.save(step)
            found.append({name: (used - before[name]) * 1e3 for name, used in spent_s().items()})
    for one in people:
        one.close()
    return found[1:]


def many(root: str, numbers: Sequence[int], repetitions: int) -> None:
    """Print the coordinator's processor time for a save of many participants in this process."""
    for number in numbers:
        found = asyncio.run(time_many(f"{root}/{number}", number, repetitions))
        totals = [sum(one.values()) for one in found]
        parts = ", ".join(
            f"{name.removeprefix('stepseal-')} {statistics.median(one[name] for one in found):.1f}"
            for name in _COORDINATOR
        )
        per_ms = statistics.median(totals) / number
        print(f"{number:5} participants {shown(totals)} ms, {per_ms:.2f} ms each: {parts}")


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("empty", "stall", "many"))
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--participants", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--root", default=None)
    asked: Any = parser.parse_args()
    root = tempfile.mkdtemp(prefix="stepseal-bench-", dir=asked.root)
    if asked.what == "empty":
        empty(root, asked.actors, asked.repetitions, ray=asked.ray)
    elif asked.what == "stall":
        stall(root, asked.megabytes, asked.repetitions)
    else:
        many(root, asked.participants, asked.repetitions)


if __name__ == "__main__":
    main()
