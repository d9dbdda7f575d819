"""Trainers in Forgather's shape: their own classes, with the attributes that the adapter reads."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Counter", "Pattern", "StateComponent", "Trainer"]


class Pattern(enum.Enum):
    """The words of Forgather."""

    GLOBAL = "global"
    PER_RANK = "per_rank"
    REPLICATED = "replicated"
    PER_GROUP = "per_group"
    PER_NODE = "per_node"


@dataclass
class StateComponent:
    """A description of one component."""

    key: str
    stateful: Any
    sharing_pattern: Any
    process_group_name: str | None = None
    required: bool = True
    validate_replication: bool = False
    validation_level: Any = "tensor"
    metadata: dict[str, Any] = field(default_factory=dict)


class Counter:
    """Anything with a state: here one number."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


class Trainer:
    """All patterns at once; the value of each component tells whose it is."""

    def __init__(self, values: Mapping[str, int], groups: Mapping[str, Any]) -> None:
        self.groups = groups
        self.dispatches = True
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(values.get("model", 0))
        self.counters = {key: Counter(value) for key, value in values.items() if key != "model"}
        self.patterns: dict[str, Any] = {
            "trainer": Pattern.GLOBAL,
            "stage": Pattern.PER_GROUP,
            "cache": Pattern.PER_NODE,
            "rng": "per_rank",
        }

    def get_state_components(self) -> list[StateComponent]:
        everybody = "world" if "world" in self.groups else None
        model = StateComponent(
            "model", self.model, Pattern.REPLICATED, everybody, validate_replication=True
        )
        optimizer = StateComponent("optimizer", self.optimizer, Pattern.REPLICATED, required=False)
        data = Pattern.GLOBAL if self.dispatches else Pattern.PER_RANK
        others = []
        for key, counter in self.counters.items():
            pattern = self.patterns.get(key, data)
            name = "dp_group" if pattern is Pattern.PER_GROUP else None
            others.append(StateComponent(key, counter, pattern, name))
        return [model, optimizer, *others]

    def get_process_groups(self) -> Mapping[str, Any]:
        return self.groups

    def values(self) -> dict[str, int]:
        """Return the value of each component."""
        found = {key: counter.value for key, counter in self.counters.items()}
        return {"model": int(self.model.weight[0, 0]), **found}
