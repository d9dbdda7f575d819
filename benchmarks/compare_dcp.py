"""stepseal beside `torch.distributed.checkpoint`: the same state, disk and durability in one run.

Repetitions are interleaved in random order; ratios are taken repetition by repetition, so that a
machine whose speed drifts favours nobody. DCP syncs its files (its default) but no directory, and
verifies nothing on load; stepseal syncs both and verifies every byte. Both load into preallocated
tensors, once with all files in the page cache and once with none: what a save leaves there differs,
because stepseal writes past the cache where the kernel can.

    python benchmarks/compare_dcp.py --workload llama --gigabytes 1 --repetitions 5
    python benchmarks/compare_dcp.py --workload small --tensors 10000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable

State = dict[str, torch.Tensor]
Samples = dict[str, list[float]]


def llama_like(gigabytes: float) -> State:
    """Return bf16 parameters with fp32 masters and Adam moments, shaped like a small Llama."""
    hidden, ffn = 1024, 2816
    per_layer = {
        "attention.wq": (hidden, hidden),
        "attention.wk": (hidden // 4, hidden),
        "attention.wv": (hidden // 4, hidden),
        "attention.wo": (hidden, hidden),
        "feed_forward.w1": (ffn, hidden),
        "feed_forward.w2": (hidden, ffn),
        "feed_forward.w3": (ffn, hidden),
        "attention_norm": (hidden,),
        "ffn_norm": (hidden,),
    }
    state: State = {}
    size_bytes, layer = 0, 0
    while size_bytes < gigabytes * 1e9:
        for name, shape in per_layer.items():
            fqn = f"layers.{layer}.{name}.weight"
            state[fqn] = torch.randn(shape).to(torch.bfloat16)
            for moment in ("master", "exp_avg", "exp_avg_sq"):
                state[f"optim.{fqn}.{moment}"] = torch.randn(shape)
            size_bytes += state[fqn].nbytes * 7
        layer += 1
    return state


def small_tensors(number: int) -> State:
    """Return `number` fp32 tensors of 4 KiB."""
    return {f"tensor.{index}": torch.randn(1024) for index in range(number)}


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Dcp:
    """`dcp.save`, `dcp.async_save`, `dcp.load` with default settings."""

    def __init__(self, root: Path, state: State) -> None:
        self._root, self._state, self._number = root, state, 0

    def _next(self) -> Path:
        self._number += 1
        return self._root / f"dcp-{self._number}"

    def save(self) -> float:
        return timed(lambda: dcp_save(self._state, checkpoint_id=self._next(), no_dist=True))

    def save_async(self) -> float:
        futures: list[object] = []
        seconds = timed(
            lambda: futures.append(
                dcp_async_save(self._state, checkpoint_id=self._next(), no_dist=True)
            )
        )
        futures[0].result()  # type: ignore[attr-defined]
        return seconds

    def newest(self) -> Path:
        return self._root / f"dcp-{self._number}"

    def load(self) -> float:
        path = self.newest()
        return timed(lambda: dcp_load(self._state, checkpoint_id=path, no_dist=True))

    def clean(self) -> None:
        for path in self._root.glob("dcp-*"):
            if path.name != f"dcp-{self._number}":
                shutil.rmtree(path)


class Stepseal:
    """`Checkpointer.save` (sync and async) and `Checkpointer.restore`."""

    def __init__(self, root: Path, state: State) -> None:
        self._root, self._state, self._step = root, state, 0
        self._modes = {mode: self._make(mode) for mode in ("sync", "async")}
        self._modes["async"].prewarm()

    def _make(self, mode: str) -> ss.Checkpointer:
        checkpointer = ss.Checkpointer(self._root / mode, mode=mode)  # type: ignore[arg-type]
        checkpointer.add("model", self._state)
        checkpointer.restore()
        return checkpointer

    def save(self) -> float:
        self._step += 1
        return timed(lambda: self._modes["sync"].save(self._step))

    def save_async(self) -> float:
        self._step += 1
        pending: list[ss.PendingSave] = []
        seconds = timed(lambda: pending.append(self._modes["async"].save(self._step)))
        pending[0].wait()
        return seconds

    def newest(self) -> Path:
        return max((self._root / "sync").glob("step-*"), key=_number)

    def load(self) -> float:
        return timed(self._modes["sync"].restore)

    def clean(self) -> None:
        for mode in self._modes:
            for path in sorted((self._root / mode).glob("step-*"), key=_number)[:-1]:
                shutil.rmtree(path)

    def close(self) -> None:
        for checkpointer in self._modes.values():
            checkpointer.close()


def files_in(folder: Path) -> list[Path]:
    """Return all files of a step."""
    return [path for path in folder.rglob("*") if path.is_file()]


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in files_in(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def cool(folder: Path) -> None:
    """Drop every file from the page cache."""
    for path in files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def ceilings(root: Path, size_bytes: int) -> dict[str, float]:
    """Return seconds for a buffered write with fsync, and for a memcpy into touched memory."""
    block = torch.randint(0, 255, (min(size_bytes, 1 << 28),), dtype=torch.uint8)
    target = torch.zeros_like(block)
    data = block.numpy().data
    repeats = max(1, round(size_bytes / block.nbytes))

    def write() -> None:
        with (root / "raw").open("wb", buffering=0) as file:
            for _ in range(repeats):
                file.write(data)
            os.fsync(file.fileno())

    seconds = {"write_fsync": timed(write)}
    seconds["memcpy"] = timed(lambda: [target.copy_(block) for _ in range(repeats)])
    (root / "raw").unlink()
    return seconds


ACTIONS: dict[str, tuple[str, str, Callable[[Path], None] | None]] = {
    "save": ("durable save", "save", None),
    "load": ("restore (warm)", "load", warm),
    "load_cold": ("restore (cold)", "load", cool),
    "save_async": ("async stall", "save_async", None),
}
"""Name to label, method, and what is done to the newest folder before it."""


def measure(state: State, root: Path, repetitions: int) -> tuple[Samples, dict[str, list[float]]]:
    """Run all actions interleaved; return seconds per action, and of the ceilings."""
    peers: dict[str, Dcp | Stepseal] = {
        "dcp": Dcp(root, state),
        "stepseal": Stepseal(root, state),
    }
    samples: Samples = {}
    limits: Samples = {}
    size_bytes = sum(tensor.nbytes for tensor in state.values())
    for repetition in range(repetitions + 1):
        for name, value in ceilings(root, size_bytes).items():
            limits.setdefault(name, []).append(value)
        for action, (_, method, before) in ACTIONS.items():
            order = list(peers.items())
            random.shuffle(order)
            for name, peer in order:
                if before is not None:
                    before(peer.newest())
                seconds = getattr(peer, method)()
                if repetition > 0:  # the first round warms memory and caches, and is not counted
                    samples.setdefault(f"{name}.{action}", []).append(seconds)
                peer.clean()
    own = peers["stepseal"]
    assert isinstance(own, Stepseal)
    own.close()
    return samples, limits


def report(samples: Samples, limits: Samples, size_bytes: int) -> dict[str, object]:
    """Print medians and per-repetition ratios; return them."""
    rows: dict[str, object] = {"size_bytes": size_bytes}
    print(f"{'':16} {'dcp':>12} {'stepseal':>12} {'ratio':>8}  spread", flush=True)
    for action, (label, _, _) in ACTIONS.items():
        theirs, ours = samples[f"dcp.{action}"], samples[f"stepseal.{action}"]
        ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
        middle = statistics.median(ratios)
        print(
            f"{label:16} {statistics.median(theirs) * 1e3:9.1f} ms "
            f"{statistics.median(ours) * 1e3:9.1f} ms "
            f"{middle:7.2f}x  {ratios[0]:.2f}-{ratios[-1]:.2f}"
        )
        rows[action] = {"dcp_s": theirs, "stepseal_s": ours, "median_ratio": middle}
    for name, seconds in limits.items():
        print(f"{'raw ' + name:16} {statistics.median(seconds) * 1e3:9.1f} ms")
        rows[name] = seconds
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workload", choices=("llama", "small"), default="llama")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--tensors", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--root", type=Path, help="folder on the disk to measure")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.distributed")
    torch.manual_seed(0)
    small = options.workload == "small"
    state = small_tensors(options.tensors) if small else llama_like(options.gigabytes)
    size_bytes = sum(tensor.nbytes for tensor in state.values())
    print(f"{len(state)} tensors, {size_bytes / 1e9:.3f} GB, {options.repetitions} repetitions")
    with tempfile.TemporaryDirectory(dir=options.root, prefix="stepseal-bench-") as folder:
        samples, limits = measure(state, Path(folder), options.repetitions)
    rows = report(samples, limits, size_bytes)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
