"""No prompt is skipped or trained twice across save and restore, while nobody is held.

A data source, a buffer and a trainer go on working between their captures. Each sample is in the
buffer until a step that holds it as trained is committed. After a restore, the source goes back to
where the buffer ends: the frontier.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.actors._owners import coordinator, live, participant

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.protocol import BeginSave

CONSUMERS_FIRST = ("trainer", "buffer", "dataset")
RELATIONS = ("trained <= sampled", "sampled <= drawn")


class Job:
    """One life of the job, blank at first."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.drawn = 0
        self.first = 0
        """Number of the oldest sample in the buffer."""
        self.samples: list[int] = []
        self.trained: list[int] = []
        self.people = [
            self.member("trainer", "trained", self.trained, lambda: len(self.trained)),
            self.member("buffer", "sampled", self.samples, lambda: self.sampled),
            self.member("dataset", "drawn", [], lambda: self.drawn),
        ]

    @property
    def sampled(self) -> int:
        """Number of all samples so far."""
        return self.first + len(self.samples)

    def member(
        self, role: str, field: str, held: list[int], count: Callable[[], int]
    ) -> ss.Participant:
        """Return the participant of a role; the others work right after its capture."""

        def put(state: dict[str, Any]) -> None:
            held[:] = state["held"]
            self.first = state["count"] - len(held) if role == "buffer" else self.first
            self.drawn = state["count"] if role == "dataset" else self.drawn

        one = participant(role, cut=lambda: {field: count()})
        one.add(role, (lambda: {"held": list(held), "count": count()}, put), kind="tree")
        real = one.capture

        def capture(begin: BeginSave) -> None:
            real(begin)
            self.work(5)

        one.capture = capture  # type: ignore[method-assign]
        return one

    def work(self, amount: int) -> None:
        """Draw prompts, make samples of them and train on these, in any order."""
        for _ in range(amount):
            for _ in range(self.random.randint(0, 2)):
                self.samples.append(self.drawn)
                self.drawn += 1
            number = len(self.trained)
            if self.first <= number < self.sampled:
                self.trained.append(self.samples[number - self.first])

    def go_back_to_the_frontier(self) -> None:
        """Draw again what was drawn and is in no sample."""
        self.drawn = min(self.drawn, self.sampled)

    def forget_trained(self, number: int) -> None:
        """Drop samples that a committed step holds as trained."""
        del self.samples[: number - self.first]
        self.first = number


async def life(
    root: Path, seed: str, go_back: Callable[[Job], None], **options: object
) -> list[int]:
    """Restore, work and save twice, work on, and end without a word; return what was trained."""
    job = Job(seed)
    async with coordinator(root, **options) as coord:
        await coord.admit(*ss.in_process(*job.people))
        resumed = await coord.restore()
        go_back(job)
        step = 0 if resumed is None else resumed.step
        for _ in range(2):
            job.work(7)
            step += 1
            await coord.save(step)
            trained = ss.open(root).step(step).manifest.cut["trained"]
            assert isinstance(trained, int)
            job.forget_trained(trained)
        job.work(3)
    return job.trained


def run(
    root: Path,
    seed: int,
    go_back: Callable[[Job], None] = Job.go_back_to_the_frontier,
    **options: object,
) -> None:
    """Run several lives; judge what was trained in each, with all that it went on from."""
    usual: dict[str, object] = {"order": CONSUMERS_FIRST, "relations": RELATIONS}
    for number in range(4):
        trained = live(life(root, f"{seed} {number}", go_back, **(usual | options)))
        assert trained == list(range(len(trained))), f"life {number}"
    assert len(trained) > 40


@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_is_skipped_or_trained_twice(seed: int, tmp_path: Path) -> None:
    run(tmp_path / "run", seed)


def test_a_naive_order_trains_prompts_twice(tmp_path: Path) -> None:
    """The producer is captured before the consumer, and nobody compares how far they are."""
    with pytest.raises(AssertionError, match="life"):
        run(tmp_path / "run", 0, order=CONSUMERS_FIRST[::-1], relations=())


def test_a_naive_restore_skips_prompts(tmp_path: Path) -> None:
    """What was drawn and is in no sample is not drawn again."""
    with pytest.raises(AssertionError, match="life"):
        run(tmp_path / "run", 0, lambda _job: None)


def test_relations_refuse_the_naive_order(tmp_path: Path) -> None:
    with pytest.raises(errors.ParticipantFailed, match="does not hold"):
        run(tmp_path / "run", 0, order=CONSUMERS_FIRST[::-1])
