"""The step store: a root and the steps on it, in domain verbs.

Claims, attempts, commits, discovery, selection, protection and removal. Renames, exchanges and
directory syncs appear only here, in the implementation on POSIX storage. Knows storage and layout;
knows neither participants nor what the bytes of a component mean.
"""
# ruff: noqa: I001 - names side by side keep the face on one page
# fmt: off

from stepseal.steps._attempts import AttemptFolder
from stepseal.steps._catalog import StepEntry, refuse_newer
from stepseal.steps._claims import (ClaimRecord, Doubt, in_lineage, left_lineage_at,
    lineage_doubt, lineage_limits)
from stepseal.steps._copied import CopiedStep, is_step_folder, open_step_folder
from stepseal.steps._folders import FolderName, parse_folder
from stepseal.steps._guards import Guards
from stepseal.steps._open import locate_root, open_store
from stepseal.steps._owned import OwnedSteps
from stepseal.steps._posix import PosixSteps
from stepseal.steps._publish import Indexer
from stepseal.steps._reading import Reading
from stepseal.steps._remembered import KnownStep, StepInfo
from stepseal.steps._removal import Removal
from stepseal.steps._retire import PruneReport, Retirement
from stepseal.steps._store import ReadSteps, RemoveSteps, StepStore
from stepseal.steps._publishers import PublisherWatch
from stepseal.steps._unfinished import Unfinished

__all__ = [
    "AttemptFolder", "ClaimRecord", "CopiedStep", "Doubt", "FolderName", "Guards", "Indexer",
    "KnownStep", "OwnedSteps", "PosixSteps", "PruneReport", "PublisherWatch", "ReadSteps",
    "Reading", "Removal", "RemoveSteps", "Retirement", "StepEntry", "StepInfo", "StepStore",
    "Unfinished", "in_lineage", "is_step_folder", "left_lineage_at", "lineage_doubt",
    "lineage_limits", "locate_root", "open_step_folder", "open_store", "parse_folder",
    "refuse_newer",
]
