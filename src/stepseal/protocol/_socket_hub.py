"""The coordinator's end of the control plane over TCP; one thread serves all connections.

The first message on a connection must be a short Hello with the right token; one Challenge may come
before it. Otherwise, or if it comes too late, the hub closes the connection. The number of
connections without Hello is bounded.
Each life of a participant has one connection; a second one is refused. No call blocks forever:
sends never block, memory for a peer that does not read is bounded, and a silent connection is
reported dead after `lost_s`.
"""

from __future__ import annotations

import hmac
import logging
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.process import OwnTime, drop_in_child, start_thread
from stepseal.protocol import _messages as messages
from stepseal.protocol._line import Line
from stepseal.protocol._transport import InProcessHub, InProcessLink
from stepseal.protocol._wire import MAX_MESSAGE_BYTES, address_of, pack_message, prove

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._transport import FromLinks

__all__ = ["SocketHub"]

_log = logging.getLogger("stepseal")
_RECEIVE_BYTES = 1 << 16
_MAX_STRANGERS = 64
"""Connections that may wait to say Hello, besides one per participant."""
_BACKLOG = 64
"""Connections that the kernel keeps until they are accepted, besides one per participant."""
_FLUSH_S = 2.0
_PAUSE_S = 0.05
"""Seconds between a failed accept and the next, so that a process without descriptors is idle."""


class SocketHub:
    """Connections to participants in other processes and in the coordinator's own process.

    Args:
        host: address to listen on, at a port that the system chooses; or sockets that listen, which
            the hub closes.
        participants: ids that may connect from the start; others follow with `admit`.
        token: secret that Hello must contain.
        deadlines: heartbeat and loss limits.
        version: release that every participant must run; None accepts any.

    Raises:
        OSError: the hub cannot listen on the address.
    """

    def __init__(
        self,
        host: str | Sequence[socket.socket],
        participants: tuple[str, ...],
        token: str,
        deadlines: Deadlines,
        version: str | None = None,
    ) -> None:
        self._expected = dict.fromkeys(participants, "")
        """Participant to the life in which it may connect."""
        self._ending: list[Line] = []
        """Lines of lives that are over."""
        self._token = token
        self._deadlines = deadlines
        self._version = version
        self._max_strangers = len(participants) + _MAX_STRANGERS
        self._local = InProcessHub()
        self._local_names: set[str] = set()
        self._lines: dict[str, Line] = {}
        self._lock = threading.Lock()  # guards the lines' `unsent` and who has a line
        self._changed: dict[Line, None] = {}
        """Lines that have something new to send, or nothing any more."""
        self._known: set[str] = set()
        self._strangers: dict[Line, None] = {}
        self._closing = threading.Event()
        self._own_time_s = OwnTime(deadlines.heartbeat_s)
        if isinstance(host, str):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            host = (socket.create_server((host, 0), family=family),)
        self._listeners = frozenset(host)
        for listener in host:
            listener.listen(min(4096, len(participants) + _BACKLOG))
            listener.setblocking(False)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for listener in host:
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread: threading.Thread | None = None
        self._on_message: FromLinks | None = None
        drop_in_child(self)
        self.addresses = tuple(address_of(listener, token) for listener in host)
        self.address = self.addresses[0]

    def link(self, participant: str, life: str = "") -> InProcessLink:
        """Return an in-process link for a participant in the coordinator's process."""
        self._local_names.add(participant)
        return self._local.link(participant, life)

    def admit(self, participant: str, life: str) -> None:
        """Let a participant connect in a new life, and close the line of the one before."""
        if participant in self._local_names:
            self._local.admit(participant, life)
            return
        with self._lock:
            self._expected[participant] = life
            self._end_line(participant)
        self._wake()

    def _end_line(self, participant: str) -> None:
        self._known.discard(participant)
        line = self._lines.pop(participant, None)
        if line is not None:
            self._ending.append(line)

    def start(self, on_message: FromLinks) -> None:
        """Begin to accept connections and to deliver messages."""
        self._on_message = on_message
        self._local.start(on_message)
        thread = threading.Thread(target=self._serve, name="stepseal-hub", daemon=True)
        start_thread(thread)
        self._thread = thread

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Queue a message; drop it if the participant is not connected."""
        if participant in self._local_names:
            self._local.send(participant, message)
            return
        data = pack_message(messages.encode_message(message))
        with self._lock:
            line = self._lines.get(participant)
            if line is not None:
                self._queue(line, data)
            if isinstance(message, messages.Dismiss):
                self._expected.pop(participant, None)
                self._end_line(participant)
        self._wake()

    def _queue(self, line: Line, data: bytes) -> None:
        line.queue(data)
        self._changed[line] = None

    def close(self) -> None:
        """Flush for at most two seconds, then close every connection. Idempotent."""
        already = self._closing.is_set()
        self._closing.set()
        if self._thread is not None:
            self._wake()
            self._thread.join(_FLUSH_S + 1.0)
        elif not already:
            self._shut()
        self._local.close()

    def _wake(self) -> None:
        with suppress(OSError):  # a full pipe wakes the thread as well; a closed one has none
            self._wake_write.send(b"w")

    def _serve(self) -> None:
        try:
            self._serve_until_closed()
        except Exception:
            _log.exception("stepseal: defect in the control plane; all connections are closed")
            for line in self._all():
                self._drop(line, "the coordinator's control plane failed")
        finally:
            self._shut()

    def _serve_until_closed(self) -> None:
        next_beat = time.monotonic() + self._deadlines.heartbeat_s
        flush_until = float("inf")
        while True:
            now = time.monotonic()
            if self._closing.is_set():
                flush_until = min(flush_until, now + _FLUSH_S)
                if now >= flush_until or not self._has_unsent():
                    return
            self._watch_writes()
            self._close_ended()
            self._read_ready(max(0.0, min(next_beat, flush_until) - now))
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + self._deadlines.heartbeat_s
                self._judge()

    def _judge(self) -> None:
        """Drop who is silent, after reading what came while this process was stopped."""
        self._read_ready(0.0)
        self._beat(self._own_time_s())

    def _read_ready(self, limit_s: float) -> None:
        for key, mask in self._selector.select(limit_s):
            self._on_ready(key, mask)

    def _all(self) -> list[Line]:
        return [*self._strangers, *self._lines.values(), *self._ending]

    def _close_ended(self) -> None:
        """Send what is left to lives that are over, as far as they take it at once, and close."""
        with self._lock:
            ended, self._ending = self._ending, []
        for line in ended:
            if line.unsent:
                self._transmit(line)
            self._drop(line, "this life was replaced or released")

    def _has_unsent(self) -> bool:
        with self._lock:
            return any(line.unsent for line in self._lines.values())

    def _watch_writes(self) -> None:
        """Look after the lines that have changed, and not after all of them each time."""
        with self._lock:
            waiting = [(line, bool(line.unsent)) for line in self._changed if line.is_open]
            self._changed.clear()
        for line, has_unsent in waiting:
            if line.stuck:
                self._drop(line, f"does not read: {len(line.unsent)} bytes wait to be sent")
                continue
            write = selectors.EVENT_WRITE if has_unsent else 0
            self._selector.modify(line.connection, selectors.EVENT_READ | write, line)

    def _on_ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj in self._listeners:
            assert isinstance(key.fileobj, socket.socket)
            self._accept(key.fileobj)
        elif key.fileobj is self._wake_read:
            with suppress(BlockingIOError):  # drained
                while self._wake_read.recv(4096):
                    pass
        else:
            line: Line = key.data
            if mask & selectors.EVENT_READ:
                self._receive(line)
            if mask & selectors.EVENT_WRITE and line.is_open:
                self._transmit(line)

    def _accept(self, listener: socket.socket) -> None:
        if len(self._strangers) >= self._max_strangers:
            self._drop(next(iter(self._strangers)), "too many connections without Hello")
        try:
            connection, _ = listener.accept()
        except OSError:  # the peer gave up meanwhile, or there are no descriptors left
            for line in list(self._strangers):
                self._drop(line, "no descriptors left")
            self._closing.wait(_PAUSE_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        now = self._own_time_s()
        line = Line(connection, now, now)
        self._strangers[line] = None
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _receive(self, line: Line) -> None:
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
        line.last_seen = self._own_time_s()
        line.reader.feed(data)
        try:
            while line.is_open and (body := line.reader.take()) is not None:
                self._take(line, messages.decode_from_participant(body))
        except errors.InvalidInput as error:
            self._drop(line, str(error))

    def _take(self, line: Line, message: messages.FromParticipant) -> None:
        if line.participant is None:
            if isinstance(message, messages.Challenge):
                self._prove(line, message)
                return
            if not self._admit(line, message):
                return
        elif isinstance(message, (messages.Hello, messages.Challenge)):
            raise errors.InvalidInput("control plane: expected one Hello, found a second")
        elif isinstance(message, messages.Heartbeat):
            return
        assert self._on_message is not None
        assert line.participant is not None
        self._on_message(line.participant, message, line.life)

    def _prove(self, line: Line, challenge: messages.Challenge) -> None:
        """Show a stranger that this hub knows the token; a second time is refused."""
        if line.challenged:
            raise errors.InvalidInput("control plane: expected Hello, found a second Challenge")
        line.challenged = True
        line.say_first(messages.Proof(prove(self._token, challenge.nonce)))

    def _admit(self, line: Line, message: messages.FromParticipant) -> bool:
        """Accept a Hello, or raise; False if the connection was closed at once."""
        if not isinstance(message, messages.Hello) or not self._knows(message):
            raise errors.InvalidInput("control plane: expected Hello with the token of this job")
        name = message.participant
        with self._lock:  # a new life may be admitted at any time
            known = name in self._known or name in self._local_names
            current = self._expected.get(name) == message.life
            if current and not known:
                self._known.add(name)
                self._lines[name] = line
        if known or not current:
            _log.warning("stepseal: %s connected twice; the second connection was refused", name)
            raise errors.InvalidInput(f"control plane: {name} has already connected")
        del self._strangers[line]
        line.participant, line.life = name, message.life
        line.reader.max_bytes = MAX_MESSAGE_BYTES
        if self._version in (None, message.version):
            return True
        self._refuse(line, name, message.version)
        return False

    def _refuse(self, line: Line, name: str, version: str) -> None:
        """Close the connection of a participant with another release, and report why to all."""
        text = (
            f"control plane: {name} runs stepseal {version!r:.80}: expected {self._version!r}, as "
            "the coordinator does. Install the same release everywhere."
        )
        line.say_first(messages.Refused(errors.InvalidInput.kind, text))
        self._drop(line, text, errors.InvalidInput.kind)

    def _knows(self, hello: messages.Hello) -> bool:
        good = hmac.compare_digest(hello.token.encode(), self._token.encode())
        return good and self._expected.get(hello.participant) == hello.life

    def _transmit(self, line: Line) -> None:
        try:
            with self._lock:
                sent = line.connection.send(line.unsent)
                del line.unsent[:sent]
                if not line.unsent:
                    self._changed[line] = None
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(line, f"connection failed: {error}")

    def _beat(self, now: float) -> None:
        data = pack_message(messages.encode_message(messages.Heartbeat()))
        for line in self._all():
            since = line.opened_at if line.participant is None else line.last_seen
            if now - since > self._deadlines.lost_s:
                self._drop(line, f"no sign of life for {now - since:.1f} s (stopped or cut off)")
            elif line.participant is not None:
                with self._lock:
                    self._queue(line, data)

    def _drop(self, line: Line, why: str, kind: str = errors.ParticipantFailed.kind) -> None:
        if not line.is_open:
            return
        self._strangers.pop(line, None)
        self._selector.unregister(line.connection)
        line.connection.close()
        participant = line.participant
        if participant is None:
            return
        with self._lock:
            if self._lines.get(participant) is line:
                del self._lines[participant]
        if self._on_message is not None:
            self._on_message(participant, messages.Failure(kind, why), line.life)

    def forget(self) -> None:
        """Close the descriptors of a forked child, whose parent goes on with the connections.

        The child shares the parent's selector, too: nothing is unregistered.
        """
        lines = [line.connection for line in self._all()]
        for end in (*lines, *self._listeners, self._wake_read, self._wake_write):
            end.close()
        self._selector.close()

    def _shut(self) -> None:
        self._on_message = None
        for line in self._all():
            self._drop(line, "hub closed")
        for end in (*self._listeners, self._wake_read, self._wake_write):
            end.close()
        self._selector.close()
