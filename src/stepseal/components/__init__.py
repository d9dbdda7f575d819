"""Who is saved: live objects to descriptions and back. Only names of `_with_torch` load torch."""

# ruff: noqa: I001 - isort would give each name a line, and a face stays under 60 lines
from typing import TYPE_CHECKING, Any

from stepseal.components._advice import leave_out
from stepseal.components._arena import Arena
from stepseal.components._capture import capture, tree_of
from stepseal.components._codecs import decode_tree, encode_tree, register, register_codec
from stepseal.components._conversion import Conversion
from stepseal.components._external import External, ExternalComponent
from stepseal.components._fitting import changed_world, range_problem
from stepseal.components._groups import DeclaredSharing, per_group, sharded
from stepseal.components._live_data import byte_view, tensor_over
from stepseal.components._loaders import (
    LoaderComponent, begin_to_resume, check_generators, has_no_state, waits_to_resume,
)  # fmt: skip
from stepseal.components._registry import Registry
from stepseal.components._replicas import ReplicaRule, Validation, as_patterns
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._resharding import (
    MADE_ANEW, Placement, Reshard, SavedPayloads, readers_of, reshard_saved,
)  # fmt: skip
from stepseal.components._sampling import SamplerComponent, SharedPosition, sampler_of
from stepseal.components._stages import Taken, entries_left
from stepseal.components._torch_in_use import is_tensor, outside_inference_mode, torch_in_use
from stepseal.components._trees import TreeComponent
from stepseal.components._types import (
    CapturedComponent, Component, RestorePlan, SavedComponent, SavedTensor, Sharing,
    StagingMemory, Topology, can_convert, unsaved_buffers,
)  # fmt: skip
from stepseal.components._unchanged import Unchanged

if TYPE_CHECKING:
    from stepseal.components._with_torch import (
        DenseSink, DifferenceSink, FlatState, GlobalSampler, RangeScan, build_dcp_index,
        describe_flat, value_copies,
    )  # fmt: skip

__all__ = [
    "MADE_ANEW", "RNG", "Arena", "CapturedComponent", "Component", "Conversion", "DeclaredSharing",
    "DenseSink", "DifferenceSink", "External", "ExternalComponent", "FlatState", "GlobalSampler",
    "LoaderComponent", "Placement", "RNGComponent", "RangeScan", "Registry", "ReplicaRule",
    "Reshard", "RestorePlan", "SamplerComponent", "SavedComponent", "SavedPayloads", "SavedTensor",
    "SharedPosition", "Sharing", "StagingMemory", "Taken", "Topology", "TreeComponent", "Unchanged",
    "Validation", "as_patterns", "begin_to_resume", "build_dcp_index", "byte_view", "can_convert",
    "capture", "changed_world", "check_generators", "decode_tree", "describe_flat", "encode_tree",
    "entries_left", "has_no_state", "is_tensor", "leave_out", "outside_inference_mode", "per_group",
    "range_problem", "readers_of", "register", "register_codec", "reshard_saved", "sampler_of",
    "sharded", "tensor_over", "torch_in_use", "tree_of", "unsaved_buffers", "value_copies",
    "waits_to_resume",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the names above
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stepseal.components import _with_torch

    return getattr(_with_torch, name)
