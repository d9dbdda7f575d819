"""Where rank 0 listens, and what it says about a place where it cannot."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import stepseal as ss
from stepseal import errors
from stepseal.session import _listening
from stepseal.session._host import is_loopback
from stepseal.session._listening import ControlAddress, choose_hosts, open_listeners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN = ["10.0.0.1", "10.1.0.1", "fd00::1"]


@pytest.fixture
def two_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this host the addresses `OWN`."""
    monkeypatch.setattr(_listening, "own_addresses", lambda _: list(OWN))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def choose(
    host: str | None = None, *, one_host: bool = False, towards: str | None = None
) -> list[str]:
    return choose_hosts(ControlAddress(host), one_host=one_host, towards=towards)


def names_of(host: str, *addresses: str) -> Any:  # noqa: ANN401 - in place of getaddrinfo
    real = socket.getaddrinfo

    def look_up(name: str, *others: Any, **settings: Any) -> Any:  # noqa: ANN401 - as the real one
        assert name != socket.gethostname()
        if name != host:
            return real(name, *others, **settings)
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    return look_up


BAD_HOSTS = [
    "", " ", "host:29600", "10.0.0.1:29600", "[::1]:29600", "[host]", "[10.0.0.1]", "a b",
    "http://host", "[::1", "a,b", "host\n", 7, b"host", "::1::",
]  # fmt: skip
BAD_PORTS = [0, -1, 65536, True, "29600", 29600.0, (29600, 29700), range(0), range(65530, 65537)]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_cannot_be_meant_is_refused_and_named(tmp_path: Path, host: Any) -> None:  # noqa: ANN401
    with pytest.raises(errors.InvalidInput, match="control_host=") as caught:
        ss.Checkpointer(tmp_path / "root", control_host=host)
    assert repr(host) in str(caught.value)
    assert caught.value.found == host
    assert ("control_port=" in str(caught.value)) == (isinstance(host, str) and ":" in host)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("port", BAD_PORTS)
def test_a_port_that_cannot_be_meant_is_refused_and_named(tmp_path: Path, port: Any) -> None:  # noqa: ANN401
    with pytest.raises(errors.InvalidInput, match="control_port=") as caught:
        ss.Checkpointer(tmp_path / "root", control_port=port)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize("host", ["::1", "[::1]", "fe80::1%eth0", "127.0.0.1", "a-b.example", "0"])
def test_brackets_around_ipv6_are_understood(host: str) -> None:
    assert ControlAddress(host).host == host.strip("[]")


def test_ports_to_try() -> None:
    assert list(ControlAddress().ports) == [0]
    assert list(ControlAddress(port=29600).ports) == [29600]
    assert list(ControlAddress(port=range(1, 4)).ports) == [1, 2, 3]


@pytest.mark.usefixtures("two_interfaces")
def test_one_host_takes_loopback_and_several_take_every_address() -> None:
    assert is_loopback(choose(one_host=True)[0])
    assert choose() == OWN


def test_the_store_leads_to_the_first_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listening, "own_addresses", lambda host: [f"towards {host}", *OWN])
    assert choose(towards="10.1.0.7")[0] == "towards 10.1.0.7"


def test_the_number_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"10.0.{high}.{low}" for high in range(8) for low in range(1, 250)]
    monkeypatch.setattr(_listening, "own_addresses", lambda _: many)
    assert choose() == many[:32]


@pytest.mark.usefixtures("two_interfaces")
def test_a_wildcard_is_replaced_by_real_addresses() -> None:
    for one_host in (False, True):
        assert choose("0.0.0.0", one_host=one_host) == OWN[:2]
        assert choose("::", one_host=one_host) == OWN
        assert choose("[::]", one_host=one_host) == OWN


def test_without_a_network_one_host_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listening, "own_addresses", lambda _: [])
    assert is_loopback(choose("0.0.0.0", one_host=True)[0])
    for host in (None, "0.0.0.0"):
        with pytest.raises(errors.CoordinatorLost, match="only loopback") as caught:
            choose(host)
        assert (host is None) != ("control_host='0.0.0.0'" in str(caught.value))


@pytest.mark.usefixtures("two_interfaces")
def test_a_name_is_looked_up_for_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    found = names_of("head", "127.0.1.1", "10.0.0.1", "fd00::1", "10.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert choose("head") == ["10.0.0.1", "fd00::1"]
    assert choose("head", one_host=True) == ["127.0.1.1", "10.0.0.1", "fd00::1"]


@pytest.mark.usefixtures("two_interfaces")
def test_a_name_that_leads_to_loopback_is_no_place_for_other_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", names_of("head", "127.0.1.1"))
    with pytest.raises(errors.InvalidInput, match="control_host='head'") as caught:
        choose("head")
    assert "127.0.1.1" in str(caught.value)
    assert ", ".join(OWN) in str(caught.value)


def test_a_name_that_leads_nowhere_is_named() -> None:
    with pytest.raises(errors.InvalidInput, match=r"control_host=.no-such-host\.invalid"):
        choose("no-such-host.invalid")


def test_an_address_of_somebody_else_is_named_with_the_own_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_listening, "own_addresses", lambda _: list(OWN))
    control = ControlAddress("203.0.113.7")
    with pytest.raises(errors.InvalidInput, match=r"control_host=.203\.0\.113\.7") as caught:
        open_listeners(control, choose_hosts(control, one_host=False, towards=None))
    assert "203.0.113.7: " in caught.value.problems[0]
    assert ", ".join(OWN) in str(caught.value)


def test_a_taken_port_is_refused_and_a_range_goes_on_to_the_next(stack: ExitStack) -> None:
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = taken.getsockname()[1]
    with pytest.raises(errors.InvalidInput, match=f"control_port={port}") as caught:
        open_listeners(ControlAddress(port=port), ["127.0.0.1"])
    assert "in use" in caught.value.problems[0]
    assert "another port" in str(caught.value)
    ports = range(port, min(port + 50, 65536))
    (found,) = open_listeners(ControlAddress(port=ports), ["127.0.0.1"])
    with found:
        assert found.getsockname()[1] in ports
    other = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
    both = range(min(port, other), max(port, other) + 1, abs(port - other))
    with pytest.raises(errors.InvalidInput, match="none of 2 ports is free"):
        open_listeners(ControlAddress(port=both), ["127.0.0.1"])


def test_a_port_that_is_taken_at_the_best_address_is_refused_though_others_are_free(
    stack: ExitStack,
) -> None:
    taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = taken.getsockname()[1]
    with pytest.raises(errors.InvalidInput, match=r"127\.0\.0\.1: ") as caught:
        open_listeners(ControlAddress(port=port), ["127.0.0.1", "127.0.0.2"])
    assert len(caught.value.problems) == 1
    socket.create_server(("127.0.0.2", port)).close()  # nothing was left behind
    (found,) = open_listeners(ControlAddress(port=port), ["127.0.0.2", "127.0.0.1"])
    found.close()


def test_an_address_that_cannot_be_bound_does_not_stop_the_others() -> None:
    (found,) = open_listeners(ControlAddress(), ["203.0.113.7", "127.0.0.1"])
    with found:
        assert found.getsockname()[0] == "127.0.0.1"
    with pytest.raises(errors.CoordinatorLost, match=r"203\.0\.113\.7: "):
        open_listeners(ControlAddress(), ["203.0.113.7"])
