"""The facade: a job's `Checkpointer`, its handles and rules, and the read side `Run`.

Wires commit, transfer, components and storage; holds no protocol logic and no format knowledge.
"""

from stepseal.session._annotations import check_annotations, check_published
from stepseal.session._announcing import Commit, OnCommit, as_functions
from stepseal.session._checkpointer import Checkpointer
from stepseal.session._gated_part import GatedPart
from stepseal.session._importing import Imported, import_dcp
from stepseal.session._inflight import InFlight
from stepseal.session._late_root import open_late_root
from stepseal.session._loading import load
from stepseal.session._one_shot import save
from stepseal.session._pending import PendingSave, Saved
from stepseal.session._policies import Policy
from stepseal.session._progress import Progress
from stepseal.session._reports import LoadReport, Restored
from stepseal.session._restoring import check_choice, restore_error
from stepseal.session._room import Room
from stepseal.session._rules import SaveRule, before, every, on_signal
from stepseal.session._run import Run, open_run, open_step
from stepseal.session._share import Share, ShareOfRestore
from stepseal.session._step import Publication, Step
from stepseal.session._wiring import JobOptions, Join, Wiring, coordinate

__all__ = [
    "Checkpointer", "Commit", "GatedPart", "InFlight", "OnCommit", "Policy", "Progress", "Share",
    "ShareOfRestore", "as_functions", "check_annotations", "check_choice", "check_published",
    "restore_error", "Imported", "JobOptions", "Join", "LoadReport", "PendingSave", "Publication",
    "Restored", "Room", "Run", "SaveRule", "Saved", "Step", "Wiring", "before", "coordinate",
    "every", "import_dcp", "load", "on_signal", "open_late_root", "open_run", "open_step", "save",
]  # fmt: skip
