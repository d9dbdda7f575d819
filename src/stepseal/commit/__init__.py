"""When a step exists: the commit protocol, its control plane, the catalog of a root, and resume.

Decisions are sans-IO (`Coordinator`, `Participant`: events in, actions out); drivers run them on
threads. Knows storage and layout; knows neither torch nor what the bytes of a component mean.
"""
# ruff: noqa: I001 - names side by side keep the face on one page
# fmt: off

from stepseal.commit._catalog import (StepEntry, list_foreign, list_steps, read_marker,
    read_step, refuse_newer)
from stepseal.commit._causes import cause_of, details_of, error_from, messages_of
from stepseal.commit._claims import (INCARNATIONS, ClaimRecord, Doubt, check_current,
    in_lineage, left_lineage_at, lineage_doubt, lineage_limits, read_claims)
from stepseal.commit._coordinator import Coordinator
from stepseal.commit._coordinator_driver import CoordinatorDriver
from stepseal.commit._deadlines import Deadlines
from stepseal.commit._draft import JobFacts
from stepseal.commit._folders import FolderName, parse_folder
from stepseal.commit._framing import Address
from stepseal.commit._guards import Guards, read_guards
from stepseal.commit._leases import (LEASES, Lease, drop_expired, read_leases, release_lease,
    take_lease)
from stepseal.commit._links import Hub, InProcessHub, Link
from stepseal.commit._messages import (Applied, Apply, Candidate, Captured, Checked, Committed,
    ComponentFacts, Fresh, PartFacts, Rejected, RestoreCalled, Restored, RestoreFailed, Write)
from stepseal.commit._outcome import resolve_save
from stepseal.commit._participant import Participant
from stepseal.commit._participant_driver import ParticipantDriver
from stepseal.commit._pins import PINS, pin, read_pin_reason, read_pins, unpin
from stepseal.commit._publish import Finisher
from stepseal.commit._reading import Reading
from stepseal.commit._roots import SUPERSEDED, TRASH
from stepseal.commit._socket_hub import SocketHub
from stepseal.commit._socket_link import SocketLink
from stepseal.commit._attempts import NONCE, attempt_at, sweep

__all__ = [
    "Address", "Applied", "Apply", "Candidate", "Captured", "Checked", "ClaimRecord", "Committed",
    "ComponentFacts", "Coordinator", "CoordinatorDriver", "Deadlines", "Doubt", "Finisher",
    "FolderName", "Fresh", "Guards", "Hub", "INCARNATIONS", "InProcessHub", "JobFacts", "LEASES",
    "Lease", "Link", "NONCE", "PINS", "PartFacts", "Participant", "ParticipantDriver",
    "Reading", "Rejected", "RestoreCalled", "RestoreFailed", "Restored",
    "SUPERSEDED", "SocketHub", "SocketLink", "StepEntry", "TRASH", "Write", "attempt_at",
    "cause_of", "check_current", "details_of", "drop_expired", "error_from", "in_lineage",
    "left_lineage_at", "lineage_doubt", "lineage_limits", "list_foreign",
    "list_steps", "messages_of", "parse_folder", "pin", "read_claims", "read_guards", "read_leases",
    "read_marker", "read_pin_reason", "read_pins", "read_step", "refuse_newer", "release_lease",
    "resolve_save", "sweep", "take_lease", "unpin",
]
