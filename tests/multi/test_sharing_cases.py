"""Every sharing over four gloo ranks, two sets and two nodes: saved, killed, restored.

Each value is a text that says whose it is, so that the bytes on disk tell who wrote. Every case
also runs against a variant that does what other libraries do, and must tell it apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

import stepseal as ss
from stepseal.components import Registry, _capture, _trees
from stepseal.errors import CheckpointError, InvalidInput
from stepseal.layout import decode_manifest
from stepseal.protocol._comparing import Comparison
from stepseal.session import _checked
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.layout import Manifest

pytestmark = pytest.mark.slow

RANKS = 4
OWNERS = {
    "global": [0, 0, 0, 0],
    "per-rank": [0, 1, 2, 3],
    "replicated": [0, 0, 0, 0],
    "group": [0, 0, 2, 2],
    "node": [0, 0, 2, 2],
    "dynamic": [0, 1, 2, 3],
}
"""Component to the rank whose value each rank has after a restore, which is the one that wrote."""


class Text:
    """A state that says whose it is."""

    def __init__(self, value: str = "") -> None:
        self.value = value

    def state_dict(self) -> dict[str, str]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.value = state["value"]


def held(component: str, rank: int) -> str:
    """Return what a rank holds of a component at the save."""
    whose = rank if component == "global" else OWNERS[component][rank]
    return f"{component} of {whose}."


def my_group() -> Any:  # noqa: ANN401 - a process group
    """Return the process group of this rank: 0 and 1, or 2 and 3."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    return groups[dist.get_rank() // 2]


def sharings(dynamic: Any = ss.PER_RANK) -> dict[str, Any]:  # noqa: ANN401 - any sharing
    return {
        "global": ss.GLOBAL,
        "per-rank": ss.PER_RANK,
        "replicated": ss.REPLICATED,
        "group": ss.per_group(same_on=my_group()),
        "node": ss.PER_NODE,
        "dynamic": lambda: dynamic,
    }


def save(root: str, rank: int) -> None:
    os.environ["GROUP_RANK"] = str(rank // 2)
    ckpt = ss.Checkpointer(root)
    for name, sharing in sharings().items():
        ckpt.add(name, Text(held(name, rank)), sharing=sharing)
    ckpt.save(1).wait()


def save_then_die(rank: int, root: str) -> None:
    save(root, rank)
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def patched(where: object, name: str, new: object) -> Iterator[None]:
    """Replace one function for a while, as a deliberately broken variant."""
    before = getattr(where, name)
    setattr(where, name, new)
    try:
        yield
    finally:
        setattr(where, name, before)


def restored(root: str, rank: int, dynamic: Any = ss.GLOBAL) -> dict[str, str] | str:  # noqa: ANN401
    """Return what each component holds in a new life, or why it could not be restored."""
    os.environ["GROUP_RANK"] = str(rank // 2)
    live = {name: Text() for name in OWNERS}
    with ss.Checkpointer(root) as ckpt:
        for name, sharing in sharings(dynamic).items():
            ckpt.add(name, live[name], sharing=sharing)
        try:
            ckpt.restore()
        except CheckpointError as error:
            return str(error)
    return {name: text.value for name, text in live.items()}


def first_found(_saved: object, payloads: dict[str, str], *_: object, **__: object) -> str:
    """Stand in for the map: the first payload that a search finds."""
    return next(iter(payloads.values()))


def restore_all(rank: int, root: str) -> dict[str, Any]:
    found: dict[str, Any] = {"right": restored(root, rank)}
    with patched(_checked, "payload_owner", first_found):
        found["search"] = restored(root, rank)
    with patched(Registry, "go_by", lambda *_, **__: None):
        found["sharing of now"] = restored(root, rank)
    return found


def contents(step: Path) -> bytes:
    return b"".join(path.read_bytes() for path in step.rglob("*") if path.is_file())


def manifest_of(step: Path) -> Manifest:
    return decode_manifest((step / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a root with one step, whose ranks were then killed."""
    root = str(tmp_path_factory.mktemp("root"))
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(RANKS, save_then_die, root)
    return root


@pytest.fixture(scope="module")
def found(root: str) -> list[dict[str, Any]]:
    return run_ranks(RANKS, restore_all, root)


@pytest.mark.parametrize("component", OWNERS)
def test_a1_to_a5_each_payload_is_written_once_and_read_by_whom_it_is_of(
    root: str, found: list[dict[str, Any]], component: str
) -> None:
    step, owners = Path(root, "step-1"), OWNERS[component]
    for rank in range(RANKS):
        written = contents(step).count(held(component, rank).encode())
        assert written == (rank in owners if component == "global" else 1)
    entry = next(one for one in manifest_of(step).components if one.name == component)
    assert entry.payloads == {f"trainer/{r}": f"trainer/{owner}" for r, owner in enumerate(owners)}
    assert ss.open(root).step(1).verify() == ()  # its files are those of the manifest, no more
    for rank in range(RANKS):
        assert found[rank]["right"][component] == held(component, owners[rank])


def test_a4_a_search_for_a_payload_gives_ranks_the_state_of_others(
    found: list[dict[str, Any]],
) -> None:
    for component in ("per-rank", "group", "node"):
        got = [one["search"][component] for one in found]
        assert got != [held(component, owner) for owner in OWNERS[component]]


def test_a9_a_function_decides_at_the_save_and_the_record_decides_at_the_restore(
    root: str, found: list[dict[str, Any]]
) -> None:
    entries = {one.name: one.sharing for one in manifest_of(Path(root, "step-1")).components}
    assert entries["dynamic"] == "per_rank"
    assert [one["right"]["dynamic"] for one in found] == [f"dynamic of {r}." for r in range(RANKS)]
    for one in found:  # the function returns GLOBAL by now
        assert "component dynamic" in one["sharing of now"]
        assert "saved with sharing per_rank, now global" in one["sharing of now"]


def told(run: Callable[[], object]) -> tuple[str, tuple[str, ...], str]:
    """Return kind, participants and text of an error; `accepted` if there was none."""
    try:
        run()
    except CheckpointError as error:
        return error.kind, tuple(error.failures), str(error)
    return "accepted", (), ""


def save_differing(root: str, rank: int) -> None:
    """Save state of stages, of which two are declared as one set."""
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("stage", Text(f"stage {rank}"), sharing=ss.per_group(same_on=my_group()))
        ckpt.save(1).wait()


def writing(*, always: bool) -> Callable[..., Any]:
    """Return a report that says of every rank that it writes, or that it does not."""
    right: Callable[..., Any] = vars(_capture)["payload_report"]

    def report(*arguments: Any) -> Any:  # noqa: ANN401 - as the right one
        return dataclasses.replace(right(*arguments), writes=always)

    return report


def declare_wrongly(root: str, rank: int) -> dict[str, Any]:
    others = dist.new_group([1, 2])
    other = others if rank in (0, 3) else [[0, 1], [2]]
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("twice", Text(), sharing=ss.GLOBAL)
        wrong: dict[str, Callable[[], object]] = {
            "no sets": lambda: ckpt.add("x", Text(), sharing=ss.Sharing.PER_GROUP),
            "no group": lambda: ckpt.add("x", Text(), sharing=ss.per_group(same_on="dp")),
            "not in it": lambda: ckpt.add("x", Text(), sharing=ss.per_group(same_on=other)),
            "twice": lambda: ckpt.add("twice", Text(), sharing=ss.GLOBAL),
        }
        said = {name: told(add) for name, add in wrong.items()}
        with patched(Registry, "add", last_one_wins(Registry.add)):
            said["twice, the last one wins"] = told(wrong["twice"])
        return said


def last_one_wins(add: Callable[..., Any]) -> Callable[..., Any]:
    """Return what forgets an earlier component of the same name, as a dict would."""

    def forgetful(self: Any, name: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        self._components.pop(name, None)
        return add(self, name, *args, **options)

    return forgetful


def go_wrong(rank: int, root: str, saved: str) -> dict[str, Any]:
    said: dict[str, Any] = {"differ": told(lambda: save_differing(f"{root}/differ", rank))}
    with patched(Comparison, "_compare", lambda *_: None):
        said["differ, not compared"] = told(lambda: save_differing(f"{root}/unseen", rank))
    for always, name in ((True, "all write"), (False, "nobody writes")):
        with patched(_capture, "payload_report", writing(always=always)):
            said[name] = told(partial(save, f"{root}/{name[:3]}", rank))
    said |= declare_wrongly(f"{root}/declared", rank)
    said["changed"] = told(lambda: restore_as(saved, ss.PER_RANK))
    with patched(_trees, "sharing_problem", lambda *_: None):
        said["changed, not compared"] = told(lambda: restore_as(saved, ss.PER_RANK))
    said["skipped"] = told(lambda: restore_as(saved, ss.PER_RANK, only=[]))
    said["equal enough"] = told(lambda: restore_as(saved, ss.REPLICATED))
    return said


def restore_as(root: str, sharing: Any, only: list[str] | None = None) -> None:  # noqa: ANN401
    """Restore one component that was saved as GLOBAL."""
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("global", Text(), sharing=sharing)
        found = ckpt.restore(only=["global"] if only is None else only)
        assert found is not None


@pytest.fixture(scope="module")
def said(root: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    other = str(tmp_path_factory.mktemp("wrong"))
    return run_ranks(RANKS, go_wrong, other, root)


def test_a6_a_group_of_ranks_that_differ_is_found_and_named_on_all_ranks(
    said: list[dict[str, Any]],
) -> None:
    for one in said:
        kind, who, text = one["differ"]
        assert (kind, set(who)) == ("participant_failed", {"trainer/1", "trainer/3"})
        assert "component stage" in text
        assert "must hold equal state" in text
        assert one["differ, not compared"][0] == "accepted"  # and ranks 1 and 3 lost their state


def test_a4_payloads_that_several_ranks_write_or_none_are_refused(
    said: list[dict[str, Any]],
) -> None:
    for one in said:
        assert "expected one participant that writes" in one["all write"][2]
        assert "found none" in one["nobody writes"][2]


def test_a7_wrong_declarations_are_refused_at_once_on_every_rank(
    said: list[dict[str, Any]],
) -> None:
    for rank, one in enumerate(said):
        not_in_it = "found in none: 3" if rank in (1, 2) else "this rank"
        for name, text in {
            "no sets": "PER_GROUP without them",
            "no group": "found 'dp'",
            "not in it": not_in_it,
            "twice": "Names are unique",
        }.items():
            assert one[name][0] == InvalidInput.kind
            assert text in one[name][2]
        assert one["twice, the last one wins"][0] == "accepted"  # the state of the first is lost


def test_a8_another_sharing_than_the_saved_one_is_an_error_that_names_both(
    said: list[dict[str, Any]],
) -> None:
    for one in said:
        assert one["changed"][0] == "state_mismatch"
        assert "saved with sharing global, now per_rank" in one["changed"][2]
        assert one["changed, not compared"][0] == "accepted"  # each rank took the state of rank 0
        assert one["skipped"][0] == one["equal enough"][0] == "accepted"
