"""An engine's own files as part of a step, saved by participants on threads."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from tests.session._engines import FilePerRank, InStep, run, save_steps, staged, world

import stepseal as ss
from stepseal import errors
from stepseal.protocol._save_round import SaveRound
from stepseal.testing import FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage


def restored_values(root: Path, num: int) -> list[int]:
    def work(rank: int, ckpt: ss.Checkpointer) -> int:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external())
        ckpt.add("counter", {"rank": -1}, sharing=ss.PER_RANK)
        assert ckpt.restore() is not None
        return engine.value

    return run(root, num, work)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_a_file_per_rank_comes_back(
    tmp_path: Path, num: int, mode: Literal["async", "sync"]
) -> None:
    save_steps(tmp_path, num, 1, 2, mode=mode)
    assert restored_values(tmp_path, num) == [20 + rank for rank in range(num)]
    assert ss.open(tmp_path).step(2).verify() == ()
    assert staged(tmp_path) == []


def test_engines_write_into_the_attempt_and_read_from_the_step(tmp_path: Path) -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> list[tuple[str, str]]:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external())
        ckpt.save(1).wait()
        ckpt.restore()
        return engine.folders

    first, second = run(tmp_path, 2, work)
    assert first == second
    (_, written), load = first
    assert load == ("load", str(tmp_path / "step-1" / "external" / "engine"))
    assert Path(written).parts[-4:-2] == ("staging", Path(written).parts[-3])
    assert written.endswith("/external/engine")


def test_a_global_engine_writes_on_the_lowest_rank_and_loads_on_any_number(tmp_path: Path) -> None:
    def save(rank: int, ckpt: ss.Checkpointer) -> int:
        engine = FilePerRank(rank, value=7)
        ckpt.add("engine", engine.external(), sharing=ss.GLOBAL)
        ckpt.save(1).wait()
        return len(engine.folders)

    def load(_rank: int, ckpt: ss.Checkpointer) -> int:
        engine = FilePerRank(0)
        ckpt.add("engine", engine.external())  # as SHARDED now: it goes by what was saved
        ckpt.restore()
        return engine.value

    assert run(tmp_path, 3, save) == [1, 0, 0]
    assert run(tmp_path, 2, load) == [7, 7]


def test_another_number_of_ranks_is_refused_with_both_numbers(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 1)

    def work(rank: int, ckpt: ss.Checkpointer) -> int:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external())
        with pytest.raises(errors.StateMismatch) as caught:
            ckpt.restore(only=["engine"])
        assert any(
            "component engine: saved by an engine on 2 ranks, now 1" in problem
            for problem in caught.value.problems
        )
        assert engine.folders == []
        return 0

    run(tmp_path, 1, work)

    def declared(rank: int, ckpt: ss.Checkpointer) -> int:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external(any_world=True))
        ckpt.restore(only=["engine"])
        return engine.value

    assert run(tmp_path, 1, declared) == [10]


def test_a_step_of_engines_alone_has_no_index_for_stock_readers(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        engine = FilePerRank(0, value=3)
        ckpt.add("engine", engine.external())
        ckpt.save(1).wait()
        engine.value = 0
        ckpt.restore()
        assert engine.value == 3
    assert not (tmp_path / "step-1" / ".metadata").exists()


def test_save_returns_when_the_engines_of_all_ranks_have(tmp_path: Path) -> None:
    may_end, others = threading.Event(), threading.Semaphore(0)
    returned: list[int] = []

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        engine = FilePerRank(rank)

        def save(folder: str) -> None:
            if rank == 1:
                others.acquire(timeout=20)
                assert returned == []
                may_end.set()
            engine.save(folder)
            if rank == 0:
                others.release()
                assert may_end.wait(20)

        ckpt.add("engine", ss.External(save=save, load=engine.load))
        pending = ckpt.save(1)
        returned.append(rank)
        pending.wait()

    run(tmp_path, 2, work)
    assert len(ss.open(tmp_path).step(1).manifest.parts) == 2


def test_an_engine_that_draws_does_not_change_the_run(tmp_path: Path) -> None:
    def save(folder: str) -> None:
        drawn = [random.random(), torch.rand(1).item(), np.random.random()]
        Path(folder, "state").write_text(str(drawn))

    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("engine", ss.External(save=save, load=print))
        ckpt.add("rng", ss.RNG())
        ckpt.save(1).wait()
        after = [random.random(), torch.rand(1).item(), np.random.random()]
        ckpt.restore()
        again = [random.random(), torch.rand(1).item(), np.random.random()]
    assert (tmp_path / "step-1" / "external" / "engine" / "state").read_text() == str(after)
    assert again == after


def late_rank(root: Path, until: str, on_returned: Any = SaveRound.on_returned) -> None:  # noqa: ANN401 - a method
    """Save with a rank whose engine writes after the coordinator has handled a word of the other.

    Args:
        root: of the job.
        until: name of the method that handles it.
        on_returned: stands for the method of that name.
    """
    handled = threading.Event()
    methods = {"on_returned": on_returned, "on_prepared": SaveRound.on_prepared}

    def handle(self: SaveRound, participant: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        found: list[Any] = methods[until](self, participant, message, now)
        handled.set()
        return found

    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        engine = FilePerRank(rank, value=5)

        def save(folder: str) -> None:
            if rank == 1:
                assert handled.wait(20)
            engine.save(folder)

        ckpt.add("engine", ss.External(save=save, load=engine.load))
        ckpt.save(1).wait()

    with mock.patch.multiple(SaveRound, **{**methods, until: handle}):
        run(root, 2, work)


def test_files_of_a_late_rank_are_in_the_step(tmp_path: Path) -> None:
    late_rank(tmp_path, "on_returned")
    files = {p.name for p in (tmp_path / "step-1/external/engine/global_step1").iterdir()}
    assert len(files) == 2
    assert ss.open(tmp_path).step(1).verify() == ()


def test_an_inventory_at_the_first_report_is_not_committed(tmp_path: Path) -> None:
    """Variant: the first engine that returns counts for all; the comparison of the set sees it."""
    real = SaveRound.on_returned

    def first_counts(self: SaveRound, participant: str, message: Any, now: float) -> list[Any]:  # noqa: ANN401
        return [
            action
            for one in (participant, *self.participants)
            for action in real(self, one, message, now)
        ]

    with pytest.raises(errors.CheckpointError, match="external/engine"):
        late_rank(tmp_path, "on_prepared", first_counts)
    assert not (tmp_path / "step-1").exists()


# -- engines that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("waiting", [False, True], ids=["others return", "others wait"])
def test_an_engine_that_raises_on_one_rank_fails_the_same_call_on_all(
    tmp_path: Path, waiting: bool, mode: Literal["async", "sync"]
) -> None:
    together = InStep(3)

    def work(rank: int, ckpt: ss.Checkpointer) -> str:
        engine = FilePerRank(rank, value=1)
        broken = [True]

        def save(folder: str) -> None:
            engine.save(folder)
            if broken[0]:
                together.meet()
                if rank == 1:
                    raise OSError("no space in the engine")
                if waiting:
                    together.meet()

        ckpt.add("engine", ss.External(save=save, load=engine.load))
        with pytest.raises(errors.ParticipantFailed) as caught, together:
            ckpt.save(1)
        assert caught.value.failures.keys() == {"trainer/1"}
        causes = {0: threading.BrokenBarrierError, 1: OSError, 2: threading.BrokenBarrierError}
        if rank == 1 or waiting:
            assert isinstance(caught.value.__cause__, causes[rank])
        broken[0] = False
        ckpt.save(2).wait()
        return str(caught.value)

    texts = run(tmp_path, 3, work, mode=mode)
    assert len(set(texts)) == 1
    assert "component engine: its engine raised OSError: no space in the engine" in texts[0]
    assert ss.open(tmp_path).steps() == (2,)
    assert staged(tmp_path) == []


def test_an_interrupted_engine_ends_the_save_of_the_others(tmp_path: Path) -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> str:
        engine = FilePerRank(rank)

        def save(folder: str) -> None:
            if rank == 1:
                raise KeyboardInterrupt
            engine.save(folder)

        ckpt.add("engine", ss.External(save=save, load=engine.load))
        try:
            ckpt.save(1)
        except BaseException as error:
            return type(error).__name__
        return "saved"

    assert run(tmp_path, 2, work) == ["ParticipantFailed", "KeyboardInterrupt"]
    assert ss.open(tmp_path).steps() == ()


def test_an_engine_that_wrote_elsewhere_is_told_where_to_write(tmp_path: Path) -> None:
    def elsewhere(_folder: str) -> None:
        (tmp_path / "elsewhere").write_text("x")

    def work(_rank: int, ckpt: ss.Checkpointer) -> str:
        ckpt.add("engine", ss.External(save=elsewhere, load=print))
        with pytest.raises(errors.ParticipantFailed) as caught:
            ckpt.save(1).wait()
        return str(caught.value)

    texts = run(tmp_path / "root", 2, work)
    assert texts[0] == texts[1]
    assert "expected files below" in texts[0]
    assert "must write into the folder whose path it is given" in texts[0]


def at_publication(root: Path, act: Callable[[Path], object]) -> Callable[[Storage], Storage]:
    """Return a storage on which `act` changes the engine's folder just before the commit."""

    def before(_index: int, operation: str, key: str) -> None:
        if operation == "remove_file" and key.endswith("/.nonce"):
            act(root / key.rpartition("/")[0] / "external" / "engine")

    return lambda inner: FaultyStorage(inner, before=before)


GROWTH: dict[str, Callable[[Path], object]] = {
    "a new file": lambda engine: (engine / "more").write_text("x"),
    "a longer file": lambda engine: (engine / "latest").write_text("global_step1 and more"),
    "a file gone": lambda engine: (engine / "latest").unlink(),
}


@pytest.mark.parametrize("growth", GROWTH)
def test_an_engine_that_still_writes_at_the_commit_is_refused(tmp_path: Path, growth: str) -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("engine", FilePerRank(rank).external())
        with pytest.raises(errors.Corrupt) as caught:
            ckpt.save(1).wait()
        assert "an engine still writes after its `save` returned" in str(caught.value)

    run(tmp_path, 2, work, storage=at_publication(tmp_path, GROWTH[growth]))
    assert ss.open(tmp_path).steps() == ()


def test_an_engine_needs_a_directory() -> None:
    storage = MemoryStorage()
    job = World(1, lambda _: storage)
    with job.checkpointer(0) as ckpt:
        ckpt.add("engine", FilePerRank(0).external())
        with pytest.raises(errors.ParticipantFailed, match="an engine needs a root with a path"):
            ckpt.save(1)


# -- declaring -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sharing": ss.PER_RANK}, "expected SHARDED (every rank calls the engine) or GLOBAL"),
        ({"sharing": ss.REPLICATED}, "found REPLICATED"),
        ({"sharing": ss.per_group(same_on=[[0]])}, "found PER_GROUP"),
        ({"sharing": lambda: ss.GLOBAL}, "decides its sharing by itself"),
        ({"kind": "tree"}, "are its own kind"),
        ({"kind": "tensors"}, "are its own kind"),
        ({"on_world_change": "fresh"}, "expected state of each rank"),
    ],
)
def test_other_declarations_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        with pytest.raises(errors.InvalidInput) as caught:
            ckpt.add("engine", FilePerRank(0).external(), **options)
        assert text in str(caught.value)


@pytest.mark.parametrize("role", ["save", "load"])
def test_both_functions_are_needed(tmp_path: Path, role: str) -> None:
    given: dict[str, Any] = {"save": print, "load": print, role: "a path"}
    with (
        ss.Checkpointer(tmp_path) as ckpt,
        pytest.raises(errors.InvalidInput, match=f"External: {role}: expected a function"),
    ):
        ckpt.add("engine", ss.External(**given))


@pytest.mark.parametrize(
    "rule", [{"required": False}, {"validate": "full"}, {"exclude": ["x"]}], ids=str
)
def test_files_of_engines_are_not_compared_and_never_left_out(
    tmp_path: Path, rule: dict[str, Any]
) -> None:
    with ss.Checkpointer(tmp_path / "run") as ckpt:
        with pytest.raises(errors.InvalidInput, match="validate=, exclude= and required= do not"):
            ckpt.add("engine", FilePerRank(0).external(), **rule)
        ckpt.add("engine", FilePerRank(0).external())


def test_ranks_must_declare_the_same(tmp_path: Path) -> None:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        engine = FilePerRank(rank)
        ckpt.add("engine", engine.external(), sharing=(ss.GLOBAL, ss.SHARDED)[rank])
        with pytest.raises(errors.ParticipantFailed, match="one sharing: holds external"):
            ckpt.save(1)
        assert engine.folders == []

    world(tmp_path, 2).run(work)
