"""When a step exists: two-phase commit between named participants and one coordinator.

Decisions are sans-IO (`Coordinator`, `Participant`: events in, actions out). Drivers run them on
threads; hubs and links carry messages. The protocol never accesses storage: it calls
`CoordinatorSteps` and `ResolveAttempt`, which `steps` implements. Knows neither torch nor ranks.
"""
# ruff: noqa: I001 - names side by side keep the face on one page
# fmt: off

from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._coordinator_driver import CoordinatorDriver
from stepseal.protocol._deadlines import Deadlines
from stepseal.protocol._draft import JobInfo
from stepseal.protocol._failures import Failure, details_of, error_from, failure_of, messages_of
from stepseal.protocol._figures import Cost, Show, View
from stepseal.protocol._gated_driver import ask_save, is_prepared
from stepseal.protocol._gates import Gate, as_gates
from stepseal.protocol._incarnation import Announce, Housekeep
from stepseal.protocol._opening import (Begin, BeginRestore, BeginSave, Opening, Relation,
    check_frozen)
from stepseal.protocol._messages import (Aborted, Applied, Apply, Candidate, Captured, Checked,
    Committed, Compare, Compared, ComponentReport, Fresh, FromCoordinator, PartReport, Rejected,
    RestoreCalled, Restored, RestoreFailed, SaveGranted, Write)
from stepseal.protocol._outcome import resolve_save
from stepseal.protocol._participant import Participant, RestoreAnswer, SaveState
from stepseal.protocol._participant_driver import ParticipantDriver
from stepseal.protocol._reach import place_of, reach
from stepseal.protocol._safe_points import OwnPoints
from stepseal.protocol._socket_hub import SocketHub
from stepseal.protocol._socket_link import SocketLink
from stepseal.protocol._steps import CoordinatorSteps, ResolveAttempt
from stepseal.protocol._teller import Teller
from stepseal.protocol._transport import FromLinks, Hub, InProcessHub, Link
from stepseal.protocol._triggers import Due, Fired, Timing
from stepseal.protocol._wire import Address

__all__ = [
    "Aborted", "Address", "Announce", "Applied", "Apply", "Begin", "BeginRestore", "BeginSave",
    "Candidate", "Captured", "Checked", "Committed", "Compare", "Compared", "ComponentReport",
    "Coordinator", "CoordinatorDriver", "CoordinatorSteps", "Cost", "Deadlines", "Due", "Failure",
    "Fired", "Fresh", "FromCoordinator", "FromLinks", "Gate", "Housekeep", "Hub", "InProcessHub",
    "JobInfo", "Link", "Opening", "OwnPoints", "PartReport", "Participant", "ParticipantDriver",
    "Rejected", "Relation", "ResolveAttempt", "RestoreAnswer", "RestoreCalled", "RestoreFailed",
    "Restored", "SaveGranted", "SaveState", "Show", "SocketHub", "SocketLink", "Teller", "Timing",
    "View", "Write", "as_gates", "ask_save", "check_frozen", "details_of", "error_from",
    "failure_of", "is_prepared", "messages_of", "place_of", "reach", "resolve_save",
]
