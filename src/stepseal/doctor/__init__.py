"""Which promises hold on a file system: what it really does, and what that means; for `doctor`.

A probe tries each ability in a folder of its own, a meeting shows what several hosts see of each
other, and a judgement says what follows for a promise. Saves and restores need none of this.
"""

from stepseal.doctor._checks import ABILITIES
from stepseal.doctor._meeting import Meeting, Peer, meet
from stepseal.doctor._probe import Probe, probe
from stepseal.doctor._promises import PromiseJudgement, judge_promises

__all__ = [
    "ABILITIES", "Meeting", "Peer", "Probe", "PromiseJudgement", "judge_promises", "meet", "probe",
]  # fmt: skip
