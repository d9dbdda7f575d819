"""Reads checkpoint folders of other libraries as components; today those of stock DCP.

All input counts as hostile until it is checked. Nothing is unpickled, and memory use is
proportional to the bytes read. Knows neither commits nor live state.
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
