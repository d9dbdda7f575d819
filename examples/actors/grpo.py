"""GRPO on a toy task, as plain objects: what both examples turn into actors.

The prompt is a number, the answer one token, and the right one is the prompt modulo `NUM_TOKENS`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss

__all__ = ["Dataset", "Learner", "ReplayBuffer", "Sample", "check", "check_step", "same"]

NUM_PROMPTS, NUM_TOKENS, GROUP = 32, 8, 8
Sample = tuple[int, int, float]
"""Prompt, token, and how much better the token was than the others of its group."""


def new_policy() -> nn.Module:
    """Return a policy, the same in each process: (batch,) prompts to (batch, NUM_TOKENS) logits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(NUM_PROMPTS, 16), nn.Tanh(), nn.Linear(16, NUM_TOKENS))


class Learner:
    """One of a group that shards policy and optimizer with FSDP2; the group acts together."""

    def __init__(self, rank: int, size: int, meeting: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        self.policy = new_policy()
        fully_shard(self.policy)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=0.05)
        self.share = slice(rank, None, size)
        self.trained, self.dies = 0, False

    def rollout(self, prompts: list[int]) -> list[Sample]:
        """Draw a group of answers to each prompt."""
        with torch.no_grad():
            chances = self.policy(torch.tensor(prompts)).softmax(-1)
        found: list[Sample] = []
        for prompt, tokens in zip(prompts, torch.multinomial(chances, GROUP, True), strict=True):
            reward = (tokens == prompt % NUM_TOKENS).float()
            advantage = (reward - reward.mean()) / (reward.std() + 1e-3)
            pairs = zip(tokens.tolist(), advantage.tolist(), strict=True)
            found += [(prompt, token, better) for token, better in pairs]
        return found

    def train(self, samples: list[Sample]) -> float:
        """Take one step on this rank's share; return its loss."""
        share = zip(*samples[self.share], strict=True)
        prompts, tokens, advantages = map(torch.tensor, share)
        logits = self.policy(prompts).log_softmax(-1)
        loss = -(advantages * logits.gather(1, tokens[:, None]).squeeze(1)).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.trained += len(samples)
        return float(loss.item())

    def die_in_the_next_save(self) -> None:
        """Fail as a machine does, once the policy is captured."""
        self.dies = True

    def counters(self) -> dict[str, int]:
        """Return the counters, for a save."""
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"trained": self.trained}

    def set_counters(self, counters: dict[str, int]) -> None:
        """Go back to what they were."""
        self.trained = counters["trained"]

    def values(self) -> dict[str, torch.Tensor]:
        """Return this rank's part of all tensors."""
        found: dict[str, Any] = dict(self.policy.state_dict())
        for number, state in enumerate(self.optimizer.state.values()):
            found |= {f"{number}.{key}": value for key, value in state.items()}
        return {
            key: (one.to_local() if isinstance(one, DTensor) else one).clone()
            for key, one in found.items()
        }


class ReplayBuffer:
    """Holds samples, and draws batches of them."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.random = random.Random(0)

    def put(self, samples: list[Sample]) -> None:
        """Take samples."""
        self.samples += samples

    def draw(self, number: int) -> list[Sample]:
        """Return some of them."""
        return self.random.choices(self.samples, k=number)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next batch depends on."""
        return {"samples": list(self.samples), "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.samples = list(state["samples"])
        self.random.setstate(state["random"])


class Dataset:
    """Prompts in a fixed order."""

    def __init__(self) -> None:
        self.position = 0

    def take(self, number: int) -> list[int]:
        """Return the next prompts."""
        first, self.position = self.position, self.position + number
        return [prompt * 7 % NUM_PROMPTS for prompt in range(first, self.position)]

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go back to a position."""
        self.position = state["position"]


def same(left: object, right: object) -> bool:
    """Return whether two trees are equal, to the last bit."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def check(what: str, holds: bool) -> None:
    """Print a claim that holds; end the run with one that does not."""
    if not holds:
        sys.exit(f"wrong: {what}")
    print(f"checked: {what}")


def check_step(root: str, number: int) -> None:
    """Verify a step, and read it by stock PyTorch, without stepseal and without ranks."""
    step = ss.open(root).step(number)
    check(f"stepseal verifies every byte of {step.path}", step.verify() == ())
    state, ours = new_policy().state_dict(), step.tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that there are no ranks
        load(state, checkpoint_id=step.path, no_dist=True)
    equal = all(torch.equal(tensor, ours[name]) for name, tensor in state.items())
    check(f"torch.distributed.checkpoint.load reads its {len(state)} tensors of the policy", equal)
