"""Placements: what any ranks hold of a tensor comes back to any others, however it was split.

Worlds of 1 to 8 ranks, one gloo process group each, save tensors whose meshes and placements a seed
draws, see `_layouts`. Worlds of 1 to 8 ranks then restore each step into other placements. Judges
are plain tensors, split by torch itself; and, for some, stock `dcp.load`.

    python -m tests.campaigns.placements.run --size fast|nightly|release
    python -m tests.campaigns.placements.run --seed 7 --from 6 --to 4       two worlds, again
    python -m tests.campaigns.placements.run --variant strides-ignored
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
import torch.distributed as dist
from tests.campaigns.harness._processes import fast_directory
from tests.campaigns.harness._sizes import Row, Size, report
from tests.campaigns.placements._layouts import (
    World,
    draw_layout,
    draw_tensors,
    elements,
    kind_of,
    local_bytes,
)
from tests.campaigns.placements._variants import VARIANTS, broken
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.tensor import DTensor, Partial

import stepseal as ss
from stepseal.storage import LocalStorage
from stepseal.testing import RanksFailed, run_ranks
from stepseal.transfer import StepReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.campaigns.placements._layouts import Tensor

    from stepseal.layout import Box

__all__ = ["run"]

SEED = 20_261_201
_MODULE = "tests.campaigns.placements.run"
_WORLDS: dict[Size, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "fast": ((2, 6), (3, 4)),
    "nightly": (tuple(range(1, 9)), tuple(range(1, 9))),
    "release": (tuple(range(1, 9)), tuple(range(1, 9))),
}
"""The numbers of ranks that save, and of those that restore."""
_TENSORS: dict[Size, int] = {"fast": 24, "nightly": 24, "release": 200}
"""Tensors per step; each is a pair of placements for each world that restores it."""
_STOCK_EVERY = 8
"""One in so many pairs is read by stock `dcp.load`, too."""
_VARIANT_WORLD = 4
_VARIANT_TENSORS = 40
_VARIANT_SEED = 20_261_226
"""One that gives each mistake occasion."""
_DEADLINES = ss.Deadlines(
    connect_s=60, capture_s=60, write_s=60, commit_s=60, check_s=60, apply_s=60, close_s=10
)
_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Which worlds save and restore what; ranks need no more to draw the same."""

    folder: str
    seed: int
    num_tensors: int
    saved_by: tuple[int, ...]
    restored_by: tuple[int, ...]

    def tensors(self, saving: int) -> dict[str, Tensor]:
        """Return the tensors that a world saves."""
        return draw_tensors(f"{self.seed}/{saving}", self.num_tensors)

    def layouts(self, saving: int, world: int, verb: str) -> dict[str, str]:
        """Return how a world saves or restores them."""
        seed = f"{self.seed}/{saving}/{verb}/{world}"
        tensors = self.tensors(saving).items()
        return {key: draw_layout(f"{seed}/{key}", world, tensor) for key, tensor in tensors}

    def root(self, saving: int) -> str:
        """Return where a world saves."""
        return f"{self.folder}/{saving}"

    def stock(self, saving: int, world: int) -> list[str]:
        """Return the keys that stock torch reads, too."""
        return list(self.tensors(saving))[(saving + world) % _STOCK_EVERY :: _STOCK_EVERY]


def save_one(rank: int, plan: Plan) -> list[str]:
    """Save the step of this world; return what is wrong."""
    logging.getLogger("stepseal").setLevel(logging.ERROR)  # each root says: memory is volatile
    world, meshes = dist.get_world_size(), World()
    live = meshes.build(plan.tensors(world), plan.layouts(world, world, "save"))
    with ss.Checkpointer(plan.root(world), deadlines=_DEADLINES) as ckpt:
        ckpt.add("model", live)
        found = _partial_problems(ckpt, meshes)
        ckpt.save(1).wait()
    return found


def _partial_problems(ckpt: ss.Checkpointer, meshes: World) -> list[str]:
    """Return what is wrong with the refusal of a tensor that awaits a reduction."""
    mesh = meshes.mesh(str(dist.get_world_size()))
    pending = DTensor.from_local(torch.ones(2), mesh, [Partial()], run_check=False)
    try:
        ckpt.add("pending", {"weight": pending})
    except ss.errors.UnsupportedState as error:
        advised = "key weight" in str(error) and "Redistribute it to Replicate()" in str(error)
        return [] if advised else [f"a pending reduction is refused without advice: {error}"]
    return ["a pending reduction was saved"]


def restore_all(rank: int, plan: Plan) -> list[str]:
    """Restore the steps of all worlds; return what is wrong."""
    logging.getLogger("stepseal").setLevel(logging.ERROR)
    world, meshes = dist.get_world_size(), World()
    return [
        f"{saving} -> {world} ranks, rank {rank}, {text}"
        for saving in plan.saved_by
        for text in _restore_one(plan, saving, world, meshes)
    ]


def _restore_one(plan: Plan, saving: int, world: int, meshes: World) -> Iterator[str]:
    tensors, layouts = plan.tensors(saving), plan.layouts(saving, world, "restore")
    live = meshes.build(tensors, layouts, other="live")
    with ss.Checkpointer(plan.root(saving), deadlines=_DEADLINES) as ckpt:
        ckpt.add("model", live)
        ckpt.restore()
    stock = {key: layouts[key] for key in plan.stock(saving, world)}
    by_stock = meshes.build(tensors, stock, other="stock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a world of one has no process group to speak of
        dcp_load(dict(by_stock), checkpoint_id=f"{plan.root(saving)}/step-1")
    expected = meshes.build(tensors, layouts)
    before = plan.layouts(saving, saving, "save")
    for who, state in (("restored", live), ("read by dcp.load", by_stock)):
        for key, tensor in state.items():
            if local_bytes(tensor) != local_bytes(expected[key]):
                yield f"{tensors[key]} {before[key]} -> {layouts[key]}, {who}: it differs"


def whole_problems(plan: Plan, saving: int) -> list[str]:
    """Return what a reader without ranks finds wrong in the step of a world."""
    tensors, step = plan.tensors(saving), ss.open(plan.root(saving)).step(1)
    found = step.tensors()
    if found.keys() - {"pending.weight"} != tensors.keys():
        return [f"{saving} ranks: expected {len(tensors)} tensors, found {len(found)}"]
    stored: dict[str, list[Box]] = {key: [] for key in found}
    with LocalStorage.open(plan.root(saving)) as storage:
        reader = StepReader(storage, "step-1", step.manifest)
        for one in (
            one for name in step.manifest.participants for one in reader.index(name).tensors
        ):
            stored[one.key if one.component == "model" else f"{one.component}.{one.key}"] += [
                one.box
            ]
    wrong = []
    for key, tensor in tensors.items():
        what = f"{saving} ranks, {tensor} {plan.layouts(saving, saving, 'save')[key]}"
        if len(set(stored[key])) != len(stored[key]):
            wrong.append(f"{what}: expected it stored once, found {stored[key]}")
        if local_bytes(found[key]) != local_bytes(elements(tensor)):
            wrong.append(f"{what}, read without ranks: it differs")
    return wrong


def break_all(rank: int, plan: Plan, names: Sequence[str]) -> dict[str, list[str]]:
    """Save and restore in this world with each mistake; return what is seen of it."""
    seen: dict[str, list[str]] = {}
    for name in names:
        mine = dataclasses.replace(plan, folder=f"{plan.folder}/{name}")
        seen[name] = []
        with broken(name):
            try:
                seen[name] += save_one(rank, mine)
                if rank == 0:
                    seen[name] += whole_problems(mine, dist.get_world_size())
                seen[name] += restore_all(rank, mine)
            except Exception as error:
                seen[name].append(f"{type(error).__name__}: {error}")
        dist.barrier()
    return seen


def campaign(plan: Plan, variants: Sequence[str]) -> Row:
    """Run a plan and the variants."""
    started = time.monotonic()
    found: list[str] = []
    for world in plan.saved_by:
        found += _ranks(world, save_one, plan)
        found += whole_problems(plan, world)
    for world in plan.restored_by:
        found += _ranks(world, restore_all, plan)
    caught, missed = _tried(plan, variants)
    again = f"python -m {_MODULE} --seed {plan.seed} --tensors {plan.num_tensors}"
    worlds = len(plan.saved_by) * len(plan.restored_by)
    by_stock = [len(plan.stock(a, b)) for a in plan.saved_by for b in plan.restored_by]
    return Row(
        "placements", "pairs", worlds * plan.num_tensors,
        tuple(f"{text}: {again}" for text in found), caught, missed, time.monotonic() - started,
        (f"seed {plan.seed}; {sum(by_stock)} read by dcp.load, too; {_kinds(plan)}",),
    )  # fmt: skip


def _ranks(world: int, work: Callable[[int, Plan], list[str]], plan: Plan) -> list[str]:
    try:
        return list(itertools.chain(*run_ranks(world, work, plan, timeout_s=_LIMIT_S)))
    except RanksFailed as error:
        return [f"{work.__name__} by {world} ranks: {error}"]


def _tried(plan: Plan, variants: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the variants that were caught and those that were missed."""
    if not variants:
        return (), ()
    world = (_VARIANT_WORLD,)
    with tempfile.TemporaryDirectory(dir=fast_directory()) as folder:
        mine = Plan(folder, _VARIANT_SEED, _VARIANT_TENSORS, world, world)
        seen = run_ranks(_VARIANT_WORLD, break_all, mine, variants, timeout_s=_LIMIT_S)
    told = {name: [text for rank in seen for text in rank[name]] for name in variants}
    caught = {name for name in variants if any(VARIANTS[name].told in t for t in told[name])}
    for name in variants:
        if name not in caught:
            print(f"{name} was told as: {told[name][:3]}", file=sys.stderr)
    return tuple(sorted(caught)), tuple(sorted(set(variants) - caught))


def _kinds(plan: Plan) -> str:
    """Return how many of the layouts, at either end, are of which kind."""
    pairs = [(a, b, verb) for a in plan.saved_by for b, verb in (
        (a, "save"), *((b, "restore") for b in plan.restored_by))]  # fmt: skip
    counts = Counter(kind_of(text) for args in pairs for text in plan.layouts(*args).values())
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def run(size: Size) -> Row:
    """Run the campaign."""
    saved_by, restored_by = _WORLDS[size]
    with tempfile.TemporaryDirectory(dir=fast_directory()) as folder:
        return campaign(Plan(folder, SEED, _TENSORS[size], saved_by, restored_by), list(VARIANTS))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--tensors", type=int, metavar="N", help="tensors per step")
    parser.add_argument("--from", type=int, metavar="RANKS", dest="saving", help="one world")
    parser.add_argument("--to", type=int, metavar="RANKS", dest="restoring", help="one world")
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    asked = parser.parse_args()
    saved_by, restored_by = _WORLDS[asked.size]
    saved_by = saved_by if asked.saving is None else (asked.saving,)
    restored_by = restored_by if asked.restoring is None else (asked.restoring,)
    number = _TENSORS[asked.size] if asked.tensors is None else asked.tensors
    with tempfile.TemporaryDirectory(dir=fast_directory()) as folder:
        plan = Plan(folder, asked.seed, number, saved_by, restored_by)
        return report(campaign(plan, asked.variant or list(VARIANTS)))


if __name__ == "__main__":
    sys.exit(_main())
