"""A writer in a process of its own is killed in the middle of its file."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.actors._owners import live
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["stepseal.session", "stepseal.actors"])


def writer(role: str, admissions: Any, work: Any) -> None:  # noqa: ANN401 - pipes
    """Save what the test asks for, until the test is gone."""
    state = {"n": 0}

    def save(folder: str) -> None:
        with open(f"{folder}/n", "w", encoding="utf-8") as file:
            file.write(str(state["n"]))
            if state["n"] == 13:
                os.kill(os.getpid(), signal.SIGKILL)

    def load(folder: str) -> None:
        with open(f"{folder}/n", encoding="utf-8") as file:
            state["n"] = int(file.read())

    with ss.Participant(role) as own:
        own.add(role, ss.External(load=load))
        while ss.serve(own, admissions, timeout_s=0.05):
            while work.poll():
                state["n"] = step = work.recv()
                own.save_async(role, save, step)
                work.send(step)


class Writer:
    """A writer that was started."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.admissions, theirs = _SPAWN.Pipe()
        self.work, work = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=writer, args=(role, theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        work.close()

    def save(self, step: int) -> None:
        self.work.send(step)

    def end(self) -> None:
        self.admissions.close()
        self.work.close()
        self.process.join(10)
        self.process.kill()
        self.process.join(60)


def test_the_step_fails_with_its_name_and_the_new_process_goes_on(tmp_path: Path) -> None:
    held = {role: Writer(role) for role in ("actor", "critic")}
    dead: list[Writer] = []

    async def life() -> None:
        coord = ss.Coordinator(tmp_path / "run", gates=("actor", "critic"), deadlines=PATIENT)

        async def admit(*roles: str) -> None:
            for role in roles:
                await coord.admit(*ss.processes(role, [held[role].admissions]))

        async def save(step: int) -> ss.Saved:
            for one in held.values():
                one.save(step)
            return await coord.save(step)

        async with coord:
            await admit("actor", "critic")
            await save(10)
            held["actor"].save(13)  # dies in the middle of its file
            with pytest.raises(errors.ParticipantFailed, match="process ended") as told:
                await coord.save(13)
            assert set(told.value.failures) == {"actor/0"}
            assert ss.open(tmp_path / "run").steps() == (10,)
            dead.append(held["actor"])
            held["actor"] = Writer("actor")
            await admit("actor")
            restored = await coord.restore()
            assert restored is not None
            assert restored.step == 10
            await save(20)

    try:
        live(life())
    finally:
        for one in (*held.values(), *dead):
            one.end()
    run = ss.open(tmp_path / "run")
    assert run.steps() == (10, 20)
    assert run.step(20).verify() == ()
    staging = tmp_path / "run/.stepseal/staging"
    assert not (staging.exists() and os.listdir(staging))
