"""A participant with a loop of its own that nobody can call, such as a rank under torchrun.

It finds its admission in the root, and begins calls at its safe points alone: there all ranks of
the role stop at the same one. Invariant: every call of `step` and `wait_restored` counts once,
whatever becomes of it, so that all ranks number their safe points equally.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from stepseal.actors._letters import read_letter, remove_letter
from stepseal.actors._participant import Participant
from stepseal.errors import CoordinatorLost, InvalidInput, RootNotFound
from stepseal.layout import check_step, role_of
from stepseal.protocol import BeginSave

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from stepseal.protocol import Begin, ParticipantDriver
    from stepseal.session import Restored

__all__ = ["Rank"]

_LOOK_S = 0.1
"""Seconds between two looks for an admission."""


class Rank(Participant):
    """A rank of a job that makes its own steps, beside the actors of a `Coordinator`.

    All ranks of the role start together, and each calls `wait_admitted`, perhaps `wait_restored`,
    and then `step` once per training step, on the thread that trains. A save of the coordinator
    captures all of them at the same step.

    Args:
        role: what the ranks are: `trainer`.
        rank: number of this one.
        size: number of ranks.
        cut: returns fields of the cut, as for `Participant`. The number that `step` was called with
            is the field `<role>.step`, which must be the same on all ranks.
        options: see `Participant`.

    Raises:
        InvalidInput: role, rank or size are not usable.
    """

    def __init__(
        self,
        role: str,
        *,
        rank: int,
        size: int,
        cut: Callable[[], Mapping[str, Any]] | None = None,
        **options: Any,  # noqa: ANN401 - those of Participant
    ) -> None:
        super().__init__(role, rank=rank, size=size, cut=self._fields, **options)
        self._more = cut
        self._at: int | None = None

    def wait_admitted(self, root: str | os.PathLike[str], *, timeout_s: float = 600.0) -> None:
        """Wait until the coordinator admits this rank, and connect to it.

        Call it before the loop, and again after `CoordinatorLost`, on all ranks of the role.

        Args:
            root: root of the coordinator.
            timeout_s: seconds to wait.

        Raises:
            CoordinatorLost: nobody admitted it in time, or the coordinator cannot be reached.
            InvalidInput: the coordinator runs another release.
            CheckpointError: the root cannot be opened.
        """
        end, why, tried = time.monotonic() + timeout_s, "found no admission there", ""
        pause = threading.Event()
        while True:
            try:
                admission = read_letter(root, self.id, self._access)
            except RootNotFound:
                admission = None  # the coordinator makes it
            if admission is not None and admission.life != tried:
                tried = admission.life
                try:
                    self.admit(admission)
                except CoordinatorLost as error:  # perhaps of a life before: wait for a new one
                    why = f"its admission does not count: {error}"
                else:
                    remove_letter(root, self.id, self._access)
                    return
            if time.monotonic() >= end:
                raise CoordinatorLost(
                    f"{self.id} waited {timeout_s:g} s for the coordinator of {root}, and {why}. "
                    "Does the controller admit ss.ranks(...) of this role and size, on this root?",
                    participant=self.id,
                )
            pause.wait(_LOOK_S)

    def wait_restored(self) -> Restored | None:
        """Wait until the coordinator restores, and take part; every rank calls it before its loop.

        Saves that come before the restore are carried out.

        Returns:
            What it brought back; None for a fresh start.

        Raises:
            CoordinatorLost: the coordinator is gone, or released this rank.
            CheckpointError: the restore failed; see `Checkpointer.restore`.
        """
        while True:
            begin = self._stop(waits=True)
            if begin is None:
                if self._driver().is_lost:
                    raise self._lost("while it waited for a restore")
            elif isinstance(begin, BeginSave):
                self._carry_out(begin)
            else:
                restored = self.restore(begin)
                if not begin.check_only:
                    return restored

    def step(self, step: int) -> Restored | None:
        """Tell that a training step is done: a safe point, where the coordinator may save.

        Every rank calls it once per training step. It costs no message where nobody has asked. A
        save captures here and is written behind; its failure is told to the coordinator.

        Args:
            step: number of the training step, equal on all ranks.

        Returns:
            What was restored here, if the coordinator brought all participants back to an earlier
            step: go on from there. Else None.

        Raises:
            CoordinatorLost: the coordinator is gone. Not raised if it released this rank.
            CheckpointError: a restore failed.
        """
        self._at = check_step(step)
        begin = self._stop(waits=False)
        if begin is None:
            driver = self._driver()
            if driver.is_lost and not driver.is_dismissed:
                raise self._lost(f"at step {step}")
            return None
        if isinstance(begin, BeginSave):
            self._carry_out(begin)
            return None
        restored = self.restore(begin)
        return None if begin.check_only else restored

    def poll(self, timeout_s: float | None = 0.0) -> int:
        """Refuse: a call begins at a safe point, where all ranks stop; see `step`."""
        del timeout_s
        raise InvalidInput(
            f"{self.id}: poll would begin a call where the other ranks are not; a Rank calls step, "
            "and wait_restored before its loop. A process without a loop is a Participant.",
            participant=self.id,
        )

    def _stop(self, *, waits: bool) -> Begin | None:
        """Pass the next safe point; return the call that begins there, if one does."""
        driver = self._driver()
        return driver.wait_begin_here() if driver.pass_safe_point(waits=waits) else None

    def _driver(self) -> ParticipantDriver:
        wiring = self._here()
        if wiring is None:
            raise InvalidInput(
                f"{self.id} has no coordinator: call wait_admitted(root) first, on all ranks",
                participant=self.id,
            )
        return wiring.driver

    def _lost(self, where: str) -> CoordinatorLost:
        return CoordinatorLost(
            f"{self.id} lost its coordinator {where}. Wait for a new one with wait_admitted(root), "
            "on all ranks, or restart the job.",
            participant=self.id,
        )

    def _fields(self) -> Mapping[str, Any]:
        """Return the fields of the cut, with the step of the ranks."""
        own = {} if self._more is None else dict(self._more())
        if self._at is None:
            return own
        return {f"{role_of(self.id).replace('/', '.')}.step": self._at, **own}
