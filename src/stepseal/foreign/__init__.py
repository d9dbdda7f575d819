"""Checkpoint folders that somebody else wrote, as components: today those of stock DCP.

Everything here is hostile until it is checked; nothing is unpickled, and memory is in proportion
to the bytes that are read. It knows no commit and no live state.
"""

from stepseal.foreign._components import ForeignComponent, ImportedComponent
from stepseal.foreign._folder import DcpFolder
from stepseal.foreign._metadata import ForeignIndex, ForeignItem, ForeignTensor, read_metadata

__all__ = [
    "DcpFolder",
    "ForeignComponent",
    "ForeignIndex",
    "ForeignItem",
    "ForeignTensor",
    "ImportedComponent",
    "read_metadata",
]
