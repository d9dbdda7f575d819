"""One round: save, hit an actor in a phase, judge, start it again, restore, and save again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.campaigns.actors._member import expected_value, write_marker
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.layout import role_of
from stepseal.protocol._incarnation import Incarnation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from pathlib import Path

    from tests.campaigns.actors._frameworks import Framework
    from typing_extensions import Self

    from stepseal.protocol import _actions as actions

__all__ = ["Hung", "Job"]

_DEADLINES = dataclasses.replace(PATIENT, connect_s=200)
"""Many actors that start at once import torch at once."""
_MAY_COMMIT = ("after Prepared", "in publish")
"""Phases after which the bytes of the dead are durable: the step is committed."""


class Hung(Exception):
    """A call did not return; nothing more can be tried with this job."""


class Job:
    """A coordinator and its actors.

    Args:
        folder: for the root and the markers.
        framework: what runs the actors.
        ids: all participants.
        limit_s: no call takes longer.
    """

    def __init__(
        self, folder: Path, framework: Framework, ids: Sequence[str], limit_s: float
    ) -> None:
        self._folder = folder
        self._framework = framework
        self._sizes = {one: sum(role_of(two) == role_of(one) for two in ids) for one in ids}
        self._limit_s = limit_s
        self._actors: dict[str, Any] = {}
        self._coord: ss.Coordinator | None = None
        self._step = 0
        self._acknowledged: list[int] = []
        self._publish_hits: tuple[int, str] | None = None
        self.problems: list[str] = []
        self.delays_ms: dict[str, list[float]] = {}
        """From the death to the error, by phase."""

    @property
    def root(self) -> Path:
        """The root of the job."""
        return self._folder / "root"

    async def __aenter__(self) -> Self:
        self._actors = {one: self._framework.start(one, self._sizes[one]) for one in self._sizes}
        roles = dict.fromkeys(map(role_of, self._sizes))
        coord = ss.Coordinator(
            self.root, order=tuple(roles), keep=ss.latest(2), deadlines=_DEADLINES
        )
        self._coord = coord
        self._patch = mock.patch.object(Incarnation, "_publish", self._publishing())
        self._patch.start()
        members = [self._framework.member(one, self._actors) for one in self._actors]
        await self._within(coord.admit(*members), "admit")
        await self._save("the first save")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._patch.stop()
        assert self._coord is not None
        if kind is None:  # `close` waits for a call that hangs
            await self._within(self._coord.close(), "close")

    async def round(self, number: int, phase: str, victim: str) -> list[str]:
        """Hit an actor in a phase; return what was wrong."""
        self.problems = []
        marker = self._folder / f"died-{number}"
        if phase == "in restore":
            await self._hit_in_restore(victim, marker)
        else:
            await self._hit_in_save(phase, victim, marker)
        self._judge_root()
        await self._start_again(victim)
        await self._save("the next save")
        self._judge_root()
        return self.problems

    async def _hit_in_save(self, phase: str, victim: str, marker: Path) -> None:
        pids = await self._fill(self._step + 1)
        if phase == "in publish":
            self._publish_hits = (pids[victim], str(marker))
        else:
            await self._call(victim, "arm", phase, str(marker))
        assert self._coord is not None
        error = await self._outcome(self._coord.save(self._step + 1), "save")
        self._step += 1
        if error is None:
            self._acknowledged.append(self._step)
        if phase in _MAY_COMMIT:
            if error is not None:
                self._wrong(f"expected the save to commit, as all were prepared, found {error!r}")
            error = await self._outcome(self._coord.save(self._step + 1), "save")
        self._judge_error(error, phase, victim, marker)

    async def _hit_in_restore(self, victim: str, marker: Path) -> None:
        await self._call(victim, "arm", "in restore", str(marker))
        assert self._coord is not None
        error = await self._outcome(self._coord.restore(), "restore")
        self._judge_error(error, "in restore", victim, marker)

    def _judge_error(
        self, error: errors.CheckpointError | None, phase: str, victim: str, marker: Path
    ) -> None:
        """Judge what the call reported that the death must fail."""
        raised_at = time.monotonic()
        if not marker.exists():
            self._wrong(f"{victim} was not hit")
            return
        found = json.loads(marker.read_text("utf-8"))
        if phase not in _MAY_COMMIT:
            self.delays_ms.setdefault(phase, []).append(1000 * (raised_at - found["at"]))
        failures = getattr(error, "failures", None)
        if not isinstance(error, errors.ParticipantFailed) or set(failures or ()) != {victim}:
            self._wrong(f"expected a ParticipantFailed that names {victim}, found {error!r}")

    async def _start_again(self, victim: str) -> None:
        """Start an actor anew, admit it, and restore all."""
        self._actors[victim] = self._framework.start(victim, self._sizes[victim])
        assert self._coord is not None
        member = self._framework.member(victim, self._actors)
        await self._within(self._coord.admit(member), "admit")
        await self._fill(10**6)  # nothing that was ever saved
        restored = await self._within(self._coord.restore(), "restore")
        newest = self._acknowledged[-1]
        if restored is None or restored.step != newest:
            self._wrong(f"expected step {newest} restored, found {restored}")
        for one in self._actors:
            holds, wanted = await self._call(one, "holds"), [expected_value(one, newest)]
            if holds != wanted:
                self._wrong(f"restored wrong values: {one} holds {holds}, expected {wanted}")

    def _judge_root(self) -> None:
        """Every step was acknowledged, the newest is whole, and holds everybody."""
        run = ss.open(self.root)
        for step in set(run.steps()) - set(self._acknowledged):
            self._wrong(f"half-committed: step {step} is there, though its save failed")
        newest = self._acknowledged[-1]
        if newest not in run.steps():
            self._wrong(f"lost: step {newest} was acknowledged, and is not there")
            return
        whole = run.step(newest)
        if damage := whole.verify():
            self._wrong(f"half-committed: step {newest} is damaged: {damage}")
        if {*whole.manifest.participants} != {*self._sizes}:
            self._wrong(f"half-committed: step {newest} has {whole.manifest.participants}")

    async def _save(self, what: str) -> None:
        await self._fill(self._step + 1)
        assert self._coord is not None
        await self._within(self._coord.save(self._step + 1), what)
        self._step += 1
        self._acknowledged.append(self._step)

    async def _fill(self, step: int) -> dict[str, int]:
        found = await asyncio.gather(*(self._call(one, "fill", step) for one in self._actors))
        return dict(zip(self._actors, found, strict=True))

    async def _call(self, participant: str, method: str, *arguments: object) -> Any:  # noqa: ANN401
        call = self._framework.call(self._actors[participant], method, *arguments)
        return await self._within(call, f"{method} of {participant}")

    async def _outcome(self, call: Awaitable[object], what: str) -> errors.CheckpointError | None:
        try:
            await self._within(call, what)
        except errors.CheckpointError as error:
            return error
        return None

    async def _within(self, call: Awaitable[Any], what: str) -> Any:  # noqa: ANN401
        try:
            return await asyncio.wait_for(call, self._limit_s)
        except asyncio.TimeoutError as error:
            raise Hung(f"hangs: {what} did not return within {self._limit_s:g} s") from error

    def _publishing(self) -> Any:  # noqa: ANN401 - a method
        """Return a publish that first hits the actor that was named, and sees it die."""
        publish = Incarnation._publish

        def hit_and_publish(incarnation: Incarnation, action: actions.Publish) -> Any:  # noqa: ANN401
            hits, self._publish_hits = self._publish_hits, None
            if hits is not None:
                pid, marker = hits
                handle = os.pidfd_open(pid)
                write_marker(marker, "in publish")
                os.kill(pid, signal.SIGKILL)
                select.select([handle], [], [])
                os.close(handle)
            return publish(incarnation, action)

        return hit_and_publish

    def _wrong(self, text: str) -> None:
        self.problems.append(text)
