"""A participant's end of the control plane over TCP: one thread receives, one sends heartbeats.

No call blocks forever: connecting, sending and receiving have limits, and a silent coordinator is
reported dead after `lost_s`.
"""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.errors import ParticipantFailed
from stepseal.process import OWN_SLICE_S, OwnTime, drop_in_child, own_time_s, start_thread
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import MAX_MESSAGE_BYTES, Address, MessageReader, pack_message

if TYPE_CHECKING:
    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._transport import FromHub

__all__ = ["SocketLink"]

_RECEIVE_BYTES = 1 << 16
_JOIN_S = 2.0
_GONE = (OSError, ValueError)
"""A connection that failed, or has no descriptor any more."""


class SocketLink:
    """A participant's connection to a coordinator in another process.

    Args:
        address: where the coordinator listens.
        participant: own id.
        deadlines: connection, heartbeat and loss limits.
        version: own library version; the coordinator must run the same.
        connection: an open connection to the address, closed here; None opens one.
        life: the admission that this connection answers.

    Raises:
        CoordinatorLost: the coordinator cannot be reached within `connect_s`.
    """

    def __init__(
        self,
        address: Address,
        participant: str,
        deadlines: Deadlines,
        version: str,
        connection: socket.socket | None = None,
        life: str = "",
    ) -> None:
        self._deadlines = deadlines
        self._hello = messages.Hello(participant, address.token, version, life)
        self._send_lock = threading.Lock()
        self._ended = threading.Event()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._connection = connection or _connect(address, participant, deadlines.connect_s)
        drop_in_child(self)
        self._connection.settimeout(deadlines.lost_s)
        self._slice_s = min(deadlines.heartbeat_s, OWN_SLICE_S)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self, on_message: FromHub) -> None:
        """Send Hello, and begin to deliver messages on a thread of this link.

        Raises:
            ParticipantFailed: a thread cannot be had; the connection is closed.
        """
        self.send(self._hello)
        try:
            for target, arguments in ((self._serve, (on_message,)), (self._beat, ())):
                thread = threading.Thread(
                    target=target, args=arguments, name="stepseal-link", daemon=True
                )
                start_thread(thread)
                self._threads.append(thread)
        except ParticipantFailed:
            self.close()
            raise

    def send(self, message: messages.FromParticipant) -> None:
        """Send a message; the receiving thread notices and reports a dead connection.

        Raises:
            InvalidInput: the message is too long; the connection stays open.
        """
        data = pack_message(messages.encode_message(message))
        try:
            with self._send_lock:
                self._send_all(memoryview(data))
        except _GONE:
            self._half_close()  # half a frame may be out: the receiving thread sees the end

    def _send_all(self, data: memoryview) -> None:
        """Send all bytes.

        Raises:
            OSError, ValueError: the connection failed or was closed, or took nothing for `lost_s`.
        """
        own_s = OwnTime(self._slice_s)
        taken_s = own_s()
        while data:
            if self._is_ready(select.POLLOUT):
                data = data[self._connection.send(data) :]
                taken_s = own_s()
            elif own_s() - taken_s > self._deadlines.lost_s:
                raise TimeoutError("nothing was taken")

    def _is_ready(self, event: int, limit_s: float | None = None) -> bool:
        """Wait for one slice; return whether the connection can be read or written, or has ended.

        Raises:
            OSError, ValueError: it was closed.
        """
        poll = select.poll()
        poll.register(self._connection, event)
        return bool(poll.poll(1000.0 * (self._slice_s if limit_s is None else limit_s)))

    def close(self) -> None:
        """Close the connection, and stop delivering. Idempotent."""
        self._closed = True
        self._ended.set()
        self._half_close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
        self._connection.close()

    def forget(self) -> None:
        """Close the descriptor of a forked child, whose parent goes on with the connection.

        Else the connection outlives the parent, and its death is noticed only after `lost_s`.
        """
        self._closed = True
        self._connection.close()

    def _half_close(self) -> None:
        with suppress(OSError):  # closed by either side before
            self._connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, on_message: FromHub) -> None:
        why = self._receive_all(on_message)
        self._ended.set()
        self._half_close()  # lets the coordinator know at once
        if not self._closed:
            on_message(messages.Failure(errors.CoordinatorLost.kind, why))

    def _receive_all(self, on_message: FromHub) -> str:
        """Deliver messages until the connection ends; return why it ended."""
        reader = MessageReader(MAX_MESSAGE_BYTES)
        lost_s = self._deadlines.lost_s
        own_s = OwnTime(self._slice_s)
        heard_s = own_s()
        while True:
            try:
                if not self._is_ready(select.POLLIN):
                    is_late = own_s() - heard_s > lost_s
                    if is_late and not self._is_ready(select.POLLIN, 0.0):
                        return f"no sign of life from the coordinator for {lost_s:g} s"
                    continue
                data = self._connection.recv(_RECEIVE_BYTES)
                heard_s = own_s()
            except _GONE as error:
                return f"the connection to the coordinator failed: {error}"
            if not data:
                return "the coordinator closed the connection or its process ended"
            reader.feed(data)
            try:
                while (body := reader.take()) is not None:
                    message = messages.decode_from_coordinator(body)
                    if not isinstance(message, messages.Heartbeat):
                        on_message(message)
            except errors.InvalidInput as error:
                return str(error)

    def _beat(self) -> None:
        while not self._ended.wait(self._slice_s):
            own_time_s()
            self.send(messages.Heartbeat())


def _connect(address: Address, participant: str, limit_s: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.port), timeout=limit_s)
    except OSError as error:
        raise errors.CoordinatorLost(
            f"control plane: {participant} cannot reach the coordinator at "
            f"{address.host}:{address.port} within {limit_s:g} s: {error}. Is the address "
            "reachable from this host?",
            participant=participant,
        ) from error
