"""A network between participants and their coordinator that can be parted: one process, no root."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tests.campaigns.harness._processes import address_in, write_address

from stepseal.protocol import Address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


__all__ = ["PARTITIONS", "Partition", "relay"]

Partition = Literal["pause", "cut", "to-hub", "from-hub"]
PARTITIONS: tuple[Partition, ...] = ("pause", "cut", "to-hub", "from-hub")
"""Nothing passes, in silence; all lines are closed; nothing passes in one direction."""

_LOOK_S = 0.01


@dataclass(eq=False)
class _Pair:
    """The two ends of one participant's line."""

    rank: int
    participant: socket.socket
    hub: socket.socket

    def other(self, end: socket.socket) -> socket.socket:
        return self.hub if end is self.participant else self.participant


class _Relay:
    def __init__(self, folder: Path, ranks: Sequence[int]) -> None:
        self._selector = selectors.DefaultSelector()
        self._hub: Address | None = None
        self._folder = folder
        self._modes: dict[int, Partition] = {}
        self._pairs: list[_Pair] = []
        self._listeners: dict[int, socket.socket] = {}
        for rank in ranks:
            listener = socket.create_server(("127.0.0.1", 0))
            self._listeners[rank] = listener
            self._selector.register(listener, selectors.EVENT_READ, rank)

    def serve(self, commands: Any) -> None:  # noqa: ANN401 - a connection
        self._selector.register(commands, selectors.EVENT_READ, None)
        while True:
            if self._hub is None:
                self._look_for_hub()
            for key, _ in self._selector.select(_LOOK_S if self._hub is None else None):
                if key.data is None:
                    ranks, mode = commands.recv()
                    self._part(ranks, mode)
                    commands.send("parted")
                elif isinstance(key.data, int):
                    self._accept(key.data)
                else:
                    self._forward(key.data, key.fileobj)

    def _look_for_hub(self) -> None:
        """Let participants connect as soon as the coordinator listens."""
        self._hub = address_in(self._folder, "hub")
        if self._hub is not None:
            for rank, listener in self._listeners.items():
                near = Address("127.0.0.1", listener.getsockname()[1], self._hub.token)
                write_address(self._folder, near, f"address.{rank}")

    def _part(self, ranks: Sequence[int], mode: Partition) -> None:
        for rank in ranks:
            self._modes[rank] = mode
        for pair in [pair for pair in self._pairs if pair.rank in ranks]:
            if mode == "cut":
                self._drop(pair)
            if mode == "pause":
                self._mute(pair.participant)
                self._mute(pair.hub)

    def _mute(self, end: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(end)

    def _drop(self, pair: _Pair) -> None:
        for end in (pair.participant, pair.hub):
            self._mute(end)
            end.close()
        self._pairs.remove(pair)

    def _accept(self, rank: int) -> None:
        near, _ = self._listeners[rank].accept()
        mode = self._modes.get(rank)
        assert self._hub is not None
        try:
            far = socket.create_connection((self._hub.host, self._hub.port), timeout=1.0)
        except OSError:
            near.close()
            return
        pair = _Pair(rank, near, far)
        self._pairs.append(pair)
        if mode == "cut":
            self._drop(pair)
        elif mode != "pause":
            self._selector.register(near, selectors.EVENT_READ, pair)
            self._selector.register(far, selectors.EVENT_READ, pair)

    def _forward(self, pair: _Pair, end: Any) -> None:  # noqa: ANN401 - a socket
        if end not in (pair.participant, pair.hub) or end.fileno() < 0:
            return
        towards = "to-hub" if end is pair.participant else "from-hub"
        try:
            data = end.recv(1 << 16)
            if self._modes.get(pair.rank) == towards:
                if not data:
                    self._mute(end)  # not even the end of the line passes
                return
            if data:
                pair.other(end).sendall(data)
                return
        except OSError:
            data = b""
        self._drop(pair)


def relay(folder: Path, ranks: Sequence[int], commands: Any) -> None:  # noqa: ANN401
    """Pass on what participants and hub say until the process is killed.

    Args:
        folder: where the hub's address is found (`hub`) and that of each line put (`address.R`).
        ranks: participants that connect.
        commands: connection; takes (ranks, partition), and answers when it is in force.
    """
    with contextlib.suppress(EOFError):
        _Relay(folder, ranks).serve(commands)
    os._exit(0)
