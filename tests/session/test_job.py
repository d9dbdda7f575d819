"""How the ranks of a job find each other, or fail alike; ranks are threads around one store."""

from __future__ import annotations

import functools
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from tests.protocol._conversations import together
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from stepseal import errors
from stepseal.components import Topology
from stepseal.process import _behind
from stepseal.protocol import Deadlines, _coordinator_driver, _socket_hub, _socket_link, reach
from stepseal.session import JobOptions, _job, _late_root, _listening, _wiring
from stepseal.session._host import is_loopback
from stepseal.session._job import _host_of
from stepseal.steps import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANKS = ("0", "1", "2")
PATIENT = Deadlines(connect_s=60, close_s=1e6)
"""A `close` that waits for somebody who never came is seen: the test does not end."""
SHORT = Deadlines(connect_s=1.0, close_s=1e6)


class Store:
    """What one rank sees of the store; `before_get` runs before each `get`."""

    def __init__(self, inner: Any, before_get: Callable[[], None]) -> None:  # noqa: ANN401
        self._inner = inner
        self._before_get = before_get

    def get(self, key: str) -> bytes:
        self._before_get()
        return bytes(self._inner.get(key))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the store
        return getattr(self._inner, name)


class Job:
    """Three ranks; the name of a thread says which it is."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = str(root)
        self._patch = monkeypatch
        self._rank = threading.local()
        self.store = HashStore()
        self.before_get: Callable[[str], None] = lambda _: None
        self.has_failed = threading.Event()
        topologies = {name: Topology(int(name), ("t/0", "t/1", "t/2")) for name in RANKS}
        monkeypatch.setattr(_wiring, "discover", lambda _: topologies[self.rank])
        monkeypatch.setattr(_job, "_numbers", itertools.repeat(0))
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", self._view)

    @property
    def rank(self) -> str:
        return str(self._rank.name)

    def _view(self) -> Store:
        rank = self.rank
        return Store(self.store, lambda: self.before_get(rank))

    def only(self, rank: str, module: Any, name: str, instead: Callable[..., Any]) -> None:  # noqa: ANN401
        """Replace a function on one rank."""
        real = getattr(module, name)

        def run(*arguments: Any, **settings: Any) -> Any:  # noqa: ANN401 - as the real one
            use = instead if self.rank == rank else real
            return use(*arguments, **settings)

        self._patch.setattr(module, name, run)

    def run(self, options: JobOptions) -> dict[str, Any]:
        """Let the ranks join; return what each raised, or its wiring."""

        def join(name: str) -> Any:  # noqa: ANN401 - see above
            self._rank.name = name
            try:
                return _wiring.join_process_group("t", self.root, options, node="")[1]
            except SystemExit as error:
                return error
            finally:
                if name == "0":
                    self.has_failed.set()

        return together(RANKS, join)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path / "root", monkeypatch)


def raised(found: dict[str, Any], kind: type[errors.CheckpointError]) -> list[Any]:
    assert {name: type(one) for name, one in found.items()} == dict.fromkeys(found, kind)
    return list(found.values())


def lost(*_: object, **__: object) -> None:
    problems = ["10.0.0.1:5: no answer", "[fd00::1]:6: refused"]
    raise errors.CoordinatorLost(f"tried {'; '.join(problems)}", problems=problems)


def close_all(found: dict[str, Any]) -> None:
    together(tuple(found), lambda name: found[name].close())


@pytest.mark.parametrize("names", [("same",) * 3, ("a", "b", "c")])
def test_ranks_of_one_host_meet_on_loopback_alone_whatever_it_is_called(
    job: Job, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    told: list[Any] = []
    publish = _job.Rendezvous.publish
    monkeypatch.setattr(socket, "gethostname", lambda: names[int(job.rank)])

    def tell(self: Any, addresses: Any, nodes: Any) -> None:  # noqa: ANN401 - as the real one
        told.extend(addresses)
        publish(self, addresses, nodes)

    monkeypatch.setattr(_job.Rendezvous, "publish", tell)
    close_all(job.run(JobOptions(PATIENT)))
    assert len(told) == 1
    assert is_loopback(told[0].host)


def test_ranks_of_several_hosts_meet_on_what_rank_0_has(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_job, "host_id", lambda: job.rank)
    monkeypatch.setattr(_listening, "own_addresses", lambda _: ["127.0.0.2", "127.0.0.3"])
    job.only("1", _job, "reach", lambda addresses, *_: _reach_last(addresses))
    close_all(job.run(JobOptions(PATIENT)))


def _reach_last(addresses: Any) -> Any:  # noqa: ANN401 - as the real one
    assert [one.host for one in addresses] == ["127.0.0.2", "127.0.0.3"]
    return reach(addresses[1:], "t/1", 30.0)


def test_a_rank_that_cannot_connect_fails_all_alike_and_nobody_waits_for_it(job: Job) -> None:
    job.only("1", _job, "reach", lost)
    for error in raised(job.run(JobOptions(PATIENT)), errors.CoordinatorLost):
        assert error.failures.keys() == {"rank 1"}
        assert error.problems == ("10.0.0.1:5: no answer", "[fd00::1]:6: refused")
        assert "rank 1: tried 10.0.0.1:5" in str(error)


def test_a_rank_that_does_not_see_the_root_fails_all_alike(job: Job) -> None:
    def gone(path: str, **_: object) -> None:
        raise errors.RootNotFound(f"{path}: not shared", path=path)

    job.only("2", _late_root, "open_store", gone)
    for error in raised(job.run(JobOptions(SHORT)), errors.RootNotFound):
        assert error.path == job.root
        assert "rank 2: " in str(error)
        assert "rank 0 made it, and this host did not see it" in str(error)


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("sees", ["nothing", "an empty folder"])
def test_a_rank_that_sees_the_root_late_looks_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: str, naive: bool
) -> None:
    """Its volume is mounted after three looks; until then, the mountpoint is there, or not."""
    looks = []
    if sees == "an empty folder":
        (tmp_path / "unmounted").mkdir()

    def late(path: str, **settings: Any) -> Any:  # noqa: ANN401 - as the real one
        looks.append(path)
        return open_store(path if len(looks) > 3 else str(tmp_path / "unmounted"), **settings)

    job.only("1", _late_root, "open_store", late)
    if naive:
        once = functools.partial(_late_root.open_late_root, limit_s=0.0)
        monkeypatch.setattr(
            _wiring,
            "open_late_root",
            lambda root, access, _, maker: once(root, access, maker=maker),
        )
        raised(job.run(JobOptions(PATIENT)), errors.RootNotFound)
        return
    close_all(job.run(JobOptions(PATIENT)))
    assert len(looks) == 4


def test_a_root_that_is_damaged_is_not_looked_at_again(job: Job) -> None:
    def damaged(path: str, **_: object) -> None:
        raise errors.Corrupt(f"{path}: damaged", path=path)

    job.only("1", _late_root, "open_store", damaged)
    raised(job.run(JobOptions(PATIENT)), errors.Corrupt)


@pytest.mark.slow
def test_a_rank_that_ends_while_it_connects_is_named(job: Job) -> None:
    def end(*_: object) -> None:
        raise SystemExit

    job.only("1", _job, "reach", end)
    found = job.run(JobOptions(SHORT))
    assert isinstance(found.pop("1"), SystemExit)
    for error in raised(found, errors.CoordinatorLost):
        assert error.failures.keys() == {"rank 1"}
        assert "did not say within 1 s" in str(error)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("control_host='no-such-host.invalid'", {"control_host": "no-such-host.invalid"}),
        ("control_host='10.0.0.1:80'", {"control_host": "10.0.0.1:80"}),
        ("control_host='203.0.113.7'", {"control_host": "203.0.113.7"}),
        ("control_port=0", {"control_port": 0}),
    ],
)
def test_a_place_that_cannot_be_used_is_named_on_all_ranks(
    job: Job, argument: str, options: dict[str, Any]
) -> None:
    for error in raised(job.run(JobOptions(PATIENT, **options)), errors.InvalidInput):
        assert argument in str(error)


@pytest.mark.slow
def test_others_hear_why_though_the_store_ends_with_rank_0(job: Job) -> None:
    def before_get(rank: str) -> None:
        if rank != "0" and job.has_failed.wait(0.3):
            raise RuntimeError("Connection reset by peer")

    job.before_get = before_get
    raised(job.run(JobOptions(PATIENT, control_port=0)), errors.InvalidInput)


def test_the_host_of_a_store_is_found_under_what_wraps_it() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert _host_of(PrefixStore("a", PrefixStore("b", store))) == "127.0.0.1"
    assert _host_of(HashStore()) is None


@pytest.mark.parametrize(
    ("rank", "module"),
    [("0", _behind), ("0", _socket_hub), ("0", _coordinator_driver), ("1", _behind),
     ("2", _socket_link)],
)  # fmt: skip
def test_a_rank_without_a_thread_fails_all_alike(job: Job, rank: str, module: Any) -> None:  # noqa: ANN401
    def refuse(thread: threading.Thread) -> None:
        raise errors.ParticipantFailed(f"thread {thread.name}: no more, ulimit -u 5")

    job.only(rank, module, "start_thread", refuse)
    for error in raised(job.run(JobOptions(PATIENT)), errors.ParticipantFailed):
        assert "ulimit -u 5" in str(error)


def test_a_rank_that_finds_no_thread_at_all_still_tells_the_others(job: Job) -> None:
    """Not even one for the store that they meet at."""

    def refuse(thread: threading.Thread) -> None:
        raise errors.ParticipantFailed(f"thread {thread.name}: no more, ulimit -u 5")

    for module in (_behind, _socket_link, _job):
        job.only("1", module, "start_thread", refuse)
    for error in raised(job.run(JobOptions(PATIENT)), errors.ParticipantFailed):
        assert "ulimit -u 5" in str(error)
