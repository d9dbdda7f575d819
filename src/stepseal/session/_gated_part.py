"""One participant's share of a gated save: a folder for each writer, and the part after the last.

Writers are functions of the user on threads of their own. Invariants: each component is written
once; nothing is listed before all of them have returned; any failure reaches the coordinator.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from stepseal.components import CapturedComponent, Sharing
from stepseal.errors import CheckpointError, ParticipantFailed
from stepseal.process import start_thread
from stepseal.protocol import Aborted, Teller, is_prepared, resolve_save
from stepseal.session._engines import make_folder
from stepseal.session._saving import PartWriter, require_same_root

if TYPE_CHECKING:
    from stepseal.components import Topology
    from stepseal.protocol import SaveGranted, Write
    from stepseal.session._wiring import Wiring

__all__ = ["GatedPart"]

_log = logging.getLogger("stepseal")


class GatedPart:
    """What one participant writes for one gated save.

    Args:
        granted: the call.
        topology: this participant's role.
        wiring: line and root.
    """

    def __init__(self, granted: SaveGranted, topology: Topology, wiring: Wiring) -> None:
        self.call = granted.call
        self.step = granted.step
        self.cause: BaseException | None = None
        """What a writer raised here."""
        self._names = tuple(granted.names)
        self._topology = topology
        self._driver, self._steps = wiring.driver, wiring.steps
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._left = set(self._names)
        self._thread: threading.Thread | None = None
        self._num_writing = 0
        self._looked = False

    def take(self, name: str) -> bool:
        """Begin to write a component; False if it was begun before in this call."""
        with self._lock:
            if name in self._taken:
                return False
            self._taken.add(name)
            self._num_writing += 1
            return True

    def folder(self, name: str) -> str | None:
        """Wait for the order to write, and return the component's folder.

        Returns:
            None if the save has ended meanwhile.

        Raises:
            StorageUnavailable: this participant does not see the coordinator's root.
        """
        write = self._driver.wait_write(self.call)
        if write is None or self._driver.ended(self.call):
            return None
        try:
            require_same_root(self._steps, self._driver, write, self.step)
            return make_folder(name, write, self.step, self._steps)
        except (CheckpointError, OSError):
            if self._driver.ended(self.call):  # and its folder was removed
                return None
            raise

    def returned(self, name: str) -> None:
        """Note that a component's files are complete; after the last one, write the part behind."""
        with self._lock:
            self._num_writing -= 1
            self._left.discard(name)
            if self._left or self.cause is not None:
                return
            write = self._driver.wait_write(self.call)
            assert write is not None, "a writer had its folder"
            self._driver.send_returned(self.call, write.attempt)
            name = f"stepseal-part-{self.step}"
            thread = threading.Thread(target=self._write, args=(write,), name=name, daemon=True)
            try:
                start_thread(thread)
            except ParticipantFailed as error:
                self.cause = error
                self._driver.send_failed(self.call, self.step, "write", error)
            else:
                self._thread = thread

    def failed(self, name: str, error: BaseException) -> None:
        """Tell the coordinator that a writer raised."""
        me = self._topology.me
        told = error
        if not isinstance(error, CheckpointError):
            text = f"component {name}: its save function raised {type(error).__name__}: {error}"
            told = ParticipantFailed(
                text, step=self.step, component=name, participant=me, failures={me: text}
            )
        with self._lock:
            self.cause = self.cause or error
        self._driver.send_failed(self.call, self.step, "engines", told)
        self.stopped()

    def stopped(self) -> None:
        """Note that a writer stopped without a result."""
        with self._lock:
            self._num_writing -= 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody works on the call."""
        with self._lock:
            return not (self._num_writing or (self._thread and self._thread.is_alive()))

    @property
    def is_settled(self) -> bool:
        """Whether the outcome is known; also checks the deadline."""
        return self._driver.ended(self.call)

    def wait_prepared(self) -> None:
        """Wait until the part is durable or given up, if all its writers have returned."""
        if self._thread is not None:
            self._thread.join()

    def own_failure(self) -> CheckpointError | None:
        """Return, once, why the save failed here; None if it did not.

        What failed elsewhere is logged. Blocks until the save is settled.
        """
        if self._looked:
            return None
        state = self._driver.wait_outcome(self.call, None)
        assert state is not None, "without a limit, the wait ends with the save"
        self._looked = True
        try:
            resolve_save(state, self.step, self._steps)
        except CheckpointError as error:
            outcome = state.outcome
            is_mine = not isinstance(outcome, Aborted) or self._topology.me in outcome.failures
            if is_mine or self.cause is not None:
                return error
            _log.warning("stepseal: %s: %s", self._topology.me, error)
        return None

    def forget(self) -> None:
        """Drop the call, once it is settled and idle."""
        self._driver.forget(self.call)

    def _write(self, write: Write) -> None:
        if not self._driver.wait_inventory(self.call):
            return  # the save has ended, and the coordinator knows why
        captured = [
            CapturedComponent(name, "external", Sharing.SHARDED, "", None) for name in self._names
        ]
        share = (self._topology.rank, self._topology.world_size)
        teller = Teller(self._driver, self.call, share[1], 0.0, clock=lambda: 0.0)
        teller.freed()  # nobody here waited for this part
        writer = PartWriter(captured, write, self.step, self._driver, self._steps, share, teller)
        writer.run()
        if not is_prepared(self._driver, self.call):
            self._driver.wait_outcome(self.call, None)  # that of the failure that was reported
