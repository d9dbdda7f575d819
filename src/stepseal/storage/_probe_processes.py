"""What only several processes can tell: who wins a race, and who sees what when.

Forks; the children answer through a pipe and end with `_exit`. A child that does not answer in time
is killed. Called from programs without threads of their own, such as the command line.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from stepseal.storage._probe_checks import NotHonoured, Place, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage._probe_values import Ability

__all__ = ["PROCESS_CHECKS", "ask_children"]

NUM_PROCESSES = 4
NUM_ROUNDS = 8
ANSWER_S = 30.0


def ask_children(
    num_children: int, work: Callable[[int], str], meanwhile: Callable[[], None]
) -> list[str]:
    """Run `work` in forked children, and `meanwhile` here once all have started.

    Args:
        num_children: how many.
        work: gets the child's number; an `OSError` or `NotHonoured` of it is raised here.
        meanwhile: done by this process.

    Raises:
        TimeoutError: a child gave no answer in time.
    """
    children: list[tuple[int, int]] = []
    try:
        for number in range(num_children):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reader)
                _answer(writer, work, number)
            os.close(writer)
            children.append((child, reader))
            _read(reader, b"started")
        meanwhile()
        return [_read(reader, None) for _, reader in children]
    finally:
        for child, reader in children:
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _answer(writer: int, work: Callable[[int], str], number: int) -> None:
    """Be the child; never returns."""
    try:
        os.write(writer, b"started\n")
        try:
            text = f"ok {work(number)}"
        except NotHonoured as error:
            text = f"not {error}"
        except OSError as error:
            text = f"errno {error.errno}"
        os.write(writer, text.encode() + b"\n")
    finally:
        os._exit(0)


def _read(reader: int, expected: bytes | None) -> str:
    data = b""
    deadline = time.monotonic() + ANSWER_S
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(errno.ETIMEDOUT, f"a process gave no answer in {ANSWER_S:g} s")
        more = os.read(reader, 1)  # no byte of the next line
        if not more:
            raise OSError(errno.ECHILD, "a process of the probe died")
        data += more
    kind, _, text = data.decode().rstrip("\n").partition(" ")
    if expected is not None or kind == "ok":
        return text
    if kind == "errno":
        raise OSError(int(text), os.strerror(int(text)))
    raise NotHonoured(text)


def _one_winner(place: Place) -> None:
    """Of several processes exactly one creates a name, and exactly one links to it."""
    for number in range(NUM_PROCESSES):
        place.create(f"own-{number}")

    def link(source: str, target: str) -> None:
        place.calls.link(source, place.fd, target, place.fd)

    def race(number: int) -> str:
        while place.read("go") is None:
            pass
        won = ""
        for turn in range(NUM_ROUNDS):
            won += "1" if _wins(place.create, f"created-{turn}") else "0"
            won += "1" if _wins(link, f"own-{number}", f"linked-{turn}") else "0"
        return won

    answers = ask_children(NUM_PROCESSES, race, lambda: place.create("go", b"go"))
    winners = [sum(column == "1" for column in columns) for columns in zip(*answers, strict=True)]
    created, linked = winners[::2], winners[1::2]
    require(set(created) == {1}, f"O_EXCL had {created} winners among {NUM_PROCESSES} processes")
    require(set(linked) == {1}, f"link had {linked} winners among {NUM_PROCESSES} processes")


def _wins(call: Callable[..., None], *names: str) -> bool:
    try:
        call(*names)
    except FileExistsError:
        return False
    return True


def _seen_at_once(place: Place) -> None:
    """What is written, closed and renamed is seen by another process whole, at its next look."""
    names = ("1", "2", "3", "4")
    waiting, told = os.pipe()
    for turn in range(NUM_ROUNDS):
        place.make_dir(f"staged-{turn}", *names)

    def look(_number: int) -> str:
        os.close(told)
        for turn in range(NUM_ROUNDS):
            if not os.read(waiting, 1):
                raise OSError(errno.EPIPE, "the probe ended")
            found = [place.read(f"step-{turn}/{name}") for name in names]
            expected = [name.encode() for name in names]
            require(found == expected, f"a renamed directory showed {found} at the first look")
            require(place.read(f"note-{turn}") == b"note", "a closed file was not seen")
        return ""

    def publish() -> None:
        for turn in range(NUM_ROUNDS):
            place.create(f"note-{turn}", b"note")
            place.rename(f"staged-{turn}", f"step-{turn}")
            os.write(told, b".")

    try:
        ask_children(1, look, publish)
    finally:
        os.close(told)
        os.close(waiting)


def _appears_whole(place: Place) -> None:
    """Whoever sees a renamed directory sees all of it, at whatever instant."""
    names = ("1", "2", "3", "4")
    for turn in range(NUM_ROUNDS):
        place.make_dir(f"staged-{turn}", *names)

    def watch(_number: int) -> str:
        deadline = time.monotonic() + ANSWER_S / 2
        for turn in range(NUM_ROUNDS):
            while time.monotonic() < deadline:
                try:
                    found = sorted(os.listdir(_directory(place, f"step-{turn}")))
                except FileNotFoundError:
                    continue
                require(found == list(names), f"a renamed directory showed only {found}")
                require(place.read(f"step-{turn}/4") == b"4", "a renamed file had no bytes yet")
                break
        return ""

    def publish() -> None:
        for turn in range(NUM_ROUNDS):
            place.rename(f"staged-{turn}", f"step-{turn}")
            require(place.read(f"staged-{turn}/1") is None, "the old name is still there")

    ask_children(1, watch, publish)


def _directory(place: Place, name: str) -> str:
    return f"/proc/self/fd/{place.fd}/{name}"


PROCESS_CHECKS: dict[Ability, Callable[[Place], None]] = {
    "rename_dir": _appears_whole,
    "one_winner": _one_winner,
    "seen_at_once": _seen_at_once,
}
"""Asked besides `CHECKS`; `rename_dir` must pass both."""
