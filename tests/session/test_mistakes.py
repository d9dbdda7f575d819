"""The guide for authors of trainers shows the very messages that its mistakes lead to."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from tests.session._sets import in_world
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import stepseal as ss
from stepseal.components import Topology
from stepseal.components._modules import ModuleComponent
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    Add = Callable[[int, ss.Checkpointer], object]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "custom-trainers.md"


def shown(error: object) -> str:
    """Return a message as the guide has it."""
    return " ".join(re.sub(r"\b[0-9a-f]{32}\b", "DIGEST", str(error)).split())


def messages() -> dict[str, str]:
    """Return the message under each heading of the guide's list of mistakes."""
    _, _, mistakes = GUIDE.read_text("utf-8").partition("## Common mistakes")
    found = {}
    for part in mistakes.split("\n### ")[1:]:
        heading, _, rest = part.partition("\n")
        block = re.search(r"```text\n(.*?)```", rest, re.DOTALL)
        if block is not None:
            found[heading] = " ".join(block[1].split())
    return found


def saving(add: Add, step: int = 1) -> Callable[..., None]:
    def work(rank: int, ckpt: ss.Checkpointer) -> None:
        add(rank, ckpt)
        ckpt.save(step).wait()

    return work


def adding(name: str, state: Any, sharing: Any = None) -> Add:  # noqa: ANN401 - any
    return lambda _, ckpt: ckpt.add(name, state, sharing=sharing)


def restoring(sharing: Any) -> Callable[..., object]:  # noqa: ANN401 - any sharing
    def work(_: int, ckpt: ss.Checkpointer) -> object:
        ckpt.add("data", {"n": 0}, sharing=sharing)
        return ckpt.restore()

    return work


def stage_of(rank: int, ckpt: ss.Checkpointer, sets: Any) -> None:  # noqa: ANN401 - any list
    ckpt.add("stage", {"weight": rank}, sharing=ss.per_group(same_on=sets(rank)))


def on_rank_0_alone(rank: int, ckpt: ss.Checkpointer) -> None:
    ckpt.add("x", {"n": 0}, sharing=ss.GLOBAL)
    if rank == 0:
        ckpt.add("stage", {"n": 0}, sharing=ss.GLOBAL)


def by_rank(rank: int, ckpt: ss.Checkpointer) -> None:
    ckpt.add("data", {"n": 0}, sharing=lambda: ss.PER_RANK if rank else ss.GLOBAL)


def late(_: int, ckpt: ss.Checkpointer) -> None:
    ckpt.add("a", {"n": 0}, sharing=ss.GLOBAL)
    ckpt.save(1).wait()
    ckpt.add("b", {"n": 0}, sharing=ss.GLOBAL)


MISTAKES: dict[str, Callable[..., object]] = {
    "The group holds ranks that differ": saving(
        functools.partial(stage_of, sets=lambda _: [[0, 1]])
    ),
    "Each rank lists only its own set": saving(
        functools.partial(stage_of, sets=lambda rank: [[rank]])
    ),
    "A pattern without its group": saving(adding("stage", {"n": 0}, ss.Sharing.PER_GROUP)),
    "No sharing, though there are several ranks": saving(adding("counts", {"n": 0})),
    "Only rank 0 adds a component": saving(on_rank_0_alone),
    "The function returns another sharing on each rank": saving(by_rank),
    "A snapshot in place of the object": saving(adding("model", nn.Linear(2, 2).state_dict())),
    "A component that is added late": late,
}
"""Heading to a job of two ranks."""


@pytest.mark.parametrize("heading", MISTAKES)
def test_a_mistake_leads_to_the_message_of_the_guide(heading: str) -> None:
    error, *_ = in_world(2, MemoryStorage(), MISTAKES[heading])
    assert isinstance(error, ss.errors.CheckpointError)
    assert shown(error) == messages()[heading]


@pytest.mark.parametrize(
    ("heading", "saved", "num_now", "now"),
    [
        ("The sharing changed between two versions of the trainer", ss.GLOBAL, 2, ss.PER_RANK),
        ("State of each rank, and another number of ranks", ss.PER_RANK, 1, ss.PER_RANK),
    ],
)
def test_a_step_of_another_job_leads_to_the_message_of_the_guide(
    heading: str,
    saved: ss.Sharing,
    num_now: int,
    now: ss.Sharing,
) -> None:
    storage = MemoryStorage()
    assert in_world(2, storage, saving(adding("data", {"n": 1}, saved))) == [None, None]
    error, *_ = in_world(num_now, storage, restoring(now))
    assert shown(error) == messages()[heading]


def test_a_save_without_a_restore_leads_to_the_message_of_the_guide() -> None:
    storage, data = MemoryStorage(), adding("data", {"n": 1}, ss.PER_RANK)
    in_world(2, storage, saving(data))
    error, *_ = in_world(2, storage, saving(data, step=2))
    assert shown(error) == messages()["A save without a restore"]


def test_dtensors_per_rank_lead_to_the_message_of_the_guide() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh, module = init_device_mesh("cpu", (2,)), nn.Linear(2, 2)
        weight = DTensor.from_local(module.weight.detach()[:1], mesh, [Shard(0)])
        module.weight = nn.Parameter(weight)
        component = ModuleComponent("model", module, sharing=ss.PER_RANK)
        with pytest.raises(ss.errors.UnsupportedState) as caught:
            component.describe(Topology(0, ("trainer/0", "trainer/1")))
    finally:
        dist.destroy_process_group()
    assert shown(caught.value) == messages()["DTensors are declared per rank or per set"]


def test_every_message_of_the_guide_is_shown_by_a_test() -> None:
    covered = {
        *MISTAKES,
        "The sharing changed between two versions of the trainer",
        "State of each rank, and another number of ranks",
        "A save without a restore",
        "DTensors are declared per rank or per set",
    }
    assert messages().keys() == covered
