"""One step and done: what `torch.save` is used for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.errors import InvalidInput, StepExists
from stepseal.layout import check_step
from stepseal.session._checkpointer import Checkpointer

if TYPE_CHECKING:
    import os

    from stepseal.session._pending import Saved

__all__ = ["save"]


def save(root: str | os.PathLike[str], /, *, step: int = 0, **components: object) -> Saved:
    """Save live objects as one committed step, at once; the counterpart of `load`.

    In a process group every rank calls it alike. On an existing root the step becomes the newest of
    its lineage, and the root is claimed: a job that is still running there would stop.

    Args:
        root: directory of the run; made if it is missing.
        step: number of the step, above all that are there.
        components: name to object, as in `Checkpointer.add`, for example `model=model`.

    Returns:
        The step, committed and durable.

    Raises:
        InvalidInput: no component was named, or an object cannot be used so: what needs a sharing
            or a kind needs a `Checkpointer`.
        StepExists: the root has this step, or a newer one; nothing was changed.
        UnsupportedState: an object holds a value that no codec knows.
        NoResumableStep: the root has steps, and none is sound.

    Durability: on return the step survives power loss, where the file system honours fsync.
    """
    step = check_step(step)
    if not components:
        raise InvalidInput("save: no component was named: pass for example model=model.")
    with Checkpointer(root, mode="sync") as checkpointer:
        checkpointer._share.room.say_nothing()
        for name, state in components.items():
            try:
                checkpointer.add(name, state)
            except InvalidInput as error:
                raise type(error)(
                    f"save: {error} To declare a sharing or a kind, use a Checkpointer instead.",
                    component=name,
                    path=error.path,
                ) from error
        newest = checkpointer.restore(only=(), check_only=True)
        if newest is not None and newest.step >= step:
            raise StepExists(
                f"save: {newest.path} is there: expected a step above {newest.step}, found {step}. "
                "Steps are never overwritten: choose another number, or another root.",
                step=step,
                path=newest.path,
                expected=f"> {newest.step}",
                found=step,
            )
        checkpointer.restore(only=())
        return checkpointer.save(step).wait()
