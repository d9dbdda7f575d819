"""Trinity's classes and methods for checkpoints, on gated saves: a trainer changes its import.

In Trinity-RFT, workers start saves by themselves (`save_async`, `save_sync`), and an actor counts
completions until a file that names the newest step may move. Here the writers are declared by name,
and the step is committed. What a call site changes:

- a save function takes the path of the folder that it writes into;
- a worker's `CheckpointCoordinator` is told its role, rank and size, and how to load;
- the controller makes the `CheckpointMonitor`, admits the workers, and restores.

Full saves and state dicts for weight synchronisation are steps of two roots below the job's folder,
`checkpoints` and `state_dicts`, so they never count for one another. The iteration files lie in the
job's folder, as before, and move after the commit. Nothing of Trinity is imported.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import TYPE_CHECKING, Any

from stepseal.actors import Coordinator, Participant
from stepseal.components import External
from stepseal.errors import CheckpointError, InvalidInput
from stepseal.layout import external_folder
from stepseal.protocol import Gate
from stepseal.retention import latest
from stepseal.session import open_run
from stepseal.storage import Access, LocalStorage, replace_durable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from stepseal.actors import Member
    from stepseal.retention import KeepRule, Retention
    from stepseal.session import Commit, Restored, Saved

__all__ = [
    "CHECKPOINTED",
    "STATE_DICT",
    "CheckpointCoordinator",
    "CheckpointMonitor",
    "find_latest_path",
]

CHECKPOINTED = "latest_checkpointed_iteration.txt"
"""File with the newest full checkpoint's number."""
STATE_DICT = "latest_state_dict_iteration.txt"
"""File with the newest state dict's number."""
_FOLDERS = {CHECKPOINTED: "checkpoints", STATE_DICT: "state_dicts"}
_log = logging.getLogger("stepseal")


class CheckpointMonitor:
    """Commits steps of a trainer whose workers save by themselves; lives in the controller.

    Use it with `async with`, on the thread that runs the event loop.

    Args:
        job_dir: folder of the job.
        gates: what each full checkpoint waits for: `"actor"` for `save_sync` of this role,
            `"actor/model"` for its `save_async("model", ...)`.
        state_dict_gates: the same for saves with `is_state_dict=True`; empty without them.
        keep: which full checkpoints stay; None keeps all.
        keep_state_dicts: which state dicts stay.
        options: further arguments of each `Coordinator`.

    Raises:
        InvalidInput: see `Coordinator`.
        StorageUnavailable: a root cannot be made.
    """

    def __init__(
        self,
        job_dir: str | os.PathLike[str],
        *,
        gates: Sequence[str],
        state_dict_gates: Sequence[str] = (),
        keep: KeepRule | Retention | None = None,
        keep_state_dicts: KeepRule | Retention | None = None,
        **options: Any,  # noqa: ANN401 - those of Coordinator
    ) -> None:
        self._job_dir = os.path.abspath(job_dir)
        self._files = LocalStorage.create(self._job_dir, access=options.get("access") or Access())
        make = functools.partial(self._coordinator, options=options)
        self.checkpoints = make(CHECKPOINTED, gates, keep)
        self.state_dicts = None
        if state_dict_gates:
            self.state_dicts = make(STATE_DICT, state_dict_gates, keep_state_dicts or latest(2))
        self._saving: list[asyncio.Task[Saved]] = []

    async def admit(
        self, checkpoints: Sequence[Member], state_dicts: Sequence[Member] = ()
    ) -> None:
        """Let workers take part; see `Coordinator.admit`.

        Args:
            checkpoints: members for `CheckpointCoordinator.checkpoints` of each worker.
            state_dicts: members for `CheckpointCoordinator.state_dicts` of those that save them.
        """
        await self.checkpoints.admit(*checkpoints)
        if self.state_dicts is not None:
            await self.state_dicts.admit(*state_dicts)

    async def restore(self) -> Restored | None:
        """Let all workers load the newest full checkpoint; call it once, before any save.

        State dicts begin anew beside those that are there.

        Raises:
            CheckpointError: see `Coordinator.restore`.
        """
        restored = await self.checkpoints.restore()
        if self.state_dicts is not None:
            await self.state_dicts.restore(fresh=True)
        return restored

    async def want(
        self,
        step: int,
        *,
        is_state_dict: bool,
        cut: Mapping[str, str | int | float | bool | None] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Let a step be committed once all its writers are done; does not wait for it.

        Raises:
            CheckpointError: an earlier step failed; this one is committed nevertheless, if it can.
            InvalidInput: no state dicts were declared.
        """
        coordinator = self.state_dicts if is_state_dict else self.checkpoints
        if coordinator is None:
            raise InvalidInput("is_state_dict=True: expected state_dict_gates= of the monitor")
        saving = coordinator.save(step, cut=cut, metrics=metrics)
        self._saving.append(asyncio.ensure_future(saving))
        await asyncio.sleep(0)  # so that it has begun
        self._raise_failures()

    async def wait(self) -> None:
        """Wait until every step that was wanted is committed or has failed.

        Raises:
            CheckpointError: one has failed.
        """
        if self._saving:
            await asyncio.wait(self._saving)
        self._raise_failures()

    async def close(self) -> None:
        """Wait for what is wanted, and dismiss all workers. Idempotent.

        Raises:
            CheckpointError: a step has failed, and nobody saw it.
        """
        try:
            await self.wait()
        finally:
            await self.checkpoints.close()
            if self.state_dicts is not None:
                await self.state_dicts.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            await self.close()
        except CheckpointError as error:
            if exc_type is None:
                raise
            _log.error("stepseal: while leaving after %s: %s", exc_type, error)

    def _raise_failures(self) -> None:
        done = [one for one in self._saving if one.done()]
        self._saving = [one for one in self._saving if not one.done()]
        failures = [error for one in done if (error := one.exception()) is not None]
        for error in failures[1:]:
            _log.error("stepseal: %s", error)
        if failures:
            raise failures[0]

    def _coordinator(
        self,
        file: str,
        gates: Sequence[str],
        keep: KeepRule | Retention | None,
        options: Mapping[str, Any],
    ) -> Coordinator:
        root = os.path.join(self._job_dir, _FOLDERS[file])
        named = [_gate(Gate.parse(text)) for text in gates]
        return Coordinator(
            root, gates=named, keep=keep, on_commit=functools.partial(self._moved, file), **options
        )

    def _moved(self, file: str, commit: Commit) -> None:
        """Name a commit in its iteration file, whole and durable."""
        replace_durable(self._files, file, str(commit.step).encode())


class CheckpointCoordinator:
    """The one interface of workers and controller, as Trinity has it.

    Args:
        checkpoint_monitor: in the controller, for `register_and_monitor`.
        role: in a worker, what it is: `actor`, `critic`.
        rank: number of the worker in its group.
        size: workers in the group.
        loads: in a worker, how each full save is loaded: the name of `save_async`, or the role for
            `save_sync`, to a function that takes the path of a folder.
    """

    def __init__(
        self,
        checkpoint_monitor: CheckpointMonitor | None = None,
        *,
        role: str | None = None,
        rank: int = 0,
        size: int = 1,
        loads: Mapping[str, Callable[[str], object]] | None = None,
    ) -> None:
        self._monitor = checkpoint_monitor
        self._role = role
        self._participants: tuple[Participant, ...] = ()
        if role is not None:
            full, weights = (Participant(role, rank=rank, size=size) for _ in range(2))
            self._participants = (full, weights)
            for name, load in (loads or {}).items():
                full.add(_component(role, name), External(load=load))

    @property
    def checkpoints(self) -> Participant:
        """This worker's participant for full checkpoints, to admit it."""
        return self._participant(is_state_dict=False)

    @property
    def state_dicts(self) -> Participant:
        """This worker's participant for state dicts, to admit it."""
        return self._participant(is_state_dict=True)

    def save_async(
        self,
        name: str,
        save_fn: Callable[[str], object],
        global_step: int,
        is_state_dict: bool = False,
    ) -> None:
        """Run `save_fn` on a thread, after the earlier one of the same name; see `Participant`."""
        participant = self._participant(is_state_dict=is_state_dict)
        participant.save_async(_component(str(self._role), name), save_fn, global_step)

    def save_sync(
        self, save_fn: Callable[[str], object], global_step: int, is_state_dict: bool = False
    ) -> None:
        """Run `save_fn` on this thread; see `Participant`."""
        self._participant(is_state_dict=is_state_dict).save_sync(save_fn, global_step)

    def wait_all(self) -> None:
        """Wait until everything that this worker saved is durable; raise what failed."""
        for one in self._participants:
            one.wait_all()

    async def register_and_monitor(
        self,
        global_step: int,
        is_state_dict: bool = False,
        state_dict_thread_count: int = 0,
        checkpoint_thread_count: int = 0,
        *,
        cut: Mapping[str, str | int | float | bool | None] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Let a step be committed once its writers are done; called in the controller.

        Args:
            global_step: training step.
            is_state_dict: whether it is a state dict, and not a full checkpoint.
            state_dict_thread_count: not used: writers are declared by name.
            checkpoint_thread_count: likewise.
            cut: facts that belong to the step, such as the position in the data.
            metrics: facts for the manifest.

        Raises:
            CheckpointError: an earlier step has failed.
        """
        del state_dict_thread_count, checkpoint_thread_count
        if self._monitor is None:
            raise InvalidInput("register_and_monitor: made without a CheckpointMonitor")
        await self._monitor.want(global_step, is_state_dict=is_state_dict, cut=cut, metrics=metrics)

    def close(self) -> None:
        """Leave, in a worker. Idempotent."""
        for one in self._participants:
            one.close()

    def _participant(self, *, is_state_dict: bool) -> Participant:
        if not self._participants:
            raise InvalidInput("CheckpointCoordinator: a worker needs role=, rank= and size=")
        return self._participants[int(is_state_dict)]


def find_latest_path(job_dir: str | os.PathLike[str], component: str) -> str | None:
    """Return the folder of a component in the newest full checkpoint, for readers; None without.

    Args:
        job_dir: folder of the job.
        component: `actor`, or `actor/model` for what `save_async("model", ...)` wrote.
    """
    root = os.path.join(job_dir, _FOLDERS[CHECKPOINTED])
    if not os.path.isdir(root) or not (steps := open_run(root).steps()):
        return None
    name = _gate(Gate.parse(component)).rpartition("/")[2]
    return os.path.join(open_run(root).step(steps[-1]).path, external_folder(name))


def _component(role: str, name: str) -> str:
    """Return the component that a role saves under a name; two roles may use one name."""
    return role if name == role else f"{role}-{name}"


def _gate(gate: Gate) -> str:
    return f"{gate.role}/{_component(gate.role, gate.name)}"
