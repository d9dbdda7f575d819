"""Foreign DCP folders are offered only on request, and only where no step of stepseal is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.steps._kit import DEADLINES, TWO, Root, damage, sent

from stepseal import errors
from stepseal.layout import StepRef
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._restore_round import RestoreRound
from stepseal.steps._foreign import offer_foreign, warn_of_foreign
from stepseal.steps._roots import initialise_root
from stepseal.storage import create_durable

if TYPE_CHECKING:
    from stepseal.storage import Storage

INDEX = b"whatever DCP wrote"
SHA256 = hashlib.sha256(INDEX).hexdigest()


def put(storage: Storage, name: str, data: bytes = INDEX) -> None:
    storage.make_dir(name)
    create_durable(storage, f"{name}/.metadata", data)


def offer(storage: Storage, step: int | None = None, *exclude: int) -> StepRef | None:
    return offer_foreign(storage, step, exclude)


def test_the_newest_folder_with_an_index_is_offered_by_its_digest(storage: Storage) -> None:
    for name in ("step-9", "step-100", "step-007", "checkpoint-500", "step-200.tmp"):
        put(storage, name)
    storage.make_dir("step-300")
    create_durable(storage, "step-400", b"a file")
    assert (offer(storage)) == StepRef(100, SHA256, 0)
    assert (offer(storage, None, 100)) == StepRef(9, SHA256, 0)
    assert offer(storage, None, 100, 9) is None  # tried, and passed over


@pytest.mark.parametrize("names", [(), ("step-5", "checkpoint-7", "notes")])
def test_where_nothing_is_found_the_request_fails_and_names_what_is_there(
    storage: Storage, names: tuple[str, ...]
) -> None:
    for name in names:
        storage.make_dir(name)
    with pytest.raises(errors.StepNotFound) as caught:
        offer(storage)
    found = "found checkpoint-7, step-5. " if names else "found none. "
    assert found in str(caught.value)


def test_a_root_that_is_a_dcp_folder_itself_is_refused(storage: Storage) -> None:
    create_durable(storage, ".metadata", INDEX)
    for refuses in (offer, initialise_root):
        with pytest.raises(errors.InvalidInput, match="its parent folder"):
            refuses(storage)
    assert [entry.name for entry in storage.list_dir("")] == [".metadata"]


def test_a_fresh_start_names_the_folders_beside_it(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_foreign(storage)
    assert caplog.text == ""
    create_durable(storage, "checkpoint.txt", b"a file")
    storage.make_dir("notes")
    for number in range(10):
        put(storage, f"step-{number}")
    put(storage, "checkpoint-5")
    warn_of_foreign(storage)
    (told,) = caplog.messages
    assert "write: checkpoint-5, step-0, step-1, " in told
    assert " and 3 more. " in told
    assert "unverified=True" in told
    assert "stepseal import --from dcp" in told


@pytest.mark.parametrize("damaged", [False, True])
def test_any_step_of_stepseal_comes_first(storage: Storage, damaged: bool) -> None:
    root = Root(storage)
    root.commit(5)
    if damaged:
        damage(storage, 5)
    put(storage, "step-9")
    assert offer(storage) is None
    assert (offer(storage, 9)) == StepRef(9, SHA256, 0)
    assert offer(storage, 5) is None


def test_a_folder_that_was_asked_for_must_be_there(storage: Storage) -> None:
    with pytest.raises(errors.StepNotFound):
        offer(storage, 3)


def called(*, unverified: bool = True) -> messages.RestoreCalled:
    return messages.RestoreCalled(1, None, False, {"model": "require"}, unverified)


def joined() -> RestoreRound:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(), 0.0)
    assert found.on_called(TWO[1], called(), 0.0) == [actions.Select(1, None, (), True)]
    return found


def told(todo: list[actions.Action], kind: Any) -> list[Any]:  # noqa: ANN401 - of that kind
    found = sent(todo, kind)
    assert [name for name, _ in found] == list(TWO)
    return [message for _, message in found]


def test_a_restored_folder_is_no_parent_of_the_claim(storage: Storage) -> None:
    found = joined()
    chosen = StepRef(9, SHA256, 0)
    selected = actions.Selected(1, chosen, "", has_commits=False, unverified=True)
    candidates = told(found.on_selected(selected, 1.0), messages.Candidate)
    assert {(c.step, c.manifest_sha256, c.unverified) for c in candidates} == {(9, SHA256, True)}
    for vote in (messages.Checked(1, 1), messages.Applied(1, 1)):
        for name in TWO:
            last = found.on_vote(name, vote, 2.0)
    assert last == [actions.Claim(1, None)]
    restored = told(found.on_claimed(actions.Claimed(1, 4), 9.0), messages.Restored)
    assert {(r.step, r.incarnation, r.unverified) for r in restored} == {(9, 4, True)}


def test_participants_that_differ_in_the_request_fail_together() -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(), 0.0)
    todo = found.on_called(TWO[1], called(unverified=False), 0.0)
    (first, _) = told(todo, messages.RestoreFailed)
    assert first.kind == errors.StateMismatch.kind
    assert "unverified=False" in first.message
