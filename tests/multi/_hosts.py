"""Two hosts on one machine: network namespaces with a link between them, and names of their own.

Each host has two lines to the other one, and an address that the other one has, too, as the bridges
of containers do. The second line is down on host B: what is sent over it is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["DEAD_LINE", "LINE", "SAME", "Hosts", "Process"]

LINE = ("10.78.0.1", "10.78.0.2")
LINE_6 = ("fd00:78::1", "fd00:78::2")
DEAD_LINE = ("10.79.0.1", "10.79.0.2")
SAME = "172.31.255.1"
_ROOT = Path(__file__).parents[2]


@dataclass(slots=True)
class Process:
    """A rank, and where its output goes."""

    popen: subprocess.Popen[bytes]
    output: Path

    def wait(self, timeout_s: float) -> int:
        """Return the exit status."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs: {self.text()[-3000:]}") from None

    def kill(self) -> None:
        """End the rank and all that it started, without a word."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()

    def text(self) -> str:
        """Return what the rank wrote so far."""
        return self.output.read_text("utf-8", "replace")


@dataclass(slots=True)
class Hosts:
    """Host A (0) and host B (1); leaving the block ends what runs there and removes them.

    Skips the test, with the reason, where network namespaces are not allowed.
    """

    folder: Path
    processes: list[Process] = field(default_factory=list)

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _make(self) -> None:
        refused = _ip_refuses(f"netns add {self.name(0)}") or _ip_refuses(
            f"netns add {self.name(1)}"
        )
        if refused:
            pytest.skip(f"network namespaces are not allowed here: {refused}")
        for line in ("x", "y"):
            ends = [f"{self.name(side)}{line}" for side in (0, 1)]
            refused = _ip_refuses(
                f"link add {ends[0]} netns {self.name(0)} type veth "
                f"peer name {ends[1]} netns {self.name(1)}"
            )
            if refused:
                pytest.skip(f"lines between network namespaces are not allowed here: {refused}")
        for side in (0, 1):
            _ip(f"-n {self.name(side)} link set lo up")
            for line, address in (("x", LINE[side]), ("y", DEAD_LINE[side])):
                _ip(f"-n {self.name(side)} addr add {address}/24 dev {self.name(side)}{line}")
                _ip(f"-n {self.name(side)} link set {self.name(side)}{line} up")
            _ip(f"-n {self.name(side)} addr add {SAME}/32 dev {self.name(side)}y")
            _ip_refuses(
                f"-n {self.name(side)} addr add {LINE_6[side]}/64 dev {self.name(side)}x nodad"
            )
        _ip(f"-n {self.name(1)} addr flush dev {self.name(1)}y")
        _ip(f"-n {self.name(1)} addr add {SAME}/32 dev {self.name(1)}y")
        _ip(f"-n {self.name(1)} route add {DEAD_LINE[0]} dev {self.name(1)}y")  # nobody answers

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill_all()
        for side in (0, 1):
            _ip_refuses(f"netns del {self.name(side)}")

    def name(self, side: int) -> str:
        """Return the name of a host's namespace."""
        return f"ss{os.getpid() % 1_000_000}{'ab'[side]}"

    def start(
        self, side: int, script: Path, arguments: list[str], settings: Mapping[str, str]
    ) -> Process:
        """Run a script on a host, in its own session; it may change the host's name and names."""
        number = len(self.processes)
        output = self.folder / f"output.{number}"
        names = self.folder / f"names.{number}"
        names.write_text("127.0.0.1 localhost\n", "ascii")
        command = 'mount --bind "$0" /etc/hosts; exec "$@"'
        with output.open("wb") as out:
            popen = self._popen(side, command, names, [str(script), *arguments], settings, out)
        process = Process(popen, output)
        self.processes.append(process)
        return process

    def _popen(
        self,
        side: int,
        command: str,
        names: Path,
        job: list[str],
        settings: Mapping[str, str],
        out: BinaryIO,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name(side), "unshare", "--uts", "--mount", "bash", "-c",
             command, str(names), sys.executable, "-W", "ignore", *job],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **settings, "GLOO_SOCKET_IFNAME": f"{self.name(side)}x",
                 "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}", "OMP_NUM_THREADS": "1",
                 "STEPSEAL_NAMES": str(names)},
        )  # fmt: skip

    def set_link(self, state: str) -> None:
        """Take the line between the hosts `down`, or `up` again."""
        _ip(f"-n {self.name(0)} link set {self.name(0)}x {state}")
        if state == "up":  # a line that was down has lost its IPv6 address
            _ip_refuses(f"-n {self.name(0)} addr add {LINE_6[0]}/64 dev {self.name(0)}x nodad")

    def kill_all(self) -> None:
        """End everything that runs on both hosts."""
        for process in self.processes:
            process.kill()


def wait_for(paths: list[Path], processes: list[Process], timeout_s: float) -> None:
    """Wait until all paths exist; fail if a process ends before."""
    end = time.monotonic() + timeout_s
    while not all(path.exists() for path in paths):
        ended = [process for process in processes if process.popen.poll() is not None]
        assert not ended, ended[0].text()[-3000:]
        assert time.monotonic() < end, [process.text()[-500:] for process in processes]
        time.sleep(0.02)


def _ip(arguments: str) -> None:
    refused = _ip_refuses(arguments)
    assert not refused, f"ip {arguments}: {refused}"


def _ip_refuses(arguments: str) -> str:
    """Run `ip`; return why it refused, or an empty text."""
    command = ["ip", *arguments.split()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or str(done.returncode)
