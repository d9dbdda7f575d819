"""A trainer of verl's shape: worker groups in processes, and a data loader in the driver.

    python -m examples.actors.verl_shaped

verl saves each group, then `data.pt`, then the tracker; here all of it is one step.
"""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

import stepseal as ss
from examples.actors.common import Crash, Engine, point, pointed, prove

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["examples.actors.common", "stepseal.session", "stepseal.actors"])


def work(role: str, admissions: Any, calls: Any) -> None:  # noqa: ANN401 - pipes
    """Be a worker: serve the coordinator between two calls of the driver."""
    engine = Engine()
    with ss.Participant(role) as own:
        own.add(role, ss.External(save=engine.save_checkpoint, load=engine.load_checkpoint))
        while ss.serve(own, admissions, timeout_s=0.01):
            while calls.poll():
                method, arguments = calls.recv()
                calls.send(getattr(engine, method)(*arguments))


class WorkerGroup:
    """One worker here; in verl, one per device."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.admissions, theirs = _SPAWN.Pipe()
        self._calls, calls = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=work, args=(role, theirs, calls), daemon=True)
        self.process.start()
        theirs.close()
        calls.close()

    def execute(self, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - of any method
        """Run a method of the engine in the worker."""
        self._calls.send((method, arguments))
        return self._calls.recv()


async def life(folder: str, crash_at: int | None) -> list[float]:
    """Run `fit` from the newest step to step 8; the crash kills a worker as well."""
    groups = [WorkerGroup("actor"), WorkerGroup("critic")]
    loader = {"index": 0}

    tracker = f"{folder}/latest_checkpointed_iteration.txt"
    track = functools.partial(point, tracker)
    try:
        async with ss.Coordinator(f"{folder}/steps", keep=ss.latest(2), on_commit=track) as coord:
            for group in groups:
                await coord.admit(*ss.processes(group.role, [group.admissions]))
            coord.add("data", ss.fetched(lambda: dict(loader), loader.update))
            restored = await coord.restore()
            for global_step in range(1 if restored is None else restored.step + 1, 9):
                loader["index"] += 1
                for group in groups:
                    group.execute("step", [loader["index"], len(group.role)])
                if global_step == crash_at:
                    groups[0].process.kill()
                    raise Crash
                if global_step % 2 == 0:
                    await coord.save(global_step)
        print(pointed(tracker))
        return [value for group in groups for value in group.execute("weights")]
    finally:
        for group in groups:
            group.process.kill()


if __name__ == "__main__":
    prove(life)
