"""The release of stepseal, in one place."""

__version__ = "0.1.0.dev0"
"""Version of this release (PEP 440)."""
