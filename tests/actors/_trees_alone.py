"""A process that owns only trees, and in which no import of torch succeeds. Run as a program.

    python -m tests.actors._trees_alone <descriptor of a pipe> <how>
    python -m tests.actors._trees_alone <root> controller

`how`: `make` begins with the values that are saved, and `take` with others; `controller` opens the
calls itself. `breaks-at-import` and `breaks-in-save` are broken: their own code imports torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class TorchWasImported(AssertionError):
    """Somebody imported what must not be."""


class Watch:
    """First of all finders: refuses torch, and remembers who was refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name.partition(".")[0] == "torch":
            self.refused.append(name)
            raise TorchWasImported(f"{name} was imported")


@dataclass
class Record:
    """A class that is registered."""

    number: int
    text: str


class Buffer:
    """An object with a state; its broken form imports torch to make it."""

    def __init__(self, seed: int, *, breaks: bool) -> None:
        self.items: deque[Any] = deque({"reward": i * seed, "done": i > seed} for i in range(2000))
        self._breaks = breaks

    def state_dict(self) -> dict[str, object]:
        if self._breaks:
            import torch

            return {"items": torch.zeros(3)}
        return {"items": self.items}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.items = state["items"]


def values(seed: int) -> dict[str, Any]:
    """Return a dict of all that a tree may hold without torch."""
    import numpy as np

    shared = [seed, seed + 1]
    return {
        "plain": {"none": None, "text": f"{seed}", "tuple": (1, seed)},
        "bytes": bytes([seed]) * 5000,
        "ints": [seed * i for i in range(20_000)],
        "floats": [seed / (i + 1) for i in range(20_000)],
        "flags": [bool((i * seed) % 2) for i in range(3000)],
        "records": [Record(i * seed, "x") for i in range(3000)],
        "scalars": [np.float32(seed + i) for i in range(3000)],
        "stack": [np.full(4, seed + i, np.int16) for i in range(3000)],
        "large": np.arange(600_000, dtype=np.float64) * seed,
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4) + seed),
        "times": np.array([f"2026-12-0{seed}"], "datetime64[D]"),
        "generator": np.random.default_rng(seed),
        "random": random.Random(seed),
        "set": {seed, seed + 1},
        "shared": [shared, shared],
    }


def fingerprint(value: Any) -> object:  # noqa: ANN401 - any of the above
    """Return a value as JSON that is equal for equal values."""
    if isinstance(value, dict):
        return [[str(key), fingerprint(one)] for key, one in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [type(value).__name__, *map(fingerprint, value)]
    if isinstance(value, Record):
        return [value.number, value.text]
    if isinstance(value, random.Random):
        return fingerprint(value.getstate())
    if hasattr(value, "bit_generator"):
        return fingerprint(value.bit_generator.state)
    if hasattr(value, "tobytes"):
        return [str(value.dtype), list(value.shape), str(value.strides), value.tobytes().hex()]
    return repr(value)


class Owner:
    """All components of the process."""

    def __init__(self, how: str) -> None:
        import stepseal as ss

        ss.register(Record)
        self.seed = 1 if how == "take" else 3
        self.values, self.listed = values(self.seed), [self.seed] * 3
        self.buffer = Buffer(self.seed, breaks=how == "breaks-in-save")
        self.pair = {"value": self.seed}
        self.engine = self.seed
        self.ss = ss.Participant("replay_buffer", cut=lambda: {"seen": 1})
        self.ss.add("values", self.values)
        self.ss.add("listed", self.listed)
        self.ss.add("buffer", self.buffer)
        self.ss.add("pair", (lambda: self.pair, self.pair.update))
        self.ss.add("facts", ss.Unchanged(dataset="c4"), sharing=ss.REPLICATED)
        if how != "controller":  # an engine must not block the controller's loop
            self.ss.add("engine", ss.External(save=self._save, load=self._load))
        self._held = [self.values["large"], self.values["ints"], self.values["generator"]]

    def _save(self, folder: str) -> None:
        Path(folder, "engine.txt").write_text(f"{self.engine}", "utf-8")

    def _load(self, folder: str) -> None:
        self.engine = int(Path(folder, "engine.txt").read_text("utf-8"))

    def report(self) -> dict[str, object]:
        """Return a digest of all state, and whether the live objects are those of the beginning."""
        whole = [self.values, self.listed, self.buffer.items, self.pair, self.engine]
        now = [self.values["large"], self.values["ints"], self.values["generator"]]
        return {
            "state": hashlib.sha256(json.dumps(fingerprint(whole)).encode()).hexdigest(),
            "in_place": all(one is other for one, other in zip(now, self._held, strict=True)),
        }


def serve(descriptor: int, how: str) -> dict[str, object]:
    """Be a member until the other end of the pipe is closed."""
    import stepseal as ss

    owner = Owner(how)
    with owner.ss, Connection(descriptor) as pipe:
        while ss.serve(owner.ss, pipe, timeout_s=0.05):
            pass
    return owner.report()


async def control(root: str) -> dict[str, object]:
    """Open calls: save, change everything, restore, and read the step."""
    import stepseal as ss

    owner = Owner("controller")
    saved = owner.report()
    async with ss.Coordinator(root) as coord:
        await coord.admit(*ss.in_process(owner.ss))
        await coord.save(1, cut={"policy_version": 1})
        owner.values["ints"][0], owner.pair["value"] = -1, -1
        assert owner.report() != saved
        await coord.restore()
        assert owner.report() == saved
        await coord.save(2)
    step = ss.open(root).step(2)
    assert step.verify() == ()
    assert step.value("pair") == owner.pair
    return saved


def main(place: str, how: str) -> None:
    """Run, and print what became of it."""
    watch = Watch()
    sys.meta_path.insert(0, watch)
    found: dict[str, object] = {}
    try:
        if how == "breaks-at-import":
            import torch  # noqa: F401
        found = asyncio.run(control(place)) if how == "controller" else serve(int(place), how)
    finally:
        print(json.dumps({**found, "refused": watch.refused, "loaded": "torch" in sys.modules}))


if __name__ == "__main__":
    main(*sys.argv[1:])
