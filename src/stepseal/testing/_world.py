"""A whole job in one process: participants on threads, real checkpointers, any storage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from stepseal.components import Topology
from stepseal.protocol import Deadlines, InProcessHub, ParticipantDriver
from stepseal.retention import as_retention
from stepseal.session import Checkpointer, JobOptions, Wiring, coordinate
from stepseal.steps import PosixSteps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.protocol import CoordinatorDriver
    from stepseal.retention import KeepRule, Retention
    from stepseal.storage import Storage

__all__ = ["World"]

T = TypeVar("T")


class World:
    """One incarnation of a job whose participants share a process and an in-process control plane.

    Args:
        num_participants: number of participants; participant 0 hosts the coordinator.
        storage: returns the storage of one participant; called once per participant, in order.
        deadlines: time limits of the job.
        keep: keep rule; None keeps all steps.
        nodes: number of the node of each participant; None puts all on one.
    """

    def __init__(
        self,
        num_participants: int,
        storage: Callable[[int], Storage],
        *,
        deadlines: Deadlines | None = None,
        keep: KeepRule | Retention | None = None,
        nodes: Sequence[int] | None = None,
    ) -> None:
        self.participants = tuple(f"trainer/{rank}" for rank in range(num_participants))
        self._nodes = (0,) * num_participants if nodes is None else tuple(nodes)
        self._deadlines, self._retention = deadlines or Deadlines(), as_retention(keep)
        self._hub = InProcessHub()
        self._stores = [PosixSteps(storage(rank)) for rank in range(num_participants)]
        self._coordinator: CoordinatorDriver = coordinate(
            self._stores[0],
            Topology(0, self.participants),
            JobOptions(self._deadlines, self._retention),
            self._hub,
        )

    def checkpointer(self, rank: int, **options: Any) -> Checkpointer:  # noqa: ANN401 - its own
        """Return the checkpointer of one participant; `options` as for `Checkpointer`."""

        def join(root: str, options: JobOptions) -> tuple[Topology, Wiring]:
            topology = Topology(rank, self.participants, self._nodes)
            link = self._hub.link(topology.me)
            driver = ParticipantDriver(topology.me, link, options.deadlines)
            coordinator = self._coordinator if rank == 0 else None
            return topology, Wiring(self._stores[rank], driver, coordinator, self._retention)

        return Checkpointer("/world", deadlines=self._deadlines, _join=join, **options)

    def run(self, work: Callable[[int, Checkpointer], T], **options: Any) -> list[T]:  # noqa: ANN401
        """Run `work(rank, checkpointer)` for all participants at once, each on its own thread.

        Returns:
            What each returned, in rank order.

        Raises:
            BaseException: the first failure in rank order, after all have ended.
        """
        checkpointers = [self.checkpointer(r, **options) for r in range(len(self.participants))]
        with ThreadPoolExecutor(len(checkpointers), thread_name_prefix="participant") as pool:
            futures = [pool.submit(work, rank, ckpt) for rank, ckpt in enumerate(checkpointers)]
        return [future.result() for future in futures]
