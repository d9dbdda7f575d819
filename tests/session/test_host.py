"""What the kernel says about this host: who shares it, and which addresses it has."""

from __future__ import annotations

import ipaddress
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from stepseal.session import _host
from stepseal.session._host import host_id, is_loopback, own_addresses


def test_processes_of_one_host_say_the_same() -> None:
    code = "from stepseal.session._host import host_id; print(host_id())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == host_id()


def test_the_name_of_the_host_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    before = host_id()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert host_id() == before


def test_where_the_kernel_tells_nothing_hardware_names_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_host, "_BOOT_ID", Path("/nowhere/boot_id"))
    found = host_id()
    assert len(found) == 12
    assert found == host_id()


def test_own_addresses_can_be_listened_on_and_are_not_loopback() -> None:
    for address in own_addresses(None):
        assert not is_loopback(address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        socket.create_server((address, 0), family=family).close()


def test_the_address_towards_the_store_is_first() -> None:
    own = own_addresses(None)
    for address in own:
        assert own_addresses(address) == [address, *(one for one in own if one != address)]


@pytest.mark.parametrize("towards", ["127.0.0.1", "localhost", "no-such-host.invalid", "", "::1"])
def test_a_store_that_tells_nothing_changes_nothing(towards: str) -> None:
    assert own_addresses(towards) == own_addresses(None)


def message_of(family: int, *attributes: tuple[int, bytes]) -> bytes:
    body = _host._ABOUT.pack(family, 24, 0, 0, 1)
    for kind, value in attributes:
        entry = _host._ATTRIBUTE.pack(_host._ATTRIBUTE.size + len(value), kind) + value
        body += entry + bytes(-len(entry) % 4)
    return body


def test_a_line_between_two_ends_gives_the_own_end() -> None:
    peer, own = socket.inet_aton("10.0.0.9"), socket.inet_aton("10.0.0.1")
    message = message_of(socket.AF_INET, (3, b"eth0:1\0"), (1, peer), (2, own))
    assert tuple(_host._address_in(message)) == ("10.0.0.1",)
    six = message_of(socket.AF_INET6, (1, ipaddress.ip_address("fd00::1").packed))
    assert tuple(_host._address_in(six)) == ("fd00::1",)
    assert tuple(_host._address_in(message_of(socket.AF_INET))) == ()
    assert tuple(_host._address_in(message_of(7, (1, own)))) == ()


def test_messages_of_the_kernel_are_split_and_end_even_if_a_length_is_wrong() -> None:
    first = _host._HEADER.pack(_host._HEADER.size + 3, 20, 0, 1, 0) + b"abc\0"
    assert list(_host._messages(first + _host._HEADER.pack(0, 3, 0, 1, 0))) == [
        (20, b"abc"),
        (3, b""),
    ]


def test_without_netlink_name_and_routes_tell_the_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_kernel = own_addresses(None)
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert set(own_addresses(None)) <= set(by_kernel)


def test_a_kernel_that_lists_nothing_is_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_GET_ADDRESSES", 0xFFF)
    own_addresses(None)
    with pytest.raises((OSError, struct.error)):
        list(_host._ask_kernel())
