"""Whoever is killed, stopped, blocked or cut off, in whatever phase: every call of everybody else
returns by its deadline with a typed error that names who, storage is sound, and the job resumes.

See `_cases` for the matrix. The same proofs must catch deliberately broken protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
from tests.campaigns.hang import run as _hang
from tests.campaigns.hang._cases import How, matrix, parse_case
from tests.campaigns.hang._words import unsaid
from tests.multi._ranks import Call

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row, Size

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14_400)]


def check(size: Size, capsys: pytest.CaptureFixture[str]) -> Row:
    row = _hang.run(size)
    with capsys.disabled():
        print("\n" + "\n  ".join([row.text(), *row.notes]))
    assert row.good, "\n".join([*row.violations, *row.missed])
    return row


@pytest.mark.serial
def test_nobody_hangs_whoever_is_hit(capsys: pytest.CaptureFixture[str]) -> None:
    row = check("fast", capsys)
    assert row.cases > 110


def test_the_fast_size_hits_every_gate_a_process_in_every_way_and_a_line() -> None:
    cases = list(_hang._cases("fast"))
    assert len(set(cases)) == len(cases)
    gates = {(case.gate, case.victim) for case in matrix(2, ("kill",), (0, 1))}
    of_two = [case for case in cases if case.world == 2]
    for parted in (False, True):
        hit = {(case.gate, case.victim) for case in of_two if case.parted == parted}
        assert hit == gates
    assert {case.how for case in cases} == set(get_args(How)) - {"leave"}


@pytest.mark.nightly
def test_nobody_hangs_in_jobs_of_up_to_eight(capsys: pytest.CaptureFixture[str]) -> None:
    check("nightly", capsys)


PHASE = "save of step 30, phase write: {}. Nothing was committed and older steps are untouched."
GONE = "connection closed: the process ended or left without a goodbye"
LEFT = "save of step 30: the coordinator closed the connection. This participant had prepared"


def said(message: str, *, rank: int = 2, name: str = "wait", kind: str = "x") -> Call:
    facts = {"kind": kind, "message": message, "failures": {}, "typed": True}
    return Call(rank, name, 0.0, 1.0, "raised", facts)


@pytest.mark.parametrize(
    ("case", "call", "missing"),
    [
        ("kill:save/write:1of3", said(PHASE.format(f"trainer/1: {GONE}")), ""),
        ("kill:save/write:1of3", said("trainer/1"), "where"),
        ("kill:save/write:1of3", said(PHASE.format(GONE)), "who"),
        ("kill:save/write:1of3", said(PHASE.format("trainer/1 failed")), "why"),
        ("kill:save/write:1of3", said(PHASE.format(f"trainer/1, trainer/0: {GONE}")), "blames"),
        ("kill:save/capture:1of3", said(PHASE.format(f"trainer/1: {GONE}")), "expected capture"),
        ("kill:save/write:1of3", said(LEFT), "who"),
        ("kill:save/write:0of3", said(LEFT), ""),
        ("kill:save/write:0of3", said(LEFT.partition(".")[0]), "whether it had prepared"),
        ("kill:save/write:0of3", said(PHASE.format(f"trainer/1: {GONE}")), "who"),
        ("kill:save/write:0of3", said(f"{LEFT}. trainer/1 failed"), "blames trainer/1"),
        ("pause:save/write:0of3", said("trainer/2 coordinator"), "where"),
        ("stop:save/write:1of3", said(PHASE.format(f"trainer/1: {GONE}")), "why"),
        ("stop:save/write:1of3", said("a restore failed", kind="tainted"), ""),
    ],
)
def test_an_error_must_say_who_where_and_why(case: str, call: Call, missing: str) -> None:
    found = unsaid(parse_case(case), call)
    assert missing in found if missing else not found
