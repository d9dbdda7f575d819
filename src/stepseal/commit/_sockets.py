"""The control plane over TCP: frames of bounded length, a secret token, heartbeats both ways.

A frame is a 4-byte big-endian length and that many bytes of JSON. A connection must say Hello with
the right token in its first, short frame, or it is closed. Nothing here waits for ever: sends of
the hub never block, and a silent line is reported dead after `lost_s`.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stepseal import errors
from stepseal.commit import _messages as messages
from stepseal.commit._deadlines import Deadlines
from stepseal.commit._links import InProcessHub, InProcessLink

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_HELLO_BYTES",
    "Address",
    "FrameReader",
    "SocketHub",
    "SocketLink",
]

MAX_FRAME_BYTES = 64 << 20
MAX_HELLO_BYTES = 4096
_LENGTH = struct.Struct(">I")
_RECEIVE_BYTES = 1 << 16
_FLUSH_S = 2.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the coordinator listens, and the secret that lets a participant in."""

    host: str
    port: int
    token: str = field(repr=False)


def frame(data: bytes) -> bytes:
    """Return `data` with its length before it."""
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a byte stream into frames; holds at most one frame of at most `max_bytes`.

    Raises:
        InvalidInput: from `feed`, when a frame announces more than `max_bytes`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes and return the frames that are complete now."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _LENGTH.size:
            (size_bytes,) = _LENGTH.unpack_from(self._buffer)
            if size_bytes > self.max_bytes:
                raise errors.InvalidInput(
                    f"control plane: frame of {size_bytes} bytes: expected at most "
                    f"{self.max_bytes}",
                    expected=self.max_bytes,
                    found=size_bytes,
                )
            end = _LENGTH.size + size_bytes
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return frames


@dataclass(slots=True)
class _Line:
    """One accepted connection."""

    connection: socket.socket
    opened_at: float
    last_seen: float
    reader: FrameReader = field(default_factory=lambda: FrameReader(MAX_HELLO_BYTES))
    unsent: bytearray = field(default_factory=bytearray)
    participant: str | None = None


class SocketHub:
    """The coordinator's end of the control plane; one thread serves all lines.

    Args:
        host: interface to listen on.
        participants: ids that may connect.
        token: secret that Hello must carry.
        deadlines: heartbeat and loss limits.

    Raises:
        StorageUnavailable: the socket cannot be opened.
    """

    def __init__(
        self, host: str, participants: tuple[str, ...], token: str, deadlines: Deadlines
    ) -> None:
        self._participants = frozenset(participants)
        self._token = token
        self._deadlines = deadlines
        self._local = InProcessHub()
        self._local_names: set[str] = set()
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((host, 0), backlog=min(4096, len(participants) + 16))
        self._listener.setblocking(False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._all: dict[int, _Line] = {}
        self._thread: threading.Thread | None = None
        self._on_message: _Callback | None = None
        name = self._listener.getsockname()
        self.address = Address(host, int(name[1]), token)

    def link(self, participant: str) -> InProcessLink:
        """Return an in-process line for a participant that lives with the coordinator."""
        self._local_names.add(participant)
        return self._local.link(participant)

    def start(self, on_message: _Callback) -> None:
        """Begin to accept and deliver."""
        self._on_message = on_message
        self._local.start(on_message)
        self._thread = threading.Thread(target=self._serve, name="stepseal-hub", daemon=True)
        self._thread.start()

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Queue a message; a participant that is not connected does not get it."""
        if participant in self._local_names:
            self._local.send(participant, message)
            return
        with self._lock:
            line = self._lines.get(participant)
            if line is None:
                return
            line.unsent += frame(messages.encode_message(message))
        self._wake()

    def close(self) -> None:
        """Flush for at most two seconds, then close every line."""
        self._closing.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(_FLUSH_S + 1.0)
        self._local.close()

    def _wake(self) -> None:
        try:
            self._wake_write.send(b"w")
        except (BlockingIOError, OSError):
            pass  # a full pipe wakes the thread as well; a closed one has no thread to wake

    def _serve(self) -> None:
        next_heartbeat = time.monotonic() + self._deadlines.heartbeat_s
        flush_until: float | None = None
        while True:
            now = time.monotonic()
            if self._closing.is_set():
                flush_until = flush_until or now + _FLUSH_S
                if now >= flush_until or not self._has_unsent():
                    break
            wait = max(0.0, min(next_heartbeat, flush_until or next_heartbeat) - now)
            self._watch_writes()
            for key, mask in self._selector.select(min(wait, 0.5)):
                self._on_ready(key, mask)
            now = time.monotonic()
            if now >= next_heartbeat:
                next_heartbeat = now + self._deadlines.heartbeat_s
                self._beat(now)
        self._shut()

    def _has_unsent(self) -> bool:
        with self._lock:
            return any(line.unsent for line in self._lines.values())

    def _watch_writes(self) -> None:
        with self._lock:
            lines = list(self._lines.values())
        for line in lines:
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.unsent else 0)
            if line.connection.fileno() >= 0:
                self._selector.modify(line.connection, mask, line)

    def _on_ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj is self._wake_read:
            self._drain_wake()
        else:
            line: _Line = key.data
            if mask & selectors.EVENT_READ:
                self._receive(line)
            if mask & selectors.EVENT_WRITE and line.connection.fileno() >= 0:
                self._transmit(line)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the peer gave up between the event and the accept
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now = time.monotonic()
        line = _Line(connection, now, now)
        self._all[connection.fileno()] = line
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _drain_wake(self) -> None:
        try:
            while self._wake_read.recv(4096):
                pass
        except BlockingIOError:
            pass  # drained

    def _receive(self, line: _Line) -> None:
        try:
            data = line.connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(line, f"connection failed: {error}")
            return
        if not data:
            self._drop(line, "connection closed: the process ended or left without a goodbye")
            return
        line.last_seen = time.monotonic()
        try:
            for body in line.reader.feed(data):
                self._take(line, messages.decode_from_participant(body))
        except errors.InvalidInput as error:
            self._drop(line, str(error))

    def _take(self, line: _Line, message: messages.FromParticipant) -> None:
        if line.participant is None:
            if not isinstance(message, messages.Hello) or not self._admit(line, message):
                raise errors.InvalidInput(
                    "control plane: expected Hello with the token of this job"
                )
            line.reader.max_bytes = MAX_FRAME_BYTES
        if self._on_message is not None and line.participant is not None:
            self._on_message(line.participant, message)

    def _admit(self, line: _Line, hello: messages.Hello) -> bool:
        good = hmac.compare_digest(hello.token.encode(), self._token.encode())
        if not good or hello.participant not in self._participants:
            return False
        if hello.participant in self._local_names:
            return False
        with self._lock:
            older = self._lines.pop(hello.participant, None)
            line.participant = hello.participant
            self._lines[hello.participant] = line
        if older is not None:
            older.participant = None  # replaced by a restarted participant: its end is no loss
            self._drop(older, "replaced by a new connection")
        return True

    def _transmit(self, line: _Line) -> None:
        try:
            with self._lock:
                sent = line.connection.send(line.unsent)
                del line.unsent[:sent]
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(line, f"connection failed: {error}")

    def _beat(self, now: float) -> None:
        data = frame(messages.encode_message(messages.Heartbeat()))
        for line in list(self._all.values()):
            silent_s = now - line.last_seen
            if silent_s > self._deadlines.lost_s:
                self._drop(line, f"no sign of life for {silent_s:.1f} s (stopped or unreachable)")
            elif line.participant is not None and len(line.unsent) < MAX_FRAME_BYTES:
                with self._lock:
                    line.unsent += data

    def _drop(self, line: _Line, why: str) -> None:
        self._all.pop(line.connection.fileno(), None)
        if line.connection.fileno() >= 0:
            self._selector.unregister(line.connection)
            line.connection.close()
        participant = line.participant
        line.participant = None
        if participant is None:
            return
        with self._lock:
            if self._lines.get(participant) is line:
                del self._lines[participant]
        if self._on_message is not None:
            self._on_message(participant, messages.Cause(errors.ParticipantFailed.kind, why))

    def _shut(self) -> None:
        self._on_message = None
        for line in list(self._all.values()):
            self._drop(line, "hub closed")
        for end in (self._listener, self._wake_read, self._wake_write):
            end.close()
        self._selector.close()


_Callback = Callable[[str, "messages.FromParticipant | messages.Cause"], None]


class SocketLink:
    """A participant's end of the control plane.

    Args:
        address: where the coordinator listens.
        participant: own id.
        deadlines: connection, heartbeat and loss limits.
        version: own library version, for the coordinator's records.

    Raises:
        CoordinatorLost: the coordinator cannot be reached within `connect_s`.
    """

    def __init__(
        self, address: Address, participant: str, deadlines: Deadlines, version: str
    ) -> None:
        self._participant = participant
        self._deadlines = deadlines
        self._send_lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._connection = socket.create_connection(
                (address.host, address.port), timeout=deadlines.connect_s
            )
        except OSError as error:
            raise errors.CoordinatorLost(
                f"control plane: {participant} cannot reach the coordinator at "
                f"{address.host}:{address.port} "
                f"within {deadlines.connect_s:g} s: {error}. Is the address reachable from this "
                "host?",
                participant=participant,
            ) from error
        self._connection.settimeout(deadlines.lost_s)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(messages.Hello(participant, address.token, version))

    def start(
        self, on_message: Callable[[messages.FromCoordinator | messages.Cause], None]
    ) -> None:
        """Begin to deliver messages from a thread of this link."""
        self._thread = threading.Thread(
            target=self._serve, args=(on_message,), name="stepseal-link", daemon=True
        )
        self._thread.start()

    def send(self, message: messages.FromParticipant) -> None:
        """Send a message; a dead line is noticed and reported by the receiving side."""
        data = frame(messages.encode_message(message))
        try:
            with self._send_lock:
                self._connection.sendall(data)
        except OSError:
            self._half_close()  # makes the receiving thread see the end and report it

    def close(self) -> None:
        """Close the connection."""
        self._closing.set()
        self._half_close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._connection.close()

    def _half_close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already closed by either side

    def _serve(
        self, on_message: Callable[[messages.FromCoordinator | messages.Cause], None]
    ) -> None:
        beat = threading.Thread(target=self._beat, name="stepseal-heartbeat", daemon=True)
        beat.start()
        reader = FrameReader(MAX_FRAME_BYTES)
        why = self._receive_all(reader, on_message)
        self._closing.set()
        on_message(messages.Cause(errors.CoordinatorLost.kind, why))

    def _receive_all(
        self,
        reader: FrameReader,
        on_message: Callable[[messages.FromCoordinator | messages.Cause], None],
    ) -> str:
        while True:
            try:
                data = self._connection.recv(_RECEIVE_BYTES)
            except TimeoutError:
                return f"no sign of life from the coordinator for {self._deadlines.lost_s:g} s"
            except OSError as error:
                return f"the connection to the coordinator failed: {error}"
            if not data:
                return "the coordinator closed the connection or its process ended"
            try:
                for body in reader.feed(data):
                    on_message(messages.decode_from_coordinator(body))
            except errors.InvalidInput as error:
                return str(error)

    def _beat(self) -> None:
        while not self._closing.wait(self._deadlines.heartbeat_s):
            self.send(messages.Heartbeat())
