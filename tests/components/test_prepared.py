"""What Accelerate's `prepare` returns, saved and restored in the place of what is inside."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._prepared import Doubles, Real
from torch import nn

import stepseal as ss
from stepseal.components import RNG, Topology
from stepseal.components._prepared_loaders import PreparedLoaderComponent
from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DATA = torch.arange(20.0)


@pytest.fixture(params=["doubles", "accelerate"])
def prepared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Doubles | Real:
    if request.param == "doubles":
        return Doubles(monkeypatch)
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed; the doubles show its habits")
    return Real()


def made(prepared: Doubles | Real, seed: int = 7) -> dict[str, Any]:
    """Return the prepared objects of a new life."""
    torch.manual_seed(seed)
    model = nn.Linear(1, 1)
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = prepared.optimizer(inner)
    scheduler = prepared.scheduler(torch.optim.lr_scheduler.StepLR(inner, 2), optimizer)
    loader = prepared.loader(DATA)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}


def train(root: Path, state: dict[str, Any], num_steps: int) -> list[Any]:
    """Return what each step saw: batch, loss, learning rate; save the last one."""
    seen = []
    with ss.Checkpointer(root, save=ss.every(steps=num_steps)) as ckpt:
        for name, one in state.items():
            ckpt.add(name, one)
        ckpt.add("rng", RNG())
        resumed = ckpt.restore()
        step = resumed.step if resumed else 0
        while step < num_steps:
            for batch in ckpt.batches(state["loader"]):
                step += 1
                noise = torch.rand(())  # shows where the stream is
                loss = state["model"](batch[:, None]).square().mean() + noise
                loss.backward()
                inner = state["scheduler"].scheduler
                inner.optimizer.step()
                inner.step()
                inner.optimizer.zero_grad()
                seen.append((batch.tolist(), loss.item(), inner.get_last_lr()))
                ckpt.step(step)
                if step == num_steps:
                    break
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("cut", [2, 5, 8])  # five batches an epoch
def test_a_prepared_job_resumes_exactly_in_the_middle_and_at_the_end_of_epochs(
    prepared: Doubles | Real, tmp_path: Path, cut: int
) -> None:
    whole = train(tmp_path / "whole", made(prepared), 12)
    train(tmp_path / "cut", made(prepared), cut)
    assert train(tmp_path / "cut", made(prepared, seed=8), 12) == whole[cut:]


def position_alone(loader: Any) -> Any:  # noqa: ANN401 - a pair
    """Return the naive variant: the state that the prepared loader gives by itself."""
    return (loader.state_dict, loader.load_state_dict)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [5, 8])
def test_the_state_that_the_loader_gives_by_itself_is_not_enough(
    prepared: Doubles | Real, tmp_path: Path, cut: int
) -> None:
    def run(root: Path, num_steps: int, seed: int) -> list[Any]:
        seen, state = [], made(prepared, seed)["loader"]
        with ss.Checkpointer(root, save=ss.every(steps=num_steps)) as ckpt:
            ckpt.add("loader", position_alone(state))
            resumed = ckpt.restore()
            step = resumed.step if resumed else 0
            while step < num_steps:
                for batch in ckpt.batches(state):
                    step += 1
                    seen.append(batch.tolist())
                    ckpt.step(step)
                    if step == num_steps:
                        break
        return seen

    whole = run(tmp_path / "whole", 12, seed=7)
    run(tmp_path / "cut", cut, seed=7)
    assert run(tmp_path / "cut", 12, seed=7) != whole[cut:]


def test_a_save_before_the_first_batch_after_a_restore_keeps_the_position(
    prepared: Doubles | Real,
) -> None:
    component = PreparedLoaderComponent("loader", prepared.loader(DATA))
    for number, _ in enumerate(component.loader):
        if number == 2:
            break
    saved = component.read_state()
    again = PreparedLoaderComponent("loader", prepared.loader(DATA))
    again.write_state(saved)
    assert again.read_state() == saved


def test_the_optimizer_and_the_scheduler_inside_are_what_is_saved(
    prepared: Doubles | Real, tmp_path: Path
) -> None:
    state = made(prepared)
    train(tmp_path, state, 1)
    fresh = made(prepared, seed=9)
    inner = fresh["optimizer"].optimizer
    plain = {"model": fresh["model"], "optimizer": inner, "scheduler": fresh["scheduler"].scheduler}
    with ss.Checkpointer(tmp_path) as ckpt:  # a job without Accelerate goes on with it
        for name, one in plain.items():
            ckpt.add(name, one)
        resumed = ckpt.restore(policies={"loader": "skip", "rng": "skip"})
    assert resumed is not None
    assert "AcceleratedOptimizer" not in resumed.report["optimizer"]
    assert torch.equal(plain["model"].weight, state["model"].weight)
    assert plain["scheduler"].last_epoch == 1


def told(run: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        run()
    return str(caught.value)


def test_loaders_whose_order_or_position_nobody_saves_are_refused(
    prepared: Doubles | Real,
) -> None:
    for options, text in (
        ({"seedable": False}, "whose order derives from the epoch, found torch.utils.data"),
        ({"stateful": False}, "that knows its position, found one around torch.utils.data"),
    ):
        loader = prepared.loader(DATA, **options)
        said = told(functools.partial(PreparedLoaderComponent, "loader", loader))
        assert text in said
        assert "use_stateful_dataloader=True, use_seedable_sampler=True" in said


def test_rank_0_alone_knows_the_position_of_a_loader_that_dispatches(
    prepared: Doubles | Real,
) -> None:
    two = Topology(0, ("trainer/0", "trainer/1"))
    dispatching = prepared.loader(DATA, dispatch=True)
    plain = PreparedLoaderComponent("loader", prepared.loader(DATA))
    assert plain.sharing(two) is ss.PER_RANK
    assert PreparedLoaderComponent("loader", dispatching).sharing(two) is ss.GLOBAL
    wrong = PreparedLoaderComponent("loader", dispatching, ss.PER_RANK)
    assert "expected ss.GLOBAL, because rank 0" in told(lambda: wrong.sharing(two))


def test_another_batch_size_order_or_class_is_told_before_anything_changes(
    prepared: Doubles | Real,
) -> None:
    component = PreparedLoaderComponent("loader", prepared.loader(DATA))
    good = component.read_state()
    assert isinstance(good, dict)
    assert component.state_problems(good) == []
    for change, text in (
        ({"total_batch_size": 8}, "total_batch_size: expected (live) 4, found 8"),
        ({"class": "Other"}, "found 'Other'"),
        ({"sampler_seed": None}, "sampler: expected a loader that shuffles"),
    ):
        (problem,) = component.state_problems({**good, **change})
        assert text in problem
        assert "'skip'" in problem
    (problem,) = component.state_problems({"position": 3})
    assert "expected the state of a loader that Accelerate prepared" in problem
    unshuffled = PreparedLoaderComponent("loader", prepared.unshuffled(DATA))
    assert any("shuffles, or not" in one for one in unshuffled.state_problems(good))


def test_a_gradient_scaler_that_nobody_saves_is_refused(
    prepared: Doubles | Real, tmp_path: Path
) -> None:
    model = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = prepared.optimizer(torch.optim.SGD(model.parameters()), scaler)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", model)
        ckpt.add("optimizer", optimizer)
        for run in (ckpt.restore, lambda: ckpt.save(1)):
            assert "add('scaler', accelerator.scaler" in told(run)
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("model", model)
        ckpt.add("optimizer", optimizer)
        ckpt.add("scaler", scaler)
        ckpt.save(1).wait()


def test_the_optimizer_of_an_engine_is_refused(prepared: Doubles | Real, tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    wrapper = prepared.optimizer(torch.optim.SGD(model.parameters()))
    engine: Any = type("EngineWrapper", (type(wrapper),), {})
    wrapper.__class__ = engine
    with ss.Checkpointer(tmp_path) as ckpt:
        said = told(lambda: ckpt.add("optimizer", wrapper))
    assert "found EngineWrapper, whose engine holds the state" in said
