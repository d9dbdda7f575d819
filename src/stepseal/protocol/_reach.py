"""Finds the coordinator among several addresses: whoever proves first that it knows the token.

Addresses are tried side by side, each a little later than the one before, so that one that answers
nothing costs little. Nobody is sent the token: an address of rank 0 can belong to somebody else as
seen from another host (a bridge of containers has the same address on every host).
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import selectors
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import MAX_HELLO_BYTES, MessageReader, pack_message, prove

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepseal.protocol._wire import Address

__all__ = ["place_of", "reach"]

_STAGGER_S = 0.25
"""Between two addresses; so the first one wins wherever it can (RFC 8305)."""
_RECEIVE_BYTES = 4096
_STRANGER = "somebody else listens there"


@dataclass(eq=False, slots=True)
class _Try:
    """One address, and how far the attempt to reach it is."""

    address: Address
    starts_at: float
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    reader: MessageReader = field(default_factory=lambda: MessageReader(MAX_HELLO_BYTES))
    connection: socket.socket | None = None
    asked: bool = False
    """It is connected, and was asked for its proof."""
    failure: str | None = None


def reach(addresses: Sequence[Address], participant: str, limit_s: float) -> socket.socket:
    """Return a connection to the coordinator, over the first address that proves to be its.

    Blocks. The other connections are closed. On the one returned, `Hello` is still to be sent.

    Args:
        addresses: where the coordinator listens, best first.
        participant: own id, for messages.
        limit_s: seconds to try.

    Raises:
        CoordinatorLost: no address leads to the coordinator; `problems` has one line for each.
    """
    begun = time.monotonic()
    tries = [_Try(address, begun + i * _STAGGER_S) for i, address in enumerate(addresses)]
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        while waiting := [one for one in tries if one.failure is None]:
            now = time.monotonic()
            if now >= begun + limit_s:
                break
            for one in waiting:
                if one.connection is None and now >= one.starts_at:
                    _start(one, selector, stack)
            pending = [one.starts_at for one in waiting if one.connection is None]
            wake_at = min([begun + limit_s, *(at for at in pending if at > now)])
            for key, _ in selector.select(wake_at - now):
                if _advance(key.data, selector):
                    return _kept(key.data, selector)
    raise _unreachable(tries, participant, limit_s)


def _start(one: _Try, selector: selectors.BaseSelector, stack: ExitStack) -> None:
    """Begin to connect to a numeric address; nothing is looked up, which could take long."""
    kind, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
    try:
        found = socket.getaddrinfo(one.address.host, one.address.port, type=kind, flags=numeric)
        family, kind, protocol, _, place = found[0]
        one.connection = stack.enter_context(socket.socket(family, kind, protocol))
        one.connection.setblocking(False)
        code = one.connection.connect_ex(place)
    except OSError as error:
        one.failure = str(error)
        return
    if code in (0, errno.EINPROGRESS):
        selector.register(one.connection, selectors.EVENT_WRITE, one)
    else:
        one.failure = os.strerror(code)


def _advance(one: _Try, selector: selectors.BaseSelector) -> bool:
    """Take the next step of an attempt; True once the other side proved itself."""
    assert one.connection is not None
    try:
        if not one.asked:
            _ask(one, one.connection)
            selector.modify(one.connection, selectors.EVENT_READ, one)
            return False
        data = one.connection.recv(_RECEIVE_BYTES)
        one.reader.feed(data)
        body = one.reader.take()
        if body is not None:
            found = messages.decode_from_coordinator(body)
            expected = prove(one.address.token, one.nonce)
            if isinstance(found, messages.Proof) and hmac.compare_digest(found.digest, expected):
                return True
        if body is not None or not data:
            one.failure = _STRANGER
    except OSError as error:
        one.failure = error.strerror or str(error)
    except errors.InvalidInput:
        one.failure = _STRANGER
    if one.failure is not None:
        selector.unregister(one.connection)
    return False


def _ask(one: _Try, connection: socket.socket) -> None:
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    challenge = messages.encode_message(messages.Challenge(one.nonce))
    connection.send(pack_message(challenge))  # the first bytes on a connection always fit
    one.asked = True


def _kept(one: _Try, selector: selectors.BaseSelector) -> socket.socket:
    """Return the connection of this attempt as one that outlives the attempt."""
    assert one.connection is not None
    selector.unregister(one.connection)
    connection = one.connection.dup()
    connection.setblocking(True)
    return connection


def _unreachable(tries: list[_Try], participant: str, limit_s: float) -> errors.CoordinatorLost:
    problems = []
    for one in tries:
        quiet = f"{'connected, but ' if one.asked else ''}no answer within {limit_s:.3g} s"
        why = one.failure or ("not tried in time" if one.connection is None else quiet)
        problems.append(f"{place_of(one.address)}: {why}")
    return errors.CoordinatorLost(
        f"control plane: {participant} cannot reach the coordinator; tried {'; '.join(problems)}. "
        "Does a firewall allow these ports (set control_port= to choose them)? If rank 0 has "
        "another address that this host can reach, pass it as control_host=.",
        participant=participant,
        problems=problems,
    )


def place_of(address: Address) -> str:
    """Return host and port as one writes them, an IPv6 address in brackets."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
