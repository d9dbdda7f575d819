"""Who is saved: live objects to frozen buffers and back.

The home of torch; knows no storage and no commit.
"""

from stepseal.components._codecs import decode_tree, encode_tree
from stepseal.components._codecs_registry import register, register_codec
from stepseal.components._dcp_index import build_dcp_index
from stepseal.components._registry import Registry
from stepseal.components._rng import RNG, RNGComponent
from stepseal.components._sinks import DenseSink
from stepseal.components._staging import Arena
from stepseal.components._types import (
    CapturedComponent,
    Component,
    RestorePlan,
    SavedComponent,
    SavedTensor,
    Sharing,
    Staging,
    Topology,
    TreeContents,
)

__all__ = [
    "RNG",
    "Arena",
    "CapturedComponent",
    "Component",
    "DenseSink",
    "RNGComponent",
    "Registry",
    "RestorePlan",
    "SavedComponent",
    "SavedTensor",
    "Sharing",
    "Staging",
    "Topology",
    "TreeContents",
    "build_dcp_index",
    "decode_tree",
    "encode_tree",
    "register",
    "register_codec",
]
