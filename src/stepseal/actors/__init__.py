"""Steps of participants that make no calls of their own: actors, processes, objects on a loop.

A `Coordinator` in the controller opens each call; a `Participant` beside each owner of components
carries it out. Doorbells begin a call where its owner works off its calls.
"""

from stepseal.actors._admission import Admission
from stepseal.actors._coordinator import Coordinator
from stepseal.actors._doorbell import Doorbell, InProcess, Member, in_process, processes, serve
from stepseal.actors._fetched import Fetched, fetched
from stepseal.actors._letters import ranks
from stepseal.actors._owner import participant_of
from stepseal.actors._participant import Participant
from stepseal.actors._rank import Rank

__all__ = [
    "Admission",
    "Coordinator",
    "Doorbell",
    "Fetched",
    "InProcess",
    "Member",
    "Participant",
    "Rank",
    "fetched",
    "in_process",
    "participant_of",
    "processes",
    "ranks",
    "serve",
]
