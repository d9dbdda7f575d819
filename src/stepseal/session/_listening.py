"""Where rank 0 listens for the other ranks: which addresses, which ports.

Nothing is bound that no rank needs: loopback alone where all ranks are on one host, else exactly
the addresses that are offered, never a wildcard. Every failure names the argument at fault and all
addresses that were tried.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, CoordinatorLost, InvalidInput
from stepseal.session._host import is_loopback, own_addresses

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ControlAddress", "choose_hosts", "open_listeners"]

_log = logging.getLogger("stepseal")
_MAX_ADDRESSES = 32
"""Addresses that are offered at most: some hosts bear an address for each service of a cluster."""
_LOOPBACKS = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """What the user says about the place of the control plane; rank 0's counts.

    Raises:
        InvalidInput: one of them cannot be meant.
    """

    host: str | None = None
    """Address or name of rank 0, or None; brackets around IPv6 are taken away."""
    port: int | range | None = None
    """Port, or range of ports; None lets the system choose."""

    def __post_init__(self) -> None:
        if self.host is not None:
            object.__setattr__(self, "host", _checked_host(self.host))
        if self.port is not None:
            _check_port(self.port)

    @property
    def ports(self) -> Sequence[int]:
        """Ports to try, in order; 0 lets the system choose."""
        if self.port is None:
            return (0,)
        return self.port if isinstance(self.port, range) else (self.port,)

    def __str__(self) -> str:
        """Return the arguments that are set, as in a call."""
        set_ones = (("control_host", self.host), ("control_port", self.port))
        return ", ".join(f"{name}={value!r}" for name, value in set_ones if value is not None)


def _checked_host(host: object) -> str:
    """Return a name or numeric address without brackets."""
    if isinstance(host, str):
        bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
        address = _as_address(bare)
        if address is not None and (bare == host or address.version == 6):
            return bare
        if bare == host and bare and not set(bare) & set("[]:/, \t\n"):
            return bare
    advice = " Pass the port as control_port=." if isinstance(host, str) and ":" in host else ""
    raise InvalidInput(
        f"control_host={host!r}: expected a host name, or an IPv4 or IPv6 address of "
        f"rank 0.{advice}",
        expected="host name or address",
        found=host,
    )


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _check_port(port: object) -> None:
    ends: Sequence[object] = (port,)
    if isinstance(port, range):
        ends = (port[0], port[-1]) if port else (None,)
    for end in ends:
        if not isinstance(end, int) or isinstance(end, bool) or not 0 < end < 1 << 16:
            raise InvalidInput(
                f"control_port={port!r}: expected a port from 1 to 65535, or a range of them such "
                "as range(29600, 29700)",
                expected="1 <= port <= 65535",
                found=port,
            )


def choose_hosts(control: ControlAddress, *, one_host: bool, towards: str | None) -> list[str]:
    """Return the numeric addresses to listen on, best first.

    Args:
        control: what the user says.
        one_host: all ranks are on this host.
        towards: host of the process group's store, if it has one.

    Raises:
        InvalidInput: `control.host` leads nowhere, or to loopback with ranks on other hosts.
        CoordinatorLost: this host has no address but loopback, and ranks are on other hosts.
    """
    if control.host is None:
        return [_loopback()] if one_host else _offered(control, one_host=False, towards=towards)
    found = _look_up(control.host)
    if _is_wildcard(found[0]):
        family = "." if "." in found[0] else ":."
        return _offered(control, one_host=one_host, towards=towards, family=family)
    outside = [address for address in found if not is_loopback(address)]
    if not one_host and not outside:
        raise InvalidInput(
            f"control_host={control.host!r}: it leads to {', '.join(found)}, which ranks on other "
            f"hosts cannot reach. {_what_there_is()}",
            expected="an address that the other hosts reach",
            found=control.host,
        )
    return found if one_host else outside


def _offered(
    control: ControlAddress, *, one_host: bool, towards: str | None, family: str = ":."
) -> list[str]:
    """Return the own addresses; `family` holds a character of each address that is wanted."""
    own = [address for address in own_addresses(towards) if set(address) & set(family)]
    if own:
        return own[:_MAX_ADDRESSES]
    if one_host:
        return [_loopback()]
    about = f"{control}: " if control.host else ""
    raise CoordinatorLost(
        f"control plane: {about}ranks are on other hosts, but rank 0's host has no address that "
        "they could reach, only loopback. Is its network up?"
    )


def _is_wildcard(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_unspecified


def _look_up(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(
            f"control_host={host!r}: rank 0 cannot resolve it: {error}. {_what_there_is()}",
            expected="an address of rank 0",
            found=host,
        ) from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _what_there_is() -> str:
    own = own_addresses(None)[:_MAX_ADDRESSES]
    return f"Addresses of rank 0's host: {', '.join(own) or 'none but loopback'}."


def _loopback() -> str:
    for host in _LOOPBACKS:
        with contextlib.suppress(OSError):
            _listen(host, 0).close()
            return host
    return _LOOPBACKS[0]


def open_listeners(control: ControlAddress, hosts: Sequence[str]) -> list[socket.socket]:
    """Return a socket for each address that can be listened on, in the same order.

    A port that the user chose must be free at the best address at least: the others may lie behind
    a firewall.

    Raises:
        InvalidInput: none of them can, at the host or port that the user chose, or the port is
            taken at the best one; `problems` has one line for each address.
        CoordinatorLost: none of them can, and the user chose nothing.
    """
    found = [_open_one(host, control.ports) for host in hosts]
    opened = [one for one in found if not isinstance(one, str)]
    problems = [
        f"{host}: {one}" for host, one in zip(hosts, found, strict=True) if isinstance(one, str)
    ]
    if not opened or (control.port is not None and isinstance(found[0], str)):
        for one in opened:
            one.close()
        raise _cannot_listen(control, problems)
    if problems:
        _log.info("stepseal: control plane: not offered: %s", "; ".join(problems))
    return opened


def _open_one(host: str, ports: Sequence[int]) -> socket.socket | str:
    """Return a socket at the first port that is free, or why there is none."""
    why = ""
    for port in ports:
        try:
            return _listen(host, port)
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno != errno.EADDRINUSE:
                return why
    return why if len(ports) == 1 else f"none of {len(ports)} ports is free"


def _listen(host: str, port: int) -> socket.socket:
    kind, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
    family, *_, place = socket.getaddrinfo(host, port, type=kind, flags=numeric)[0]
    return socket.create_server(place, family=family)


def _cannot_listen(control: ControlAddress, problems: list[str]) -> CheckpointError:
    tried = "; ".join(problems)
    if not str(control):
        text = f"control plane: rank 0 cannot listen for the other ranks; tried {tried}"
        return CoordinatorLost(text, problems=problems)
    advice = "" if control.port is None else " Choose another port, or a range of them."
    return InvalidInput(
        f"{control}: rank 0 cannot listen there; tried {tried}. {_what_there_is()}{advice}",
        expected="an address of rank 0 and a free port",
        found=str(control),
        problems=problems,
    )
