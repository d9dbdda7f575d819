"""Who is saved: live objects to frozen buffers and back.

The home of torch; knows no storage and no commit.
"""

# ruff: noqa: I001 - isort would give each name a line, and a face stays under 60 lines

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._codecs import decode_tree, encode_tree
from stepseal.components._codecs_registry import register, register_codec
from stepseal.components._dcp_components import (
    ForeignComponent, foreign_components, optimizer_value,
)  # fmt: skip
from stepseal.components._dcp_index import build_dcp_index
from stepseal.components._dcp_source import (
    ForeignIndex, ForeignItem, ForeignTensor, read_dcp_index,
)  # fmt: skip
from stepseal.components._foreign_values import (
    ValueBudget, check_tensor_record, read_tensor_record, read_value_record,
)  # fmt: skip
from stepseal.components._imported import ImportedState, tree_of
from stepseal.components._live_data import byte_view
from stepseal.components._registry import Registry
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._sinks import DenseSink
from stepseal.components._types import (
    CapturedComponent, Component, RestorePlan, SavedComponent, SavedTensor, Sharing,
    StagingMemory, Topology, TreeContents,
)  # fmt: skip

__all__ = [
    "RNG", "Arena", "CapturedComponent", "Component", "DenseSink",
    "ForeignComponent", "ForeignIndex", "ForeignItem", "ForeignTensor", "ImportedState",
    "RNGComponent", "Registry", "RestorePlan", "SavedComponent", "SavedTensor", "Sharing",
    "StagingMemory", "Topology", "TreeContents", "ValueBudget", "build_dcp_index", "byte_view",
    "capture",
    "check_tensor_record", "decode_tree", "encode_tree", "foreign_components", "optimizer_value",
    "read_dcp_index", "read_tensor_record", "read_value_record", "register", "register_codec",
    "tree_of",
]  # fmt: skip
