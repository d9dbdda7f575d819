"""Other ways into a step: one process without ranks, and stock PyTorch without stepseal."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load

from examples.demo.compare import tensor_differences
from examples.demo.data import read_library
from examples.demo.jobs import check
from examples.demo.model import GPT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import stepseal as ss
    from examples.demo.settings import ModelSize

__all__ = ["compare_converted", "compare_stock_load", "loss_on_one_process"]


def loss_on_one_process(step: ss.Step, size: ModelSize) -> float:
    """Load the model of a step into a plain module, and return its loss on one stretch of text.

    Raises:
        Corrupt: a byte of the step is not what was saved.
    """
    model = GPT(size)
    saved = step.tensors()
    model.load_state_dict({name: saved[name] for name in model.state_dict()})
    text = read_library()[-(64 * size.context + 1) :].long()
    windows = text[:-1].view(64, size.context)
    with torch.inference_mode():
        return float(model.eval()(windows))


def compare_stock_load(step: ss.Step) -> int:
    """Read a step with `torch.distributed.checkpoint.load`; return how many tensors were equal."""
    ours = step.tensors()
    theirs = {name: torch.empty_like(tensor) for name, tensor in ours.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that there are no ranks
        load(theirs, checkpoint_id=step.path, no_dist=True)
    differing = tensor_differences(ours, theirs)
    check(not differing, f"torch.distributed.checkpoint.load reads other bits: {differing[:5]}")
    return len(ours)


def compare_converted(step: ss.Step, target: Path) -> tuple[str, int]:
    """Convert a step with PyTorch's own tool; return the command and how many tensors are equal."""
    module = "torch.distributed.checkpoint.format_utils"
    arguments = ["-m", module, "dcp_to_torch", step.path, str(target)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"dcp_to_torch failed:\n{done.stderr}")
    theirs = dict(_tensors("", torch.load(target, weights_only=True)))
    differing = tensor_differences(step.tensors(), theirs)
    check(not differing, f"dcp_to_torch writes other bits: {differing[:5]}")
    return " ".join(["python", *arguments]), len(theirs)


def _tensors(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _tensors(f"{name}.", value)
