"""GRPO on Ray: trainers that shard one model, a replay buffer and a dataset, in one step.

    pip install "stepseal[ray]"
    python -m examples.actors.ray_grpo [ROOT]

The run kills a trainer in the middle of a save, starts the trainers again, and goes on exactly.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from typing import Any

import ray

import stepseal as ss
from examples.actors.grpo import Dataset, Learner, ReplayBuffer, check, check_step, same

NUM_TRAINERS = 2


class Trainer(Learner):
    """A learner that takes part in the steps of the job."""

    def __init__(self, rank: int, meeting: str) -> None:
        super().__init__(rank, NUM_TRAINERS, meeting)
        self.ss = ss.Participant(
            "trainer", rank=rank, size=NUM_TRAINERS, cut=lambda: {"trained": self.trained}
        )
        self.ss.add("model", self.policy)
        self.ss.add("optimizer", self.optimizer)
        self.ss.add("rng", ss.RNG())
        self.ss.add("counters", (self.counters, self.set_counters), sharing=ss.REPLICATED)


class Buffer(ReplayBuffer):
    """A replay buffer that takes part."""

    def __init__(self) -> None:
        super().__init__()
        self.ss = ss.Participant("buffer", cut=lambda: {"held": len(self.samples)})
        self.ss.add("buffer", self, sharing=ss.GLOBAL)


def start_trainers() -> list[Any]:
    """Start a group of trainers, which meet at a new place."""
    meeting = tempfile.mkdtemp() + "/meeting"
    new = ray.remote(num_cpus=0)(Trainer)
    return [new.remote(rank, meeting) for rank in range(NUM_TRAINERS)]


class Job:
    """The controller's view of the actors."""

    def __init__(self) -> None:
        self.trainers = start_trainers()
        self.buffer = ray.remote(num_cpus=0)(Buffer).remote()
        self.dataset = ray.remote(num_cpus=0)(Dataset).remote()

    async def all(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of all trainers."""
        calls = [getattr(one, method).remote(*arguments) for one in self.trainers]
        return [await call for call in calls]

    async def step(self) -> list[float]:
        """Answer prompts, and train on what the buffer holds; return the losses."""
        samples, _ = await self.all("rollout", await self.dataset.take.remote(4))
        await self.buffer.put.remote(samples)
        return await self.all("train", await self.buffer.draw.remote(32))

    async def values(self) -> list[dict[str, Any]]:
        """Return all state."""
        others = [await one.state_dict.remote() for one in (self.buffer, self.dataset)]
        return [*await self.all("values"), *others]


async def run(root: str) -> None:
    """Be the controller."""
    job = Job()
    coordinator = ss.Coordinator(
        root,
        order=("trainer", "buffer", "dataset"),  # who reads before who is read
        relations=("trained <= held",),
        control_host=ss.ray.address(),
    )
    async with coordinator as coord:
        await coord.admit(*ss.ray.members("trainer", job.trainers))
        await coord.admit(*ss.ray.members("buffer", job.buffer))
        get, put = job.dataset.state_dict.remote, job.dataset.load_state_dict.remote
        coord.add("dataset", ss.fetched(get, put))
        resumed = await coord.restore()
        first = resumed.step if resumed else 0
        for _ in range(3):
            await job.step()
        await coord.save(first + 3, cut={"policy_version": first + 3})
        held = await job.values()
        expected = [await job.step() for _ in range(2)]
        print(f"saved step {first + 3}; the next losses are {expected}")

        await job.trainers[1].die_in_the_next_save.remote()
        began = time.monotonic()
        try:
            await coord.save(first + 5)
        except ss.errors.ParticipantFailed as error:
            took_ms = 1000 * (time.monotonic() - began)
            print(f"a trainer was killed in mid-save; {took_ms:.0f} ms after the call:\n  {error}")
        ray.kill(job.trainers[0])  # a group that shards a model starts again as a whole
        job.trainers = start_trainers()
        await coord.admit(*ss.ray.members("trainer", job.trainers))
        resumed = await coord.restore()
        assert resumed is not None
        print(f"started the trainers again, and restored step {resumed.step}")
        check("all values are those of the save", same(await job.values(), held))
        check("the losses are the same", [await job.step() for _ in range(2)] == expected)
        await coord.save(first + 5, cut={"policy_version": first + 5})
    check_step(root, first + 5)


if __name__ == "__main__":
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(include_dashboard=False, log_to_driver=False)
    asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="ray-grpo-")))
    ray.shutdown()
