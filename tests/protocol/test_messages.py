from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.steps._kit import captured, component, part_report

from stepseal import errors
from stepseal.layout import Sharing, numbered_sets, payload_report
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import MAX_FAILURES, MAX_TEXT, failure_of, messages_of, shortened
from stepseal.storage import KeyExists, KeyNotFound

CAUSE = messages.Failure("corrupt", "text", "path", 5, "model")
FROM_PARTICIPANT: list[messages.FromParticipant] = [
    messages.Hello("trainer/0", "token", "1.0"),
    messages.Challenge("n" * 32),
    messages.Heartbeat(),
    captured(components=[component(payload="", writes=True)], cut={"x": 1}, tags=["t"]),
    messages.EnginesReturned(1, "a" * 32),
    messages.Prepared(1, "a" * 32, part_report("trainer/0"), {"model": {"": "d" * 32}}),
    messages.Compared(1, {"model": {"": {"w": "d" * 16}}}, {"model": {"w": "1 of 2"}}),
    messages.Failed(1, 10, "write", CAUSE),
    messages.RestoreCalled(1, None, True, {"model": "require"}),
    messages.RestoreCalled(1, 5, False, {}),
    messages.Checked(1, 1),
    messages.Checked(1, 1, {"model": "0f"}),
    messages.Applied(1, 1),
    messages.Rejected(1, 1, True, CAUSE),
    messages.Fired("SIGTERM", stop=True, grace_s=30.0),
    messages.Progressed(1, 5 << 30, 6 << 30, 1.5, 0.25),
    messages.Progressed(1, 0),
    messages.SafePoint(1, 41),
    messages.SaveAsked(10, "actor"),
    messages.Goodbye(),
    messages.Holds(["model"]),
]
FROM_COORDINATOR: list[messages.FromCoordinator] = [
    messages.Heartbeat(),
    messages.Proof("d" * 64),
    messages.BeginSave(3, "life", ["trainer/0", "trainer/1"], 10, True),
    messages.Thaw(3),
    messages.AskSafePoint(1),
    messages.Target(1, 42),
    messages.Target(1, 42, messages.Due("SIGTERM", "SIGTERM", [3])),
    messages.Lapsed(1),
    messages.BeginRestore(3, "life", ["trainer/0"], 10, True, {"model": "skip"}, ["model"], True),
    messages.Dismiss(),
    messages.SaveGranted(3, 10, "actor", ["actor", "model"], ["actor/0", "actor/1"]),
    messages.SaveRefused(10, "actor", "step_exists", "it is there", True),
    messages.Welcome(),
    messages.Refused("invalid_input", "another release"),
    messages.Write(1, "a" * 32, "staging", "nonce", 3, {"callbacks": "it raised"}),
    messages.TakeInventory(1, "a" * 32),
    messages.Compare(1, {"model": [""]}, ["model"], {"trainer/0": part_report("trainer/0")}),
    messages.Committed(1, "a" * 32, 10, "b" * 64),
    messages.Aborted(1, 10, "corrupt", "text", {"trainer/0": CAUSE}),
    messages.Unresolved(1, "a" * 32, 10, "text"),
    messages.Candidate(1, 1, 10, "a" * 32, "b" * 64),
    messages.Apply(1, 1),
    messages.Restored(1, 10, 2, {"step-11": "damaged"}),
    messages.Fresh(1, 2),
    messages.RestoreFailed(1, "corrupt", "text", {}, {"trainer/0": CAUSE}, True),
    messages.RestoreFailed(1, "state_mismatch", "text", {}, {}, False, left={"model": "1"}),
]


def test_samples_hold_every_message() -> None:
    assert {type(m) for m in FROM_PARTICIPANT} == set(get_args(messages.FromParticipant))
    assert {type(m) for m in FROM_COORDINATOR} == set(get_args(messages.FromCoordinator))


@pytest.mark.parametrize("message", FROM_PARTICIPANT, ids=lambda m: type(m).__name__)
def test_participants_messages_round_trip(message: messages.FromParticipant) -> None:
    assert messages.decode_from_participant(messages.encode_message(message)) == message


@pytest.mark.parametrize("message", FROM_COORDINATOR, ids=lambda m: type(m).__name__)
def test_coordinators_messages_round_trip(message: messages.FromCoordinator) -> None:
    assert messages.decode_from_coordinator(messages.encode_message(message)) == message


@pytest.mark.parametrize("value", [1.5, 3, math.inf, -math.inf, math.nan])
def test_metrics_that_are_not_finite_survive(value: float) -> None:
    sent = captured(metrics={"loss": value})
    found = messages.decode_from_participant(messages.encode_message(sent))
    assert isinstance(found, messages.Captured)
    back = float(found.metrics["loss"])
    assert back == value or (math.isnan(back) and math.isnan(value))
    again = messages.decode_from_participant(messages.encode_message(found))
    assert again == found


def test_messages_of_the_other_side_are_refused() -> None:
    with pytest.raises(errors.InvalidInput):
        messages.decode_from_coordinator(messages.encode_message(messages.Goodbye()))
    with pytest.raises(errors.InvalidInput):
        messages.decode_from_participant(messages.encode_message(messages.Welcome()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"type":"Nobody"}',
        '{"type":"Heartbeat","more":1}',
        '{"type":"Checked","call":1}',
        '{"type":"Checked","call":1,"round":1,"left":{"model":""}}',
        '{"type":"Checked","call":1,"round":1,"left":{"model":"-1"}}',
        '{"type":"Checked","call":-1,"round":1}',
        '{"type":"Checked","call":true,"round":1}',
        '{"type":"Checked","call":1.5,"round":1}',
        '{"type":"Checked","call":9007199254740992,"round":1}',
        '{"type":"Checked","call":' + "9" * 5000 + ',"round":1}',
        '{"type":"Hello","participant":"\\ud800","token":"","version":""}',
        "[" * 100_000,
        '{"type":"Hello","participant":' + "[" * 100_000,
        '{"type":"Captured","call":1,"step":1,"components":[],"cut":{},"metrics":{"x":"1"},"tags":[]}',
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    for decode in (messages.decode_from_participant, messages.decode_from_coordinator):
        with pytest.raises(errors.InvalidInput):
            decode(text.encode())


def mangled() -> st.SearchStrategy[bytes]:
    whole = st.sampled_from(
        [messages.encode_message(m) for m in FROM_PARTICIPANT + FROM_COORDINATOR]
    )

    def mangle(data: bytes, at: int, junk: bytes, drop: int) -> bytes:
        at %= len(data) + 1
        return data[:at] + junk + data[at + drop :]

    return st.builds(
        mangle, whole, st.integers(0, 10_000), st.binary(max_size=6), st.integers(0, 9)
    )


def json_like() -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    keys = st.sampled_from(
        ["type", "call", "step", "round", "cause", "kind", "token", "components"]
    )
    names = st.sampled_from([type(m).__name__ for m in FROM_PARTICIPANT + FROM_COORDINATOR])
    return st.recursive(
        scalars | names,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=6),
        max_leaves=12,
    )


@given(st.binary(max_size=64) | mangled() | json_like().map(msgspec.json.encode))
def test_hostile_frames_only_ever_raise_invalid_input(data: bytes) -> None:
    for decode in (messages.decode_from_participant, messages.decode_from_coordinator):
        with suppress(errors.InvalidInput):
            found = decode(data)
            assert decode(messages.encode_message(found)) == found


def test_cause_of_our_errors_keeps_their_facts() -> None:
    error = errors.Corrupt("text", path="p", errno=5, component="model")
    assert failure_of(error) == messages.Failure("corrupt", "text", "p", 5, "model")


@pytest.mark.parametrize("cls", [KeyNotFound, KeyExists])
def test_cause_of_a_refined_error_has_a_kind_that_all_know(cls: type[KeyNotFound]) -> None:
    assert failure_of(cls("x")).kind == errors.StorageUnavailable.kind


def test_cause_of_other_errors() -> None:
    found = failure_of(OSError(28, "No space left", "/root/x"))
    assert (found.kind, found.path, found.errno) == ("storage_unavailable", "/root/x", 28)
    assert failure_of(OSError("plain")).path is None
    assert failure_of(ValueError("bad")) == messages.Failure("ValueError", "ValueError: bad")


def test_cause_of_any_text_can_be_sent() -> None:
    for error in (
        errors.Corrupt("\udcff" * 3, path="\udcff"),
        OSError(5, "x", "\udcff"),
        KeyError("\ud800"),
    ):
        failed = messages.Failed(1, 1, "write", failure_of(error))
        assert messages.decode_from_participant(messages.encode_message(failed)) == failed


def test_cause_of_a_long_text_is_cut() -> None:
    found = failure_of(ValueError("x" * 10_000_000))
    assert len(found.message) < MAX_TEXT + 20


def test_failures_are_cut_to_a_number_that_travels() -> None:
    many = {f"p/{n:04}": CAUSE for n in range(2 * MAX_FAILURES)}
    assert list(shortened(many)) == sorted(many)[:MAX_FAILURES]
    assert messages_of({"p/0": CAUSE}) == {"p/0": "text"}


def test_the_token_is_not_in_the_text_of_a_hello() -> None:
    text = f"{messages.Hello('trainer/0', 'secret', '1.0')!r}"
    assert "secret" not in text
    assert "trainer/0" in text


@pytest.mark.parametrize("sharing", [s for s in Sharing if s.name not in ("PER_GROUP", "PER_NODE")])
def test_a_capture_report_does_not_grow_with_the_world(sharing: Sharing) -> None:
    sizes = set()
    for world_size in (1, 64, 1024):
        participants = tuple(f"trainer/{rank:04}" for rank in range(world_size))
        report = payload_report(sharing, 0, participants)
        facts = [
            component(
                name,
                sharing=sharing.value,
                payload=report.coordinate,
                writes=report.writes,
                validate="tensor",
                replicas={"": 9999},
            )
            for name in ("model", "optimizer", "lr_scheduler", "dataloader", "rng")
        ]
        sizes.add(len(messages.encode_message(captured(components=facts))))
    assert len(sizes) == 1
    assert sizes.pop() < 1600


def test_a_capture_report_about_sets_does_not_grow_with_their_size() -> None:
    sizes = set()
    for world_size in (64, 1024):
        ranks = [range(first, world_size, 2) for first in (0, 1)]
        sets = numbered_sets(Sharing.PER_GROUP, "set", ranks)
        facts = component("model", sets=sets.shown(), axes=dict(sets.axes))
        sizes.add(len(messages.encode_message(captured(components=[facts]))))
    assert len(sizes) == 1
    assert sizes.pop() < 500
