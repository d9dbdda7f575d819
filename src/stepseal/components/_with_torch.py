"""The names of the face that load torch: what holds, fills or names tensors."""

from stepseal.components._dcp_index import build_dcp_index
from stepseal.components._differences import DifferenceSink
from stepseal.components._ranges import RangeScan
from stepseal.components._samplers import GlobalSampler
from stepseal.components._sinks import DenseSink
from stepseal.components._tensors import FlatState, describe_flat, value_copies

__all__ = [
    "DenseSink",
    "DifferenceSink",
    "FlatState",
    "GlobalSampler",
    "RangeScan",
    "build_dcp_index",
    "describe_flat",
    "value_copies",
]
