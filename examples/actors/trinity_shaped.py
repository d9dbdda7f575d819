"""A trainer of Trinity's shape: workers save on their own, the trainer registers and monitors.

    python -m examples.actors.trinity_shaped

Against Trinity's own code, the import is another one, and save functions take a path.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import torch

import stepseal as ss
from examples.actors.common import Crash, Engine, pointed, prove
from stepseal.integrations.trinity import CHECKPOINTED, CheckpointCoordinator, CheckpointMonitor

if TYPE_CHECKING:
    from collections.abc import Callable


class Worker:
    """An actor or critic worker; in Trinity, a process of its own."""

    def __init__(self, role: str) -> None:
        self.role, self.engine = role, Engine()
        self.coordinator = CheckpointCoordinator(
            role=role, loads={role: self.engine.load_checkpoint}
        )

    def save_checkpoint(self, step: int) -> None:
        """Save on the main thread, as what has collectives inside must be."""
        self.coordinator.save_sync(self.engine.save_checkpoint, step)

    def save_state_dict(self, step: int) -> None:
        """Collect the weights, and write them behind."""
        weights = self.engine.frozen()["model"]
        self.coordinator.save_async("model", _writer(weights), step, is_state_dict=True)


def _writer(weights: dict[str, torch.Tensor]) -> Callable[[str], None]:
    return lambda path: torch.save(weights, f"{path}/model.pt")


async def life(folder: str, crash_at: int | None) -> list[float]:
    """Train from the newest step to step 8; weights are synchronised at each, all saved at even."""
    actor, critic = Worker("actor"), Worker("critic")
    monitor = CheckpointMonitor(
        folder, gates=("actor", "critic"), state_dict_gates=("actor/model",), keep=ss.latest(2)
    )
    coordinator = CheckpointCoordinator(monitor)
    try:
        async with monitor:
            members = ss.in_process(actor.coordinator.checkpoints, critic.coordinator.checkpoints)
            await monitor.admit(members, ss.in_process(actor.coordinator.state_dicts))
            restored = await monitor.restore()
            for global_step in range(1 if restored is None else restored.step + 1, 9):
                for worker in (actor, critic):
                    worker.engine.step([global_step, global_step + len(worker.role)])
                if global_step == crash_at:
                    raise Crash
                actor.save_state_dict(global_step)
                await coordinator.register_and_monitor(
                    global_step, is_state_dict=True, state_dict_thread_count=1
                )
                if global_step % 2 == 0:
                    for worker in (actor, critic):  # a call to each worker, one after the other
                        await asyncio.to_thread(worker.save_checkpoint, global_step)
                    await coordinator.register_and_monitor(global_step, cut={"step": global_step})
        print(pointed(f"{folder}/{CHECKPOINTED}"))
        return [*actor.engine.weights(), *critic.engine.weights()]
    finally:
        actor.coordinator.close()
        critic.coordinator.close()


if __name__ == "__main__":
    prove(life)
