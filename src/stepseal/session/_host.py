"""What this process's host is, and which addresses it has, as the kernel says it.

A host is one machine and network namespace: its processes share loopback, ports and addresses. Its
name says nothing about that: containers of one machine have many names, and machines of one image
have one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["boot_id", "host_id", "is_loopback", "own_addresses"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/net")
_WAIT_S = 2.0
_RECEIVE_BYTES = 1 << 17
# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_GET_ADDRESSES, _NEW_ADDRESS, _DONE, _ERROR = 22, 20, 3, 2
_REQUEST_DUMP = 0x301
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
_ABOUT = struct.Struct("=BBBBI")  # family, prefix, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def boot_id() -> str:
    """Return what names this machine since it was started; containers on it share it.

    Raises:
        OSError: not Linux, or a sandbox that hides it.
    """
    return _BOOT_ID.read_text("ascii").strip()


def host_id() -> str:
    """Return what all processes of this host have in common, and those of no other host.

    Linux: boot and network namespace. Elsewhere: the hardware address of a network interface.
    """
    try:
        space = _NAMESPACE.stat()
        return f"{boot_id()}/{space.st_dev}/{space.st_ino}"
    except OSError:  # not Linux, or a sandbox that hides it
        return f"{uuid.getnode():012x}"


def own_addresses(towards: str | None) -> list[str]:
    """Return every address by which another host may reach this one, best first.

    Not among them: loopback, and link-local IPv6, which means something only together with an
    interface of the other host.

    Args:
        towards: a host that all others reach; the address that this host uses towards it is first.
    """
    first = [] if towards is None else _addresses_towards(towards)
    found = [*first, *_addresses_here()]
    return [address for address in dict.fromkeys(found) if _is_reachable(address)]


def is_loopback(address: str) -> bool:
    """Return whether a numeric address is one of loopback."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_reachable(address: str) -> bool:
    value = ipaddress.ip_address(address.partition("%")[0])
    is_local = value.is_loopback or value.is_unspecified or value.is_multicast
    return not is_local and not (value.version == 6 and value.is_link_local)


def _addresses_towards(host: str) -> list[str]:
    """Return the own addresses that the kernel's routes choose towards a host; nothing is sent."""
    own = []
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, _, _, place in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(place)
                own.append(str(probe.getsockname()[0]))
    return own


def _addresses_here() -> list[str]:
    if hasattr(socket, "AF_NETLINK"):
        with contextlib.suppress(OSError, struct.error):
            return list(_ask_kernel())
    found = []
    with contextlib.suppress(OSError, UnicodeError):  # macOS; the own name may lead nowhere
        for _, _, _, _, place in socket.getaddrinfo(socket.gethostname(), None):
            found.append(str(place[0]))
    return found + _addresses_towards("192.0.2.1") + _addresses_towards("2001:db8::1")


def _ask_kernel() -> Iterator[str]:
    """Yield the addresses of all interfaces, IPv4 first. Source: rtnetlink(7)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.settimeout(_WAIT_S)
        body = _ABOUT.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        size_bytes = _HEADER.size + len(body)
        kernel.sendto(_HEADER.pack(size_bytes, _GET_ADDRESSES, _REQUEST_DUMP, 1, 0) + body, (0, 0))
        while True:
            for kind, message in _messages(kernel.recv(_RECEIVE_BYTES)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError("the kernel does not list the addresses of interfaces")
                if kind == _NEW_ADDRESS:
                    yield from _address_in(message)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size_bytes, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size_bytes]
        data = data[max(_HEADER.size, -(-size_bytes // 4) * 4) :]


def _address_in(message: bytes) -> Iterable[str]:
    """Return the address that a message tells about: the own end, on a point-to-point line."""
    family, *_ = _ABOUT.unpack_from(message)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return ()
    found: dict[int, bytes] = {}
    rest = message[_ABOUT.size :]
    while len(rest) >= _ATTRIBUTE.size:
        size_bytes, kind = _ATTRIBUTE.unpack_from(rest)
        found[kind] = rest[_ATTRIBUTE.size : size_bytes]
        rest = rest[max(_ATTRIBUTE.size, -(-size_bytes // 4) * 4) :]
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    return () if packed is None else (socket.inet_ntop(family, packed),)
