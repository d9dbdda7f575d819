"""Checks and measures stepseal with CUDA state in one call; prints one JSON line per check.

Run on a machine with an accelerator: `python tests/gpu/check_cuda.py [--gigabytes 4]`. It trains a
small model on the device, saves asynchronously while training goes on, restores into fresh objects
and compares weights, optimizer state, RNG streams and the losses that follow, bit for bit. It also
measures stall and throughput beside `dcp.save` and a pinned copy. Exits with 1 at the first
difference, with 77 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import stepseal as ss

NO_DEVICE = 77


class Job:
    """A deterministic training job whose model, optimizer and noise live on the device."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(256, 1024),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(1024, 256),
        ).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 100)

    def train_step(self) -> float:
        """Return the loss of one step on fresh random data."""
        data = torch.randn(64, 256, device="cuda")
        loss = (self.model(data) - data).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.item())

    def checkpointer(self, root: Path, mode: str) -> ss.Checkpointer:
        """Return a checkpointer with all components added."""
        ckpt = ss.Checkpointer(root, mode=mode)  # type: ignore[arg-type]
        ckpt.add("model", self.model)
        ckpt.add("optimizer", self.optimizer)
        ckpt.add("lr_scheduler", self.scheduler)
        ckpt.add("rng", ss.RNG())
        return ckpt

    def state(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the job, by name."""
        found = {f"model.{k}": v.clone() for k, v in self.model.state_dict().items()}
        for number, parameter in enumerate(self.model.parameters()):
            for key, value in self.optimizer.state[parameter].items():
                found[f"optimizer.{number}.{key}"] = value.clone()
        found["cuda_rng"] = torch.cuda.get_rng_state()
        return found


def check_exact(root: Path, mode: str) -> dict[str, Any]:
    """Save at step 5 while training goes on; restore into fresh objects and train 6 to 10."""
    job = Job()
    with job.checkpointer(root, mode) as ckpt:
        ckpt.restore()
        for _ in range(5):
            job.train_step()
        at_five = job.state()
        pending = ckpt.save(5)
        straight = [job.train_step() for _ in range(5)]
        pending.wait()
    again = Job()
    with again.checkpointer(root, mode) as ckpt:
        ckpt.restore()
        restored = again.state()
        for name, value in at_five.items():
            require(torch.equal(value, restored[name]), f"{mode}: {name} differs after restore")
            require(
                value.device == restored[name].device, f"{mode}: {name} moved to another device"
            )
        resumed = [again.train_step() for _ in range(5)]
    require(straight == resumed, f"{mode}: losses differ: {straight} and {resumed}")
    return {"check": f"exact {mode}", "losses": len(resumed), "tensors": len(at_five)}


def measure(root: Path, gigabytes: float) -> dict[str, Any]:
    """Measure stall, durable save and restore of device tensors beside DCP and a pinned copy."""
    number = max(1, round(gigabytes * 1e9 / (1 << 28)))
    state = {f"w{i}": torch.randn(1 << 26, device="cuda") for i in range(number)}
    size_bytes = sum(t.nbytes for t in state.values())
    pinned = torch.empty(1 << 26, pin_memory=True)
    found: dict[str, Any] = {"check": "speed", "size_bytes": size_bytes}
    found["pinned_copy_s"] = timed(lambda: [pinned.copy_(t) for t in state.values()])
    ckpt = ss.Checkpointer(root / "speed")
    ckpt.add("model", state)
    with ckpt:
        ckpt.restore()
        ckpt.prewarm()
        for step in (1, 2, 3):
            started = time.perf_counter()
            pending = ckpt.save(step)
            torch.cuda.synchronize()
            found["stall_s"] = time.perf_counter() - started
            pending.wait()
            found["durable_s"] = time.perf_counter() - started
        found["restore_s"] = timed(ckpt.restore)
    found["dcp_save_s"] = timed(lambda: dcp_save(state, checkpoint_id=root / "dcp", no_dist=True))
    found["dcp_load_s"] = timed(lambda: dcp_load(state, checkpoint_id=root / "dcp", no_dist=True))
    return found


def timed(action: Any) -> float:  # noqa: ANN401 - any callable
    """Return the seconds of `action`, with the device idle before and after."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def require(condition: bool, message: str) -> None:
    """Exit with 1 and a message unless `condition` holds."""
    if not condition:
        sys.stderr.write(f"check_cuda: FAILED: {message}\n")
        sys.exit(1)


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("check_cuda: no CUDA device: nothing was checked\n")
        sys.exit(NO_DEVICE)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    with tempfile.TemporaryDirectory(prefix="stepseal-gpu-") as folder:
        root = Path(folder)
        results = [check_exact(root / mode, mode) for mode in ("async", "sync")]
        results.append(measure(root, options.gigabytes))
    device = torch.cuda.get_device_name()
    results.append({"check": "summary", "device": device, "torch": str(torch.__version__)})
    for result in results:
        print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
