"""Which promises hold on a file system; used by `stepseal doctor` only.

A probe tries each ability of the file system in a temporary folder. A meeting shows what several
hosts see of each other. A judgement says what follows for each promise.
"""

from stepseal.doctor._checks import ABILITIES
from stepseal.doctor._meeting import Meeting, Peer, meet
from stepseal.doctor._probe import Probe, probe
from stepseal.doctor._promises import PromiseJudgement, judge_promises

__all__ = [
    "ABILITIES", "Meeting", "Peer", "Probe", "PromiseJudgement", "judge_promises", "meet", "probe",
]  # fmt: skip
