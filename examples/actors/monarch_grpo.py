"""GRPO on Monarch: trainers that shard one model, a replay buffer and a dataset, in one step.

    pip install "stepseal[monarch]"
    python -m examples.actors.monarch_grpo [ROOT]

The run kills a trainer in the middle of a save, starts the trainers again, and goes on exactly.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from typing import Any

from monarch.actor import Actor, as_endpoint, current_rank, shutdown_context, this_host

import stepseal as ss
from examples.actors.grpo import Dataset, Learner, ReplayBuffer, check, check_step, same

NUM_TRAINERS = 2


class Trainer(ss.monarch.Actor, Actor, Learner):
    """A learner that takes part in the steps of the job."""

    def __init__(self, meeting: str) -> None:
        rank = current_rank().rank
        Learner.__init__(self, rank, NUM_TRAINERS, meeting)
        self.ss = ss.Participant(
            "trainer", rank=rank, size=NUM_TRAINERS, cut=lambda: {"trained": self.trained}
        )
        self.ss.add("model", self.policy)
        self.ss.add("optimizer", self.optimizer)
        self.ss.add("rng", ss.RNG())
        self.ss.add("counters", (self.counters, self.set_counters), sharing=ss.REPLICATED)


class Buffer(ss.monarch.Actor, Actor, ReplayBuffer):
    """A replay buffer that takes part."""

    def __init__(self) -> None:
        ReplayBuffer.__init__(self)
        self.ss = ss.Participant("buffer", cut=lambda: {"held": len(self.samples)})
        self.ss.add("buffer", self, sharing=ss.GLOBAL)


class Data(Actor, Dataset):
    """A dataset that knows nothing of stepseal."""


def start(number: int, kind: type, *arguments: object) -> Any:  # noqa: ANN401 - a mesh of actors
    """Start actors, each in a process of its own."""
    procs = this_host().spawn_procs(per_host={"procs": number})
    return procs.spawn(kind.__name__.lower(), kind, *arguments)


def start_trainers() -> Any:  # noqa: ANN401 - a mesh of actors
    """Start a group of trainers, which meet at a new place."""
    return start(NUM_TRAINERS, Trainer, tempfile.mkdtemp() + "/meeting")


async def call(mesh: Any, method: str, *arguments: object) -> list[Any]:  # noqa: ANN401
    """Call a plain method of all actors of a mesh."""
    return list((await as_endpoint(getattr(mesh, method)).call(*arguments)).values())


class Job:
    """The controller's view of the actors."""

    def __init__(self) -> None:
        self.trainers = start_trainers()
        self.buffer = start(1, Buffer)
        self.dataset = start(1, Data)

    async def step(self) -> list[float]:
        """Answer prompts, and train on what the buffer holds; return the losses."""
        (prompts,) = await call(self.dataset, "take", 4)
        samples, _ = await call(self.trainers, "rollout", prompts)
        await call(self.buffer, "put", samples)
        (batch,) = await call(self.buffer, "draw", 32)
        return await call(self.trainers, "train", batch)

    async def values(self) -> list[dict[str, Any]]:
        """Return all state."""
        found = await call(self.trainers, "values")
        return (
            found + await call(self.buffer, "state_dict") + await call(self.dataset, "state_dict")
        )


async def run(root: str) -> None:
    """Be the controller."""
    job = Job()
    coordinator = ss.Coordinator(
        root,
        order=("trainer", "buffer", "dataset"),  # who reads before who is read
        relations=("trained <= held",),
    )
    async with coordinator as coord:
        await coord.admit(*ss.monarch.members("trainer", job.trainers))
        await coord.admit(*ss.monarch.members("buffer", job.buffer))
        get, put = as_endpoint(job.dataset.state_dict), as_endpoint(job.dataset.load_state_dict)
        coord.add("dataset", ss.fetched(get.call_one, put.call_one))
        resumed = await coord.restore()
        first = resumed.step if resumed else 0
        for _ in range(3):
            await job.step()
        await coord.save(first + 3, cut={"policy_version": first + 3})
        held = await job.values()
        expected = [await job.step() for _ in range(2)]
        print(f"saved step {first + 3}; the next losses are {expected}")

        await call(job.trainers.slice(procs=1), "die_in_the_next_save")
        began = time.monotonic()
        try:
            await coord.save(first + 5)
        except ss.errors.ParticipantFailed as error:
            took_ms = 1000 * (time.monotonic() - began)
            print(f"a trainer was killed in mid-save; {took_ms:.0f} ms after the call:\n  {error}")
        job.trainers = start_trainers()  # a group that shards a model starts again as a whole
        await coord.admit(*ss.monarch.members("trainer", job.trainers))
        resumed = await coord.restore()
        assert resumed is not None
        print(f"started the trainers again, and restored step {resumed.step}")
        check("all values are those of the save", same(await job.values(), held))
        check("the losses are the same", [await job.step() for _ in range(2)] == expected)
        await coord.save(first + 5, cut={"policy_version": first + 5})
    check_step(root, first + 5)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="monarch-grpo-")))
    shutdown_context().get()
