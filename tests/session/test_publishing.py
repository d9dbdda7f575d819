"""`Checkpointer.publish`: weights for readers, beside the steps, and never instead of one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._states import Net, adamw, train
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import stepseal as ss
from stepseal import errors
from stepseal.storage import LocalStorage
from stepseal.testing import World, assert_identical, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def job(root: Path, model: torch.nn.Module, **options: Any) -> ss.Checkpointer:  # noqa: ANN401
    ckpt = ss.Checkpointer(root, **options)
    ckpt.add("model", model)
    ckpt.add("optimizer", adamw(model))
    ckpt.add("counters", {"seen": 0})
    return ckpt


def filled(value: float) -> torch.nn.Module:
    model = torch.nn.Linear(3, 2)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def value_of(model: torch.nn.Module) -> float:
    (value,) = {one for p in model.parameters() for one in p.flatten().tolist()}
    return float(value)


def publish(root: Path, *versions: int) -> None:
    with job(root, model := filled(0)) as ckpt:
        ckpt.restore()
        for version in versions:
            for parameter in model.parameters():
                torch.nn.init.constant_(parameter, version)
            ckpt.publish(version, components=["model"])


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def test_a_publication_holds_what_is_named_and_nothing_else(tmp_path: Path) -> None:
    with job(tmp_path, filled(4), mode="sync") as ckpt:
        saved = ckpt.publish(
            7, components=["model"], metrics={"reward": 0.5}, tags=["a"], cut={"step": 3}
        ).wait()
    assert (saved.step, saved.path) == (7, str(tmp_path / "published/v-7"))
    found = ss.open(tmp_path).publication(7)
    assert (found.version, found.path) == (7, saved.path)
    manifest = found.manifest
    assert [one.name for one in manifest.components] == ["model"]
    assert (manifest.kind, manifest.resumable, manifest.parent) == ("weights", False, None)
    assert (manifest.metrics, manifest.tags, manifest.cut) == ({"reward": 0.5}, ("a",), {"step": 3})
    assert found.tensors()["weight"].tolist() == [[4.0] * 3] * 2
    assert found.verify() == ()
    assert names(tmp_path) == ["published", "stepseal.json"]


def test_the_same_functions_read_it_as_read_a_step(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2)
    copy = tmp_path.parent / "elsewhere"
    shutil.copytree(tmp_path / "published/v-2", copy)
    for found in (
        ss.open(tmp_path).publication(2),
        ss.open_step(tmp_path / "published/v-2"),
        ss.open_step(copy),
    ):
        assert isinstance(found, ss.Publication)
        assert found.version == 2
        assert found.tensors("bias")["bias"].tolist() == [2.0, 2.0]
        assert found.verify() == ()
    model = torch.nn.Linear(3, 2)
    report = ss.load(tmp_path, published=1, model=model)
    assert (report.step, report.path) == (1, str(tmp_path / "published/v-1"))
    assert value_of(model) == 1
    ss.load(tmp_path, published="latest", model=model)
    assert value_of(model) == 2
    state = model.state_dict()
    with pytest.warns(UserWarning, match="single process"):
        dcp_load(state, checkpoint_id=tmp_path / "published/v-1")
    assert {one for tensor in state.values() for one in tensor.flatten().tolist()} == {1.0}


def test_loading_says_what_is_not_there(tmp_path: Path) -> None:
    with job(tmp_path, filled(1)) as ckpt:
        ckpt.save(1)
    model = torch.nn.Linear(3, 2)
    with pytest.raises(errors.StepNotFound, match="nothing is published"):
        ss.load(tmp_path, published="latest", model=model)
    publish(tmp_path, 2)
    with pytest.raises(errors.StepNotFound, match=r"version 9: expected published/v-9"):
        ss.load(tmp_path, published=9, model=model)
    with pytest.raises(errors.StateMismatch, match="not in version 2, which has model"):
        ss.load(tmp_path, published=2, counters={"seen": 0})
    with pytest.raises(errors.InvalidInput, match="expected step or published"):
        ss.load(tmp_path, step=1, published=2, model=model)


def test_a_publication_is_never_a_resume_point(tmp_path: Path) -> None:
    """Also where its version is above all steps, or there is no step at all."""
    publish(tmp_path, 50)
    with job(tmp_path, model := filled(0)) as ckpt:
        assert ckpt.restore() is None
        ckpt.save(1)
        ckpt.publish(51, components=["model"]).wait()
    assert (tmp_path / "latest").read_text() == "step-1\n"
    assert ss.open(tmp_path).steps() == (1,)
    latest = ss.open(tmp_path).latest()
    assert latest is not None
    assert latest.step == 1
    with job(tmp_path, model) as ckpt:
        restored = ckpt.restore()
        assert restored is not None
        assert restored.step == 1
        with pytest.raises(errors.StepNotFound):
            ckpt.restore(51)


def test_publishing_before_a_restore_is_refused_as_saving_is(tmp_path: Path) -> None:
    with job(tmp_path, filled(1)) as ckpt:
        ckpt.save(1)
    with job(tmp_path, filled(2)) as ckpt:
        with pytest.raises(errors.NotRestored):
            ckpt.publish(1, components=["model"])
        ckpt.restore()
        ckpt.publish(1, components=["model"])
    assert ss.open(tmp_path).published() == (1,)


def test_publications_and_saves_take_turns_and_do_not_count_for_one_another(tmp_path: Path) -> None:
    model = Net(0)
    optimizer = adamw(model)
    with ss.Checkpointer(tmp_path, keep=ss.latest(2), publish_keep=1) as ckpt:
        ckpt.add("model", model)
        ckpt.add("optimizer", optimizer)
        for number in range(1, 5):
            train(model, optimizer, number)
            ckpt.publish(10 * number, components=["model"])
            ckpt.save(number)
            pending = ckpt.publish(10 * number + 1, components=["model"])
        last = snapshot(model.state_dict())
        pending.wait()
        ckpt.save(5)
    run = ss.open(tmp_path)
    assert run.steps() == (4, 5)
    assert run.published() == (41,)
    parent = run.publication(41).manifest.parent
    assert parent is not None
    assert parent.step == 4
    step_parent = run.step(5).manifest.parent
    assert step_parent is not None
    assert step_parent.step == 4
    blank = Net(1)
    ss.load(tmp_path, published=41, model=blank)
    assert_identical(snapshot(blank.state_dict()), last)
    assert (tmp_path / "latest").read_text() == "step-5\n"


def test_a_version_does_not_limit_the_steps_nor_they_the_versions(tmp_path: Path) -> None:
    with job(tmp_path, filled(1)) as ckpt:
        ckpt.publish(100, components=["model"])
        ckpt.save(7)
        ckpt.publish(101, components=["model"])
        ckpt.save(8)
        with pytest.raises(errors.StepExists, match="above 101"):
            ckpt.publish(101, components=["model"])
        ckpt.save(9)
    assert ss.open(tmp_path).steps() == (7, 8, 9)


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ([], "list of names"),
        ("model", "list of names"),
        (None, "list of names"),
        ([1], "list of names"),
        (["model", "critic"], r"that were added \(model, optimizer, counters\), found 'critic'"),
    ],
)
def test_components_are_named_as_they_were_added(
    tmp_path: Path,
    components: Any,  # noqa: ANN401 - whatever a caller gives
    said: str,
) -> None:
    with job(tmp_path, filled(1)) as ckpt:
        with pytest.raises(errors.InvalidInput, match=said):
            ckpt.publish(1, components=components)
        with pytest.raises(errors.InvalidInput, match="version is not usable"):
            ckpt.publish(-1, components=["model"])
    assert names(tmp_path) == ["stepseal.json"]


def test_a_number_to_keep_is_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="publish_keep=0"):
        ss.Checkpointer(tmp_path, publish_keep=0)


class Broken:
    """Has no state to give."""

    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("no state today")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError(state)


def test_a_component_that_is_not_published_is_not_asked(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", filled(3))
        ckpt.add("broken", Broken())
        ckpt.publish(1, components=["model"]).wait()
        with pytest.raises(errors.ParticipantFailed, match=r"save of step 1.*no state today"):
            ckpt.save(1)


def test_what_fails_says_that_it_was_a_publication_and_harms_nothing(tmp_path: Path) -> None:
    """An optional component, too: a publication without what it is for is none."""
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", filled(3))
        ckpt.add("broken", Broken(), required=False)
        with pytest.raises(errors.ParticipantFailed, match=r"publication of version 1.*no state"):
            ckpt.publish(1, components=["broken"])
        ckpt.save(1)
        ckpt.publish(2, components=["model"])
    assert ss.open(tmp_path).published() == (2,)


def ranks(root: Path, work: Callable[[int, ss.Checkpointer], Any], num: int = 2) -> list[Any]:
    """Run participants on threads, each with a model that all hold and a counter of its own."""

    def one(rank: int, ckpt: ss.Checkpointer) -> Any:  # noqa: ANN401
        ckpt.add("model", filled(5), sharing=ss.REPLICATED)
        ckpt.add("own", {"rank": rank}, sharing=ss.PER_RANK)
        with ckpt:
            return work(rank, ckpt)

    return World(num, lambda _: LocalStorage.create(root)).run(one)


def test_all_ranks_publish_together(tmp_path: Path) -> None:
    def work(_rank: int, ckpt: ss.Checkpointer) -> ss.Saved:
        ckpt.save(1)
        return ckpt.publish(1, components=["model"]).wait()

    first, second = ranks(tmp_path, work)
    assert first.manifest_sha256 == second.manifest_sha256
    manifest = ss.open(tmp_path).publication(1).manifest
    assert manifest.participants == ("trainer/0", "trainer/1")
    assert [one.name for one in manifest.components] == ["model"]


def test_ranks_that_do_different_things_commit_neither(tmp_path: Path) -> None:
    def mixed(rank: int, ckpt: ss.Checkpointer) -> str:
        calls = (lambda: ckpt.save(1), lambda: ckpt.publish(1, components=["model"]))
        with pytest.raises(errors.ParticipantFailed) as caught:
            calls[rank]()
        return str(caught.value)

    for text in ranks(tmp_path, mixed):
        assert "trainer/1: called publish, but trainer/0: save" in text

    def versions(rank: int, ckpt: ss.Checkpointer) -> str:
        with pytest.raises(errors.ParticipantFailed) as caught:
            ckpt.publish(1 + rank, components=["model"])
        return str(caught.value)

    for text in ranks(tmp_path, versions):
        assert "publication of version 2" in text
        assert "called publish for version 2, but trainer/0: version 1" in text

    def components(rank: int, ckpt: ss.Checkpointer) -> str:
        with pytest.raises(errors.ParticipantFailed) as caught:
            ckpt.publish(1, components=["model", "own"][: 1 + rank])
        return str(caught.value)

    for text in ranks(tmp_path, components):
        assert "has components ['model', 'own'], but trainer/0: components ['model']" in text
    assert not (tmp_path / "published").exists()
    assert list(tmp_path.glob("step-*")) == []
