"""A controller of torchforge's shape: the RFC's coordinator above the actors (its option 3).

    python -m examples.actors.torchforge_shaped

The lines with `coord` are those of the RFC. Trainer, buffer and data source are in one step.
"""

from __future__ import annotations

import stepseal as ss
from examples.actors.common import Crash, Engine, prove
from examples.actors.fakes import Mesh, Store


class CheckpointCoordinator:
    """The RFC's `set_trainer`, `register`, `save` and `load`, on `ss.Coordinator`."""

    def __init__(self, folder: str) -> None:
        self._coord = ss.Coordinator(folder, order=("trainer", "replay_buffer", "dataset"))
        self._trainer: ss.Participant | None = None

    def set_trainer(self, trainer: ss.Participant) -> None:
        """Save what the trainer owns, where it is."""
        self._trainer = trainer

    def register(self, name: str, actor: Mesh) -> None:
        """Save an actor that has only `state_dict` and `load_state_dict` endpoints."""
        endpoints = (actor.state_dict.call_one, actor.load_state_dict.call_one)
        self._coord.add(name, ss.fetched(*endpoints))

    async def load(self) -> int:
        """Bring all back to the newest step; return it, 0 on the first start."""
        if self._trainer is not None:
            await self._coord.admit(*ss.in_process(self._trainer))
        restored = await self._coord.restore()
        return 0 if restored is None else restored.step

    async def save(self, step: int) -> ss.Saved:
        """Save all as one step, with the policy version that the step number is."""
        return await self._coord.save(step, cut={"policy_version": step})

    async def close(self) -> None:
        """End."""
        await self._coord.close()


async def life(folder: str, crash_at: int | None) -> list[float]:
    """Run `main` of the controller, from the newest step to step 8."""
    engine, trainer = Engine(), ss.Participant("trainer")
    trainer.add("model", engine.model)
    trainer.add("optimizer", engine.optimizer)
    dataset, replay_buffer = Mesh(Store()), Mesh(Store())

    coord = CheckpointCoordinator(folder)
    coord.set_trainer(trainer)
    coord.register("dataset", dataset)
    coord.register("replay_buffer", replay_buffer)
    start = await coord.load()
    try:
        for step in range(start + 1, 9):
            await replay_buffer.add.call_one(await dataset.draw.choose())
            engine.step(await replay_buffer.sample.route())
            if step == crash_at:
                raise Crash
            if step % 2 == 0:
                await coord.save(step)
        left = await dataset.state_dict.fanout()
        return [*engine.weights(), float(left[0]["next"])]
    finally:
        await coord.close()
        trainer.close()


if __name__ == "__main__":
    prove(life)
