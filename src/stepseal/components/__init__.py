"""Who is saved: live objects to descriptions and back.

The home of torch; knows no storage and no protocol.
"""

# ruff: noqa: I001 - isort would give each name a line, and a face stays under 60 lines

from stepseal.components._advice import leave_out
from stepseal.components._arena import Arena
from stepseal.components._capture import capture, tree_of
from stepseal.components._codecs import decode_tree, encode_tree
from stepseal.components._conversion import Conversion
from stepseal.components._codecs_registry import register, register_codec
from stepseal.components._dcp_index import build_dcp_index
from stepseal.components._differences import DifferenceSink
from stepseal.components._external import External, ExternalComponent
from stepseal.components._fitting import changed_world
from stepseal.components._groups import DeclaredSharing, per_group, sharded
from stepseal.components._leaves import outside_inference_mode, range_problem
from stepseal.components._live_data import byte_view, tensor_over
from stepseal.components._loaders import (
    LoaderComponent, begin_to_resume, check_generators, has_no_state, waits_to_resume,
)  # fmt: skip
from stepseal.components._modules import can_convert, unsaved_buffers
from stepseal.components._registry import Registry
from stepseal.components._replicas import ReplicaRule, Validation, as_patterns
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._ranges import RangeScan
from stepseal.components._resharding import (
    MADE_ANEW, Placement, Reshard, SavedPayloads, readers_of, reshard_saved,
)  # fmt: skip
from stepseal.components._samplers import GlobalSampler, SamplerComponent, sampler_of
from stepseal.components._sinks import DenseSink
from stepseal.components._stages import Taken, entries_left
from stepseal.components._tensors import FlatState, describe_flat, value_copies
from stepseal.components._trees import TreeComponent
from stepseal.components._types import (
    CapturedComponent, Component, RestorePlan, SavedComponent, SavedTensor, Sharing,
    StagingMemory, Topology,
)  # fmt: skip
from stepseal.components._unchanged import Unchanged

__all__ = [
    "MADE_ANEW", "RNG", "Arena", "CapturedComponent", "Component", "Conversion", "DeclaredSharing",
    "DenseSink", "DifferenceSink", "External", "ExternalComponent", "FlatState", "GlobalSampler",
    "LoaderComponent", "Placement", "RNGComponent", "RangeScan", "Registry", "ReplicaRule",
    "Reshard", "RestorePlan", "SamplerComponent", "SavedComponent", "SavedPayloads", "SavedTensor",
    "Sharing", "StagingMemory", "Taken", "Topology", "TreeComponent", "Unchanged", "Validation",
    "as_patterns", "begin_to_resume", "build_dcp_index", "byte_view", "can_convert", "capture",
    "changed_world", "check_generators", "decode_tree", "describe_flat", "encode_tree",
    "entries_left", "has_no_state", "leave_out", "outside_inference_mode", "per_group",
    "range_problem", "readers_of", "register", "register_codec", "reshard_saved", "sampler_of",
    "sharded", "tensor_over", "tree_of", "unsaved_buffers", "value_copies", "waits_to_resume",
]  # fmt: skip
